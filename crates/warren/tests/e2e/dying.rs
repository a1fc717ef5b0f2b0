//! The server is killed again and again, at any moment of creates, stops and deletes, on the fake
//! hypervisor: what was promised is kept, what was not leaves nothing.

use crate::harness::{Mode, Server, eventually, is_root, skip};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Kills in one run of the test; `WARREN_KILLS` asks for more (`./dev soak kills`).
const KILLS: u64 = 10;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Instances that a worker leaves behind in each round.
const KEPT: u32 = 5;

/// xorshift64*: the same seed gives the same moments.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
    }
}

/// What a client was told about an instance last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The create was answered with 201.
    Created,
    /// The delete was answered with 204.
    Deleted,
    /// The last request was not answered.
    Nothing,
}

fn body(name: &str) -> Value {
    json!({"id": name, "name": name, "image": "busybox-web", "memory_mb": 64, "overlay_size": "16MB",
           "cmd": ["sleep", "1000"], "network": {"enabled": false}})
}

#[test]
fn kills_at_any_moment_lose_no_promise_and_leave_nothing() {
    const NAME: &str = "kills_at_any_moment_lose_no_promise_and_leave_nothing";
    if !is_root() {
        return skip(NAME, "these tests start as root");
    }
    let environment = [
        ("WARREN_HYPERVISORS", "[fake]"),
        ("WARREN_NETWORK", "none"),
        // What is kept of each round must fit beside what was kept of the others.
        ("WARREN_MEMORY_OVERCOMMIT_PERCENT", "1000000"),
    ];
    let mut server = Server::start_in(Mode::Bridge, &environment);
    let mut moments = Moments(from_environment("WARREN_SEED", 0x5eed_0001).max(1));
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for round in 0..from_environment("WARREN_KILLS", KILLS) {
        let stop = AtomicBool::new(false);
        let answers = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (server, stop) = (&server, &stop);
                    scope.spawn(move || work(server, stop, &format!("r{round}w{worker}")))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(50 + moments.next(1500)));
            server.kill_now();
            stop.store(true, Ordering::SeqCst);
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect::<Vec<_>>()
        });
        server.reap();
        told.extend(answers);
        server.launch();
        for (name, told) in &told {
            let path = format!("/instances/{name}");
            match told {
                Told::Created => eventually("a promised instance runs", 10, || {
                    (server.api("GET", &path, None).1["state"] == "Running").then_some(())
                }),
                Told::Deleted => {
                    assert_eq!(server.api("GET", &path, None).0, 404, "{name} came back")
                }
                Told::Nothing => {}
            }
        }
    }
    for kind in [Told::Created, Told::Deleted] {
        assert!(
            told.values().any(|told| *told == kind),
            "no request was ever {kind:?}"
        );
    }
    let (_, all) = server.api("GET", "/instances?limit=1000", None);
    for instance in all.as_array().unwrap() {
        let name = instance["id"].as_str().unwrap();
        assert_eq!(
            server.api("DELETE", &format!("/instances/{name}"), None).0,
            204,
            "{name}"
        );
    }
    eventually("nothing is left", 10, || {
        server.leftovers().is_empty().then_some(())
    });
}

/// Creates and deletes until told to stop or not answered; what was answered, by name.
fn work(server: &Server, stop: &AtomicBool, prefix: &str) -> Vec<(String, Told)> {
    let mut answers = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        // Padded: no name may be the prefix of another, which a look-up would accept.
        let name = format!("{prefix}n{number:05}");
        match server.try_api("POST", "/instances", Some(body(&name))) {
            Some(201) => {}
            Some(status) => panic!("create answered {status}"),
            None => {
                answers.push((name, Told::Nothing));
                break;
            }
        }
        // More than a few at once would only fill the host.
        if number % 2 == 0 && number < KEPT * 2 {
            answers.push((name, Told::Created));
            continue;
        }
        match server.try_api("DELETE", &format!("/instances/{name}"), None) {
            Some(204) => answers.push((name, Told::Deleted)),
            Some(status) => panic!("delete answered {status}"),
            None => {
                answers.push((name, Told::Nothing));
                break;
            }
        }
    }
    answers
}

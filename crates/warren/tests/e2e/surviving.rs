//! The server dies, guests do not.

use crate::harness::{Mode, Server, eventually, missing, skip};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn last_number(server: &Server, name: &str) -> Option<u64> {
    server
        .ok(&["logs", "--tail", "1", name])
        .trim()
        .parse()
        .ok()
}

fn guests_outlive_a_killed_server(mode: Mode, test: &str) {
    if let Some(reason) = missing(mode) {
        return skip(test, &reason);
    }
    let mut server = Server::start(mode);
    let names = ["one", "two", "three"];
    for name in names {
        server.ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--memory",
            "128MB",
            "busybox-web",
            "sh",
            "-c",
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done",
        ]);
    }
    let before: Vec<u64> = names
        .iter()
        .map(|name| eventually("it counts", 90, || last_number(&server, name)))
        .collect();
    let pids = vmm_pids(&server);
    assert_eq!(pids.len(), 3, "{pids:?}");
    server.kill();
    std::thread::sleep(Duration::from_secs(2));
    let started = Instant::now();
    server.launch();
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "the API was up after {took:?}"
    );
    assert_eq!(vmm_pids(&server), pids, "the same processes run on");
    for (name, before) in names.iter().zip(before) {
        let (_, instance) = eventually("it is Running", 10, || {
            let answer = server.api("GET", &format!("/instances/{name}"), None);
            (answer.1["state"] == "Running").then_some(answer)
        });
        assert_eq!(instance["name"], *name);
        eventually("it counted on", 20, || {
            last_number(&server, name).filter(|now| *now > before + 15)
        });
        // No number is missing and none came twice: what was said while nobody listened was kept.
        let lines = server.ok(&["logs", name]);
        let numbers: Vec<u64> = lines.lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            numbers.iter().copied().eq(1..=numbers.len() as u64),
            "{numbers:?}"
        );
        assert_eq!(server.ok(&["exec", name, "echo", "here"]), "here\n");
    }
    let mut follower = server
        .cli(&["logs", "-f", "one"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    server.ok(&["rm", "-f", "one", "two", "three"]);
    eventually("logs -f ends", 20, || follower.try_wait().unwrap());
    eventually("nothing is left", 2, || {
        server.leftovers().is_empty().then_some(())
    });
}

fn vmm_pids(server: &Server) -> Vec<String> {
    let mut pids: Vec<String> = server
        .leftovers()
        .into_iter()
        .filter(|left| left.contains("qemu-system"))
        .filter_map(|left| {
            left.strip_prefix("process ")?
                .split(':')
                .next()
                .map(str::to_owned)
        })
        .collect();
    pids.sort();
    pids
}

#[test]
fn bridge_guests_outlive_a_killed_server() {
    guests_outlive_a_killed_server(Mode::Bridge, "bridge_guests_outlive_a_killed_server");
}

#[test]
fn user_mode_guests_outlive_a_killed_server() {
    guests_outlive_a_killed_server(Mode::User, "user_mode_guests_outlive_a_killed_server");
}

#[test]
fn a_killed_vmm_is_noticed_and_its_name_is_free_again() {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(
            "a_killed_vmm_is_noticed_and_its_name_is_free_again",
            &reason,
        );
    }
    let server = Server::start(Mode::Bridge);
    server.ok(&[
        "run",
        "-d",
        "--name",
        "doomed",
        "busybox-web",
        "sleep",
        "1000",
    ]);
    let pids = vmm_pids(&server);
    let pid: i32 = pids[0].parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("the true state", 2, || {
        (server.api("GET", "/instances/doomed", None).1["state"] == "Stopped").then_some(())
    });
    assert!(vmm_pids(&server).is_empty());
    // No zombie, and its TAP, its rules and its sockets are free: a second is what a check takes that finds something.
    eventually("nothing of it is held", 2, || {
        server.differences().is_empty().then_some(())
    });
    server.ok(&["start", "doomed"]);
    assert_eq!(server.ok(&["exec", "doomed", "echo", "again"]), "again\n");
}

#[test]
fn a_machine_that_ends_before_its_guest_is_told_anything_is_started_again() {
    const NAME: &str = "a_machine_that_ends_before_its_guest_is_told_anything_is_started_again";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let server = Server::start(Mode::Bridge);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            server.ok(&[
                "run",
                "--rm",
                "--network",
                "none",
                "busybox-web",
                "echo",
                "ran",
            ])
        });
        // As early as it can be seen: its kernel has not begun.
        let pid = eventually("the first machine", 20, || {
            vmm_pids(&server).first()?.parse::<i32>().ok()
        });
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_eq!(run.join().unwrap(), "ran\n");
    });
    assert_eq!(server.log().matches("StartVmm").count(), 2);
}

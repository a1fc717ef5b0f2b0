//! Every step and every teardown of an instance's life is carried out twice, on real machines: as good as once.

use crate::harness::{Build, Mode, Server, eventually, missing, skip};
use serde_json::json;
use std::collections::BTreeSet;
use warren_core::planner::Step;

/// Steps that were carried out twice, with what the second time gave.
fn repeated(server: &Server) -> Vec<(String, String)> {
    let log = server.log();
    let value = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        let word = rest.split([' ', '}']).next()?;
        Some(word.trim_matches('"').to_owned())
    };
    log.lines()
        .filter(|line| line.contains("carried out twice"))
        .map(|line| {
            (
                value(line, "step").unwrap(),
                value(line, "outcome").unwrap(),
            )
        })
        .collect()
}

fn steps_carried_out_twice(mode: Mode, test: &str) {
    if let Some(reason) = missing(mode) {
        return skip(test, &reason);
    }
    let server = Server::start_build(
        Build::WithCrashPoints,
        mode,
        &[("WARREN_CRASH_REPEAT", "1"), ("NO_COLOR", "1")],
    );
    let is = |state: &str| {
        eventually(state, 60, || {
            (server.api("GET", "/instances/twice", None).1["state"] == state).then_some(())
        });
        eventually("record and host agree", 5, || {
            server.differences().is_empty().then_some(())
        });
    };
    let port = crate::harness::free_port();
    let body = json!({
        "id": "twice", "name": "twice", "image": "busybox-web", "memory_mb": 128, "overlay_size": "16MB",
        "stop_grace_seconds": 1, "port_mappings": [{"host_port": port, "guest_port": 80}],
        "cmd": ["sh", "-c", "echo $$ >>/here; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"],
    });
    let (status, made) = server.api("POST", "/instances", Some(body));
    assert_eq!(status, 201, "{made}");
    is("Running");
    let numbers = || -> Vec<u64> {
        let lines = server.ok(&["logs", "twice"]);
        lines.lines().map(|line| line.parse().unwrap()).collect()
    };
    let heard = eventually("it counts", 20, || {
        let numbers = numbers();
        (numbers.len() > 5).then_some(numbers)
    });
    assert!(
        heard.iter().copied().eq(1..=heard.len() as u64),
        "{heard:?}"
    );
    let all_of = |wishes: &[(&str, &str)]| {
        for (verb, state) in wishes {
            server.ok(&[verb, "twice"]);
            is(state);
        }
    };
    // Each run leaves a line on the one disk that it has had all along; the workload begins when it runs already.
    let has_run = |times: u32| {
        eventually("a line of each run", 20, || {
            let lines = server.ok(&["exec", "twice", "wc", "-l", "/here"]);
            (lines.trim() == format!("{times} /here")).then_some(())
        });
    };
    all_of(&[
        ("pause", "Paused"),
        ("resume", "Running"),
        ("standby", "Standby"),
        ("restore", "Running"),
        ("stop", "Stopped"),
        ("start", "Running"),
    ]);
    has_run(2);
    // Its memory is given up, which is a power cut to its disk.
    server.ok(&["exec", "twice", "sync"]);
    all_of(&[
        ("standby", "Standby"),
        ("stop", "Stopped"),
        ("start", "Running"),
    ]);
    has_run(3);
    server.ok(&["rm", "-f", "twice"]);
    eventually("nothing is left", 5, || {
        (server.leftovers().is_empty() && server.differences().is_empty()).then_some(())
    });
    let repeated = repeated(&server);
    let failed: Vec<_> = repeated
        .iter()
        .filter(|(_, outcome)| outcome != "done")
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let steps: BTreeSet<String> = repeated.into_iter().map(|(step, _)| step).collect();
    let all: BTreeSet<String> = Step::ALL.iter().map(|step| format!("{step:?}")).collect();
    assert_eq!(steps, all, "every step there is was carried out twice");
}

#[test]
fn every_step_of_a_machine_on_a_bridge_is_carried_out_twice_and_is_as_good_as_once() {
    steps_carried_out_twice(
        Mode::Bridge,
        "every_step_of_a_machine_on_a_bridge_is_carried_out_twice_and_is_as_good_as_once",
    );
}

#[test]
fn every_step_of_a_machine_in_user_mode_is_carried_out_twice_and_is_as_good_as_once() {
    steps_carried_out_twice(
        Mode::User,
        "every_step_of_a_machine_in_user_mode_is_carried_out_twice_and_is_as_good_as_once",
    );
}

//! Commands that are left running: they go on without their client and without the server, and are come back to.

use crate::harness::{Mode, Server, eventually, missing, skip};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};

fn listed(server: &Server) -> Vec<Value> {
    let text = server.ok(&["execs", "box", "-o", "json"]);
    serde_json::from_str(&text).unwrap()
}

/// Joins a command and reads its output line by line.
fn attach(server: &Server, id: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = server.cli(&["attach", "--exec", id, "box"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

#[test]
fn commands_are_left_running_and_come_back_to() {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip("commands_are_left_running_and_come_back_to", &reason);
    }
    let mut server = Server::start(Mode::Bridge);
    server.ok(&["run", "-d", "--name", "box", "busybox-web", "sleep", "1000"]);
    let sh = |server: &Server, options: &[&str], script: &str| {
        let words = [&["exec"], options, &["box", "sh", "-c", script]].concat();
        server.ok(&words).trim().to_owned()
    };

    // Its input is kept open, its output kept until somebody comes, and both outputs are told apart.
    let echo = "echo begun; echo aside >&2; while read word; do echo \"got $word\"; done; exit 5";
    let talk = sh(&server, &["-d", "-i"], echo);
    let (mut first, mut output) = attach(&server, &talk);
    assert_eq!(line(&mut output), "begun\n");
    first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    assert_eq!(line(&mut output), "got one\n");
    first.kill().unwrap();
    first.wait().unwrap();

    // Nobody is there, then not even the server, and it counts on.
    let count = sh(
        &server,
        &["-d"],
        "n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.1; done",
    );
    server.kill();
    server.launch();
    let counted = |server: &Server| -> u64 {
        let output = server.run(&["exec", "box", "cat", "/count"]);
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap_or(0)
    };
    let before = eventually("it counts", 60, || {
        Some(counted(&server)).filter(|n| *n > 0)
    });
    eventually("it counts on", 30, || {
        (counted(&server) > before).then_some(())
    });
    let states: Vec<(Value, Value)> = listed(&server)
        .iter()
        .map(|exec| (exec["id"].clone(), exec["state"].clone()))
        .collect();
    assert_eq!(
        states,
        [
            (json!(talk), json!("running")),
            (json!(count), json!("running"))
        ]
    );

    // From the beginning again, and to its end.
    let (mut second, mut output) = attach(&server, &talk);
    assert_eq!(line(&mut output), "begun\n");
    assert_eq!(line(&mut output), "got one\n");
    second.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    assert_eq!(line(&mut output), "got two\n");
    drop(second.stdin.take());
    assert_eq!(second.wait().unwrap().code(), Some(5));
    let again = server.run(&["attach", "--exec", &talk, "box"]);
    assert_eq!(again.status.code(), Some(5));
    assert_eq!(
        String::from_utf8_lossy(&again.stdout),
        "begun\ngot one\ngot two\n"
    );
    assert_eq!(String::from_utf8_lossy(&again.stderr), "aside\n");

    // Removing one ends all of its processes.
    server.ok(&["execs", "box", "--remove", &count]);
    let stopped = eventually("it counts no more", 30, || {
        let (one, other) = (counted(&server), {
            std::thread::sleep(std::time::Duration::from_millis(400));
            counted(&server)
        });
        (one == other).then_some(one)
    });
    assert!(stopped > 0);
    let gone = server.run(&["attach", "--exec", &count, "box"]);
    assert_eq!(gone.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no such detached command"));

    // One that cannot be run is told like one that has ended; one that reads has an empty input; a limit of time is kept.
    let missing = server.ok(&["exec", "-d", "box", "nothing-of-that-name"]);
    let reads = server.ok(&["exec", "-d", "box", "cat"]);
    let limited = server.ok(&["exec", "-d", "--timeout", "1s", "box", "sleep", "1000"]);
    for (id, code) in [(missing, 127), (reads, 0), (limited, 137)] {
        let ended = eventually("it ends", 30, || {
            let all = listed(&server);
            let found = all.into_iter().find(|exec| exec["id"] == id.trim());
            found.filter(|exec| exec["state"] == "exited")
        });
        assert_eq!(ended["exit_code"], code, "{ended}");
    }

    // Somebody who stays, and loses the connection.
    let mut staying = server.cli(&[
        "exec",
        "--keep",
        "box",
        "sh",
        "-c",
        "echo here; sleep 2; echo over",
    ]);
    let mut staying = staying.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(staying.stdout.take().unwrap());
    assert_eq!(line(&mut output), "here\n");
    staying.kill().unwrap();
    staying.wait().unwrap();
    let kept = listed(&server).pop().unwrap();
    let id = kept["id"].as_str().unwrap();
    let back = server.run(&["attach", "--exec", id, "box"]);
    assert_eq!(String::from_utf8_lossy(&back.stdout), "here\nover\n");
    server.ok(&["rm", "-f", "box"]);
    assert_eq!(server.differences(), Vec::<String>::new());
}

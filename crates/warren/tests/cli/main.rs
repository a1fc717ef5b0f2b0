//! The command line as people and scripts meet it: the built program, asked from outside.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod busy;
mod commit;
mod copying;
mod debug;
mod double;
#[path = "../../../../tests/lies.rs"]
mod lies;
mod operations;
mod outlet;
mod reaching;
#[path = "../../../../tests/skip.rs"]
mod skip;
mod storage;
mod upkeep;
mod usage;

use double::Double;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const COMMANDS: [&[&str]; 46] = [
    &["run"],
    &["exec"],
    &["cp"],
    &["attach"],
    &["ps"],
    &["logs"],
    &["inspect"],
    &["stats"],
    &["top"],
    &["events"],
    &["start"],
    &["stop"],
    &["restart"],
    &["pause"],
    &["resume"],
    &["standby"],
    &["restore"],
    &["wait"],
    &["rm"],
    &["images"],
    &["pull"],
    &["load"],
    &["commit"],
    &["push"],
    &["save"],
    &["rmi"],
    &["image", "verify"],
    &["image", "export"],
    &["prune"],
    &["operations"],
    &["operations", "cancel"],
    &["debug", "bundle"],
    &["system", "df"],
    &["version"],
    &["completion"],
    &["context"],
    &["context", "ls"],
    &["context", "add"],
    &["context", "use"],
    &["context", "rm"],
    &["context", "show"],
    &["fsck"],
    &["system", "clean"],
    &["system", "recover"],
    &["system", "backup"],
    &["system", "restore"],
];

/// The program, with nothing of this machine's own settings.
fn warren(home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    for name in [
        "WARREN_SERVER",
        "WARREN_TOKEN",
        "WARREN_CONTEXT",
        "NO_COLOR",
        "DATA_DIR",
        "PORT",
    ] {
        command.env_remove(name);
    }
    command
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::null());
    command
}

fn output(words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    warren(home.path()).args(words).output().unwrap()
}

/// One command against a double.
fn ask(double: &Double, words: &[&str]) -> Output {
    let mut all = vec!["--server", double.url.as_str()];
    all.extend(words);
    output(&all)
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A port where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn every_command_explains_itself_with_examples() {
    for words in COMMANDS {
        let mut all = words.to_vec();
        all.push("--help");
        let help = output(&all);
        assert_eq!(help.status.code(), Some(0), "{words:?}");
        let text = out(&help);
        assert!(text.contains("Usage: warren"), "{words:?}: {text}");
        assert!(text.contains("Examples:"), "{words:?}: {text}");
        assert!(err(&help).is_empty(), "{words:?}");
    }
    let root = out(&output(&["--help"]));
    for words in COMMANDS {
        assert!(root.contains(words[0]), "{words:?} is not in warren --help");
    }
}

#[test]
fn mistakes_are_usage_errors() {
    for words in [
        &["frobnicate"][..],
        &["run"],
        &["ps", "--nonsense"],
        &["run", "--memory", "512", "img"],
        &["-o", "xml", "ps"],
    ] {
        let answer = output(words);
        assert_eq!(answer.status.code(), Some(2), "{words:?}");
        assert!(out(&answer).is_empty(), "{words:?}");
        assert!(
            err(&answer).starts_with("error:"),
            "{words:?}: {}",
            err(&answer)
        );
    }
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = output(&["completion", shell]);
        assert_eq!(script.status.code(), Some(0), "{shell}");
        assert!(out(&script).contains("inspect"), "{shell}");
    }
}

#[test]
fn lists_are_tables_for_people_and_objects_for_scripts() {
    let double = Double::start(None);
    let table = out(&ask(&double, &["ps", "-a"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("STATUS"),
        "{table}"
    );
    assert!(
        table.contains("8080:80") && table.contains("Stopped (exit 3)"),
        "{table}"
    );
    assert!(
        !table.contains('\u{1b}'),
        "a guest's name drives the terminal: {table:?}"
    );
    assert_eq!(out(&ask(&double, &["ps", "-q"])), "id-web\n");
    assert_eq!(out(&ask(&double, &["ps", "-o", "name"])), "web\n");
    let list: Value =
        serde_json::from_str(&out(&ask(&double, &["ps", "-a", "-o", "json"]))).unwrap();
    assert_eq!(list[0]["private_ip"], "192.168.100.2");
    assert_eq!(list.as_array().unwrap().len(), 2);
    let yaml = out(&ask(&double, &["ps", "-o", "yaml"]));
    let list: Value = serde_norway::from_str(&yaml).unwrap();
    assert_eq!(list[0]["name"], "web");
    let object: Value = serde_json::from_str(&out(&ask(&double, &["inspect", "web"]))).unwrap();
    assert_eq!(object[0]["id"], "id-web");
}

#[test]
fn an_empty_list_is_an_empty_list() {
    let double = Double::start(None);
    assert_eq!(out(&ask(&double, &["images", "-o", "json"])), "[]\n");
    assert_eq!(out(&ask(&double, &["images", "-q"])), "");
}

#[test]
fn run_pulls_streams_and_gives_the_guests_exit_code() {
    let double = Double::start(None);
    let answer = ask(
        &double,
        &[
            "run", "--rm", "--name", "job", "absent", "sh", "-c", "exit 7",
        ],
    );
    assert_eq!(answer.status.code(), Some(7), "{}", err(&answer));
    assert_eq!(out(&answer), "out\n");
    assert!(err(&answer).contains("err\n"), "{}", err(&answer));
    assert!(err(&answer).contains("pulled absent"), "{}", err(&answer));
    let requests = double.requests();
    assert!(
        requests.contains(&"DELETE /instances/id-job".to_owned()),
        "{requests:?}"
    );
    let bodies = double.bodies();
    assert_eq!(bodies[0], bodies[2], "the same create, after the pull");
    assert_eq!(bodies[0]["cmd"], json!(["sh", "-c", "exit 7"]));
    assert_eq!(bodies[0]["auto_remove"], true);
}

#[test]
fn run_does_not_pull_where_it_may_not() {
    let double = Double::start(None);
    let answer = ask(&double, &["run", "--pull", "never", "absent"]);
    assert_eq!(answer.status.code(), Some(125));
    assert!(
        err(&answer).contains("warren pull absent"),
        "{}",
        err(&answer)
    );
    assert!(
        !double
            .requests()
            .iter()
            .any(|r| r.starts_with("POST /images"))
    );
}

#[test]
fn run_detached_prints_the_id_alone() {
    let double = Double::start(None);
    let answer = ask(&double, &["run", "-d", "--name", "bg", "busybox"]);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    assert_eq!(out(&answer), "id-bg\n");
}

#[test]
fn a_start_that_fails_is_warrens_failure_with_the_reason() {
    let double = Double::start(None);
    for words in [
        &["run", "-d", "--name", "b", "broken"][..],
        &["run", "--name", "b", "broken"],
    ] {
        let answer = ask(&double, words);
        assert_eq!(answer.status.code(), Some(125), "{words:?}");
        assert!(
            err(&answer).contains("there is no kernel"),
            "{}",
            err(&answer)
        );
        assert!(
            err(&answer).contains("warren logs --source console b"),
            "{}",
            err(&answer)
        );
    }
}

fn interrupt(process: &std::process::Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

fn ended(process: &mut std::process::Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "the program did not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `run` of a workload that does not end by itself, after its first line.
fn run_endless(double: &Double, home: &std::path::Path, words: &[&str]) -> std::process::Child {
    let mut process = warren(home)
        .args(["--server", &double.url, "run"])
        .args(words)
        .arg("endless")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 4];
    process
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"out\n");
    process
}

#[test]
fn ctrl_c_asks_a_foreground_workload_to_stop() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let mut process = run_endless(&double, home.path(), &["--rm", "--name", "job"]);
    // As a terminal and a parent that passes it on do: still one press.
    interrupt(&process);
    interrupt(&process);
    assert_eq!(ended(&mut process), Some(143));
    let mut said = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("stopping job"), "{said}");
    let requests = double.requests();
    assert!(
        requests.contains(&"POST /instances/id-job/stop".to_owned()),
        "{requests:?}"
    );
    assert!(
        requests.contains(&"DELETE /instances/id-job".to_owned()),
        "{requests:?}"
    );
}

#[test]
fn a_second_ctrl_c_kills_what_does_not_stop() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let mut process = run_endless(&double, home.path(), &["--rm", "--name", "deaf"]);
    interrupt(&process);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !double.requests().iter().any(|r| r.ends_with("/stop")) {
        assert!(Instant::now() < deadline, "no stop was asked for");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Later than one press could be.
    std::thread::sleep(Duration::from_millis(400));
    interrupt(&process);
    assert_eq!(ended(&mut process), Some(130));
    let requests = double.requests();
    assert!(
        requests.contains(&"DELETE /instances/id-deaf".to_owned()),
        "{requests:?}"
    );
}

#[test]
fn a_closed_stdout_ends_quietly_as_sigpipe_would() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let mut listing = warren(home.path())
        .args(["--server", &double.url, "ps"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(listing.stdout.take());
    assert_eq!(ended(&mut listing), Some(141));
    let mut said = String::new();
    listing
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "");
}

#[test]
fn exec_carries_input_output_and_the_exit_code() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let mut process = warren(home.path())
        .args(["--server", &double.url, "exec", "-i", "web", "cat", "-n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"hello \xff\n").unwrap();
    drop(stdin);
    let answer = process.wait_with_output().unwrap();
    assert_eq!(answer.status.code(), Some(5));
    assert_eq!(answer.stdout, b"HELLO \xff\n");
    assert_eq!(err(&answer), "ready\n");
    let missing = ask(&double, &["exec", "web", "absent"]);
    assert_eq!(missing.status.code(), Some(127));
    let nowhere = ask(&double, &["exec", "nobody", "true"]);
    assert_eq!(nowhere.status.code(), Some(125));
    assert!(err(&nowhere).contains("nobody"), "{}", err(&nowhere));
}

#[test]
fn exec_without_a_terminal_passes_ctrl_c_on() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let mut process = warren(home.path())
        .args(["--server", &double.url, "exec", "-i", "web", "sleep", "9"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    process
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    interrupt(&process);
    assert_eq!(ended(&mut process), Some(130));
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let double = Double::start(None);
    for words in [
        &["run", "-it", "busybox"][..],
        &["exec", "-it", "web", "sh"],
    ] {
        let answer = ask(&double, words);
        assert_eq!(answer.status.code(), Some(125), "{words:?}");
        assert!(err(&answer).contains("not a terminal"), "{}", err(&answer));
    }
    assert!(
        double.requests().is_empty(),
        "nothing is asked of the server then"
    );
}

#[test]
fn rm_refuses_what_runs_goes_on_and_reports_all_failures() {
    let double = Double::start(None);
    let answer = ask(&double, &["rm", "web", "off", "nobody"]);
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(out(&answer), "off\n");
    let said = err(&answer);
    assert!(
        said.contains("web is Running") && said.contains("warren rm -f web"),
        "{said}"
    );
    assert!(
        said.contains("no instance nobody") && said.contains("2 of 3 failed"),
        "{said}"
    );
    let prefix = ask(&double, &["rm", "id-w"]);
    assert!(
        err(&prefix).contains("beginning of an id"),
        "{}",
        err(&prefix)
    );
    let deletes = |double: &Double| {
        let requests = double.requests();
        requests.iter().filter(|r| r.starts_with("DELETE")).count()
    };
    assert_eq!(deletes(&double), 1);
    let forced = ask(&double, &["rm", "-f", "web"]);
    assert_eq!(
        (forced.status.code(), out(&forced).as_str()),
        (Some(0), "web\n")
    );
    assert_eq!(deletes(&double), 2);
}

#[test]
fn logs_keep_the_streams_apart() {
    let double = Double::start(None);
    let answer = ask(&double, &["logs", "--tail", "5", "web"]);
    assert_eq!(
        (out(&answer).as_str(), err(&answer).as_str()),
        ("out\n", "err\n")
    );
    let stamped = ask(&double, &["logs", "--timestamps", "web"]);
    assert_eq!(out(&stamped), "2026-01-01T00:00:00Z out\n");
    let lines = out(&ask(&double, &["logs", "-o", "json", "web"]));
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["text"], "out");
}

#[test]
fn logs_are_asked_for_by_time() {
    let double = Double::start(None);
    let until = "2026-01-31T12:00:00.5+01:00";
    ask(
        &double,
        &["logs", "--since", "10m", "--until", until, "web"],
    );
    let requests = double.requests();
    let asked = requests.last().unwrap();
    assert!(
        asked.contains("until=2026-01-31T12%3A00%3A00.5%2B01%3A00"),
        "{asked}"
    );
    let (_, since) = asked.split_once("since=").unwrap();
    let since = since.split('&').next().unwrap().replace("%3A", ":");
    let since = OffsetDateTime::parse(&since, &Rfc3339).unwrap();
    let ago = OffsetDateTime::now_utc() - since;
    assert!((600..700).contains(&ago.whole_seconds()), "{ago}");
    let wrong = ask(&double, &["logs", "--since", "10", "web"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(err(&wrong).contains("how long ago"), "{}", err(&wrong));
}

#[test]
fn wait_prints_exit_codes() {
    let double = Double::start(None);
    let answer = ask(&double, &["wait", "web", "off"]);
    assert_eq!(
        (answer.status.code(), out(&answer).as_str()),
        (Some(0), "7\n7\n")
    );
}

#[test]
fn pull_prints_the_name_and_a_layout_is_loaded_as_an_archive() {
    let double = Double::start(None);
    let pulled = ask(&double, &["pull", "--plain-http", "localhost:5000/web"]);
    assert_eq!(out(&pulled), "localhost:5000/web\n", "{}", err(&pulled));
    assert_eq!(double.bodies()[0]["plain_http"], true);
    assert_eq!(out(&ask(&double, &["-q", "pull", "web"])), "img-1\n");
    let layout = tempfile::tempdir().unwrap();
    let path = layout.path().to_str().unwrap();
    let refused = ask(&double, &["load", path, "--name", "app"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        err(&refused).contains("not an OCI layout"),
        "{}",
        err(&refused)
    );
    std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
    std::fs::write(layout.path().join("oci-layout"), "{}").unwrap();
    std::fs::write(layout.path().join("index.json"), "{}").unwrap();
    let loaded = ask(&double, &["load", path, "--name", "app"]);
    assert_eq!(out(&loaded), "app\n", "{}", err(&loaded));
}

//! What users do, in both network modes.

use crate::harness::{Mode, Server, eventually, free_port, http, missing, skip};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

macro_rules! in_both_modes {
    ($($scenario:ident),* $(,)?) => {
        mod bridge {
            $(#[test] fn $scenario() { super::in_mode(concat!("bridge::", stringify!($scenario)), super::Mode::Bridge, super::$scenario); })*
        }
        mod user {
            $(#[test] fn $scenario() { super::in_mode(concat!("user::", stringify!($scenario)), super::Mode::User, super::$scenario); })*
        }
    };
}

in_both_modes!(
    exit_codes_come_through,
    exec_runs_commands_in_a_running_instance,
    a_published_port_serves_the_page_to_localhost,
    udp_is_published_too,
    a_guest_cannot_reach_the_hosts_loopback,
    a_taken_port_is_refused_by_name,
    logs_are_kept_followed_and_end,
    restart_policy_brings_a_failed_workload_back,
    stop_start_and_remove_leave_nothing,
    the_seed_example_works_as_printed,
);

pub(crate) fn in_mode(name: &str, mode: Mode, scenario: fn(&Server)) {
    if let Some(reason) = missing(mode) {
        return skip(name, &reason);
    }
    let mut server = Server::start(mode);
    scenario(&server);
    let left = server.run(&["ps", "-a", "-o", "name"]);
    for instance in String::from_utf8_lossy(&left.stdout).lines() {
        server.ok(&["rm", "-f", instance]);
    }
    eventually("nothing is left", 2, || {
        server.leftovers().is_empty().then_some(())
    });
    assert!(server.terminate().success());
    server.ok(&["system", "clean"]);
    assert_eq!(server.network_leftovers(), Vec::<String>::new());
}

fn exit_codes_come_through(server: &Server) {
    let output = server.run(&[
        "run",
        "--rm",
        "busybox-web",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        output.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"));
    let missing = server.run(&["run", "--rm", "busybox-web", "no-such-program"]);
    assert_eq!(
        missing.status.code(),
        Some(127),
        "{}",
        String::from_utf8_lossy(&missing.stderr)
    );
    eventually("--rm removed both", 20, || {
        server
            .ok(&["ps", "-a", "-q"])
            .trim()
            .is_empty()
            .then_some(())
    });
}

fn exec_runs_commands_in_a_running_instance(server: &Server) {
    server.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "COLOUR=blue",
        "busybox-web",
        "sleep",
        "1000",
    ]);
    assert_eq!(
        server.ok(&["exec", "box", "sh", "-c", "echo $COLOUR; hostname"]),
        "blue\nbox\n"
    );
    assert_eq!(
        server
            .run(&["exec", "box", "sh", "-c", "exit 3"])
            .status
            .code(),
        Some(3)
    );
    assert_eq!(
        server
            .run(&["exec", "box", "nothing-of-that-name"])
            .status
            .code(),
        Some(127)
    );
    let mut cat = server.cli(&["exec", "-i", "box", "cat"]);
    let mut cat = cat
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let data: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let mut stdin = cat.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    cat.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(cat.wait().unwrap().success());
    assert!(
        back == data,
        "{} of {} bytes came back",
        back.len(),
        data.len()
    );
    what_it_does_is_seen(server);
    let stopped = server.run(&["exec", "nobody", "true"]);
    assert!(!stopped.status.success());
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("nobody"));
}

/// Two rounds of `warren top`, between which the guest of `box` writes.
fn what_it_does_is_seen(server: &Server) {
    const WRITE: &str = "while :; do head -c 1048576 /dev/zero > /written; sync; sleep 0.1; done";
    let mut writing = server.cli(&["exec", "box", "sh", "-c", WRITE]);
    let mut writing = writing.spawn().unwrap();
    let seen = eventually("its writing is seen", 30, || {
        let text = server.ok(&["top", "--rounds", "1", "-o", "json", "box"]);
        let round: serde_json::Value = serde_json::from_str(&text).unwrap();
        let one = round["instances"][0].clone();
        let written = one["disk_written_bytes_per_second"].as_f64();
        (written.unwrap_or(0.0) > 1e5).then_some(one)
    });
    writing.kill().unwrap();
    writing.wait().unwrap();
    let known = |name: &str| seen[name].as_f64().unwrap();
    assert!(known("cpu_percent") > 0.0, "{seen}");
    assert!(known("guest_cpu_percent") >= 0.0, "{seen}");
    // The guest has some of the memory, and its machine takes more than that.
    let (inside, outside) = (known("guest_memory_used_bytes"), known("memory_rss_bytes"));
    assert!(0.0 < inside && inside < outside, "{seen}");
    assert!(seen["guest"]["tasks"].as_u64().unwrap() > 1, "{seen}");
}

pub(crate) fn page(port: u16) -> Option<String> {
    let answer = http(SocketAddr::from(([127, 0, 0, 1], port)), "GET", "/", None)?;
    (answer.status == 200).then_some(answer.body)
}

fn assert_page(port: u16) {
    let body = eventually("the page", 30, || page(port));
    assert!(body.contains("Hello from a microVM"), "{body}");
}

/// The command for an instance that serves the page on this port of the host.
fn web(name: &str, port: u16) -> [String; 7] {
    let port = format!("{port}:80");
    ["run", "-d", "--name", name, "-p", &port, "busybox-web"].map(str::to_owned)
}

fn a_published_port_serves_the_page_to_localhost(server: &Server) {
    let port = free_port();
    server.ok(&web("web", port));
    assert_page(port);
    let six = TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, port));
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        assert!(six.is_ok(), "[::1]:{port} is not served: {six:?}");
    }
    server.ok(&["rm", "-f", "web"]);
    assert!(
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        "the port is still held"
    );
}

/// A root-file-system tarball with nothing but one static program: no shell, no libc, no /etc.
fn udp_is_published_too(server: &Server) {
    let tarball = crate::harness::echo_tarball()
        .to_string_lossy()
        .into_owned();
    server.ok(&["load", &tarball, "--name", "echo"]);
    let port = free_port();
    server.ok(&[
        "run",
        "-d",
        "--name",
        "echo",
        "-p",
        &format!("{port}:7777/udp"),
        "echo",
        "/echo",
    ]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    eventually("an echo", 30, || {
        socket.send_to(b"ping", ("127.0.0.1", port)).ok()?;
        let mut buffer = [0; 16];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        (&buffer[..length] == b"ping").then_some(())
    });
}

fn a_guest_cannot_reach_the_hosts_loopback(server: &Server) {
    let secret = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = secret.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in secret.incoming().flatten() {
            let _ = (&stream).write_all(b"CANARY\n");
        }
    });
    server.ok(&["run", "-d", "--name", "spy", "busybox-web", "sleep", "1000"]);
    let route = server.ok(&[
        "exec",
        "spy",
        "sh",
        "-c",
        "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'",
    ]);
    let gateway = route.trim().to_owned();
    assert!(!gateway.is_empty(), "the guest has no default route");
    for target in [gateway.as_str(), "127.0.0.1", "10.0.2.2", "169.254.1.1"] {
        let tried = server.ok(&[
            "exec",
            "spy",
            "sh",
            "-c",
            &format!("nc -w 3 {target} {port} </dev/null; true"),
        ]);
        assert!(
            !tried.contains("CANARY"),
            "{target} led to the host's loopback"
        );
        let api = server.ok(&[
            "exec",
            "spy",
            "sh",
            "-c",
            &format!(
                "printf 'GET /health HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {target} {}; true",
                server.port
            ),
        ]);
        assert!(!api.contains("HTTP/"), "{target} led to the server's API");
    }
}

fn a_taken_port_is_refused_by_name(server: &Server) {
    let holder = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let refused = server.run(&web("late", port));
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains(&port.to_string()), "{words}");
    assert!(
        server.ok(&["ps", "-a", "-q"]).trim().is_empty(),
        "a refused create left something"
    );
    drop(holder);
    server.ok(&web("late", port));
    let twice = server.run(&web("later", port));
    assert!(String::from_utf8_lossy(&twice.stderr).contains(&port.to_string()));
}

fn logs_are_kept_followed_and_end(server: &Server) {
    server.ok(&[
        "run",
        "-d",
        "--name",
        "talk",
        "busybox-web",
        "sh",
        "-c",
        "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done",
    ]);
    // Follows to the end of the workload, and ends.
    let followed = server.ok(&["logs", "-f", "talk"]);
    assert_eq!(followed, "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert_eq!(
        server.ok(&["logs", "--tail", "2", "talk"]),
        "line 4\nline 5\n"
    );
    // By the time that the guest read them at: its clock is the host's.
    let lines = server.ok(&["logs", "-o", "json", "talk"]);
    let third: serde_json::Value = serde_json::from_str(lines.lines().nth(2).unwrap()).unwrap();
    let third = third["at"].as_str().unwrap();
    for (period, expected) in [
        (["--since", third], "line 3\nline 4\nline 5\n"),
        (["--until", third], "line 1\nline 2\n"),
        (["--since", "10m"], followed.as_str()),
        (["--until", "10m"], ""),
    ] {
        let shown = server.ok(&[&["logs"][..], &period, &["talk"]].concat());
        assert_eq!(shown, expected, "{period:?}");
    }
    assert_eq!(server.ok(&["wait", "talk"]).trim(), "0");
    let console = server.ok(&["logs", "--source", "console", "talk"]);
    assert!(
        !console.contains("line 3"),
        "the workload's output went to the console"
    );
}

fn restart_policy_brings_a_failed_workload_back(server: &Server) {
    let body = json!({
        "id": "flaky", "name": "flaky", "image": "busybox-web", "memory_mb": 128,
        "cmd": ["sh", "-c", "echo run; exit 1"],
        "restart_policy": {"policy": "on_failure", "backoff": "100ms", "max_attempts": 2},
    });
    let (status, answer) = server.api("POST", "/instances", Some(body));
    assert_eq!(status, 201, "{answer}");
    eventually("three runs", 60, || {
        (server.ok(&["logs", "flaky"]).matches("run").count() == 3).then_some(())
    });
    let (_, instance) = eventually("it rests", 30, || {
        let answer = server.api("GET", "/instances/flaky", None);
        (answer.1["state"] == "Stopped").then_some(answer)
    });
    assert_eq!(instance["exit_code"], 1, "{instance}");
}

fn stop_start_and_remove_leave_nothing(server: &Server) {
    server.ok(&[
        "run",
        "-d",
        "--name",
        "keep",
        "busybox-web",
        "sleep",
        "1000",
    ]);
    server.ok(&["exec", "keep", "sh", "-c", "echo kept > /root/file"]);
    server.ok(&["stop", "keep"]);
    let (_, stopped) = server.api("GET", "/instances/keep", None);
    assert_eq!(stopped["state"], "Stopped", "{stopped}");
    // The kernel takes a device's name away some milliseconds after it has confirmed the removal.
    eventually("nothing but the directory is left", 2, || {
        let mut left = server.leftovers().into_iter();
        left.all(|left| left.starts_with("directory")).then_some(())
    });
    server.ok(&["start", "keep"]);
    assert_eq!(server.ok(&["exec", "keep", "cat", "/root/file"]), "kept\n");
    let refused = server.run(&["rm", "keep"]);
    assert!(
        !refused.status.success(),
        "rm of a running instance needs -f"
    );
    server.ok(&["rm", "-f", "keep"]);
    eventually("nothing is left", 2, || {
        server.leftovers().is_empty().then_some(())
    });
    let (status, problem) = server.api("GET", "/instances/keep", None);
    assert_eq!(status, 404, "{problem}");
}

/// Seed 003's curl example, its image id existing.
fn the_seed_example_works_as_printed(server: &Server) {
    let layout = crate::harness::busybox_layout()
        .to_string_lossy()
        .into_owned();
    server.ok(&["load", &layout, "--name", "img-nginx"]);
    let body = json!({
        "id": "my-instance", "name": "My Workload", "image": "img-nginx",
        "memory_mb": 2048, "memory_max_mb": 4096, "vcpus": 2, "env": {"NODE_ENV": "production"},
    });
    let (status, answer) = server.api("POST", "/instances", Some(body));
    assert_eq!(status, 201, "{answer}");
    assert_eq!(answer["id"], "my-instance");
    assert_eq!(answer["state"], "Running", "{answer}");
    assert_eq!(answer["memory_mb"], 2048);
    assert_eq!(answer["env"]["NODE_ENV"], "production");
    let (status, health) = server.api("GET", "/health", None);
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    let (status, _) = server.api("DELETE", "/instances/my-instance", None);
    assert_eq!(status, 204);
}

#[test]
fn guests_of_a_bridge_find_each_other_by_name() {
    in_mode(
        "guests_of_a_bridge_find_each_other_by_name",
        Mode::Bridge,
        |server| {
            server.ok(&["run", "-d", "--name", "web", "busybox-web"]);
            server.ok(&[
                "run",
                "-d",
                "--name",
                "client",
                "busybox-web",
                "sleep",
                "1000",
            ]);
            let body = server.ok(&[
                "exec",
                "client",
                "sh",
                "-c",
                "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 web 80",
            ]);
            assert!(body.contains("Hello from a microVM"), "{body}");
        },
    );
}

#[test]
fn a_guest_reaches_a_published_port_by_the_hosts_address() {
    in_mode(
        "a_guest_reaches_a_published_port_by_the_hosts_address",
        Mode::Bridge,
        |server| {
            let port = free_port();
            server.ok(&web("web", port));
            server.ok(&[
                "run",
                "-d",
                "--name",
                "client",
                "busybox-web",
                "sleep",
                "1000",
            ]);
            let ask = format!(
                "gw=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'); printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $gw {port}"
            );
            let body = server.ok(&["exec", "client", "sh", "-c", &ask]);
            assert!(body.contains("Hello from a microVM"), "{body}");
        },
    );
}

#[test]
fn the_distributions_kernel_runs_instances_too() {
    const NAME: &str = "the_distributions_kernel_runs_instances_too";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let cache = std::env::var_os("WARREN_CACHE_DIR").map_or_else(
        || std::path::PathBuf::from("/var/cache/warren"),
        std::path::PathBuf::from,
    );
    let kernels = std::fs::read_dir(cache.join("kernels"));
    let distro = kernels.into_iter().flatten().flatten().find(|entry| {
        entry.file_name().to_string_lossy().starts_with("distro-")
            && entry.path().join("vmlinux").exists()
    });
    let Some(distro) = distro else {
        return skip(
            NAME,
            "the distribution's kernel is not in the cache: ./dev kernel --distro",
        );
    };
    let only = tempfile::tempdir().unwrap();
    std::fs::create_dir(only.path().join("kernels")).unwrap();
    std::os::unix::fs::symlink(
        distro.path(),
        only.path().join("kernels").join(distro.file_name()),
    )
    .unwrap();
    let cache = only.path().to_string_lossy().into_owned();
    let server = Server::start_in(Mode::Bridge, &[("WARREN_CACHE_DIR", &cache)]);
    let release = server.ok(&["run", "--rm", "busybox-web", "uname", "-r"]);
    assert!(
        distro
            .file_name()
            .to_string_lossy()
            .contains(release.trim()),
        "{release}"
    );
    let port = free_port();
    server.ok(&web("web", port));
    assert_page(port);
}

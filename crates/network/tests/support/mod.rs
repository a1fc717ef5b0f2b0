//! A host of its own for each test: private network, mount and pid namespaces that vanish with it, so that tests
//! run side by side, change nothing on the machine and leave nothing, even when they are killed.

#![allow(
    clippy::allow_attributes,
    reason = "shared by test programs that use it in part"
)]
#![allow(dead_code, reason = "each test program uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a panic is the failure")]

#[path = "../../../../tests/skip.rs"]
mod skip;

pub(crate) use skip::skip;

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

const INSIDE: &str = "WARREN_TEST_INSIDE";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/net.py");

fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for network namespaces".into());
    }
    if std::fs::File::open("/dev/net/tun").is_err() {
        return Some("/dev/net/tun cannot be opened".into());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    programs
        .iter()
        .find(|program| {
            !path
                .split(':')
                .any(|dir| std::path::Path::new(dir).join(program).exists())
        })
        .map(|program| format!("{program} is not installed"))
}

/// Runs `body` in a host of its own: lo up, `wan0` 203.0.113.1/24 and 2001:db8::1/64 towards the namespace
/// `outside` (.2), which is the default route.
pub(crate) fn in_private_host<F: Future<Output = ()>>(
    test: &str,
    programs: &[&str],
    body: impl FnOnce() -> F,
) {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        prepare();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let deadline = std::time::Duration::from_secs(120);
        runtime
            .block_on(async { tokio::time::timeout(deadline, body()).await })
            .expect("the test hangs");
        return;
    }
    let needed: Vec<&str> = ["unshare", "ip", "nft", "python3"]
        .iter()
        .chain(programs)
        .copied()
        .collect();
    if let Some(reason) = missing(&needed) {
        return skip(test, &reason);
    }
    // /run is private too: `ip netns` keeps its names there.
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/netns && exec \"$0\" \"$@\"";
    let status = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            script,
        ])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
}

fn prepare() {
    for line in [
        "ip link set lo up",
        "ip netns add outside",
        "ip link add wan0 type veth peer name wan0 netns outside",
        "ip address add 203.0.113.1/24 dev wan0",
        "ip address add 2001:db8::1/64 dev wan0 nodad",
        "ip link set wan0 up",
        "ip -n outside link set lo up",
        "ip -n outside address add 203.0.113.2/24 dev wan0",
        "ip -n outside address add 2001:db8::2/64 dev wan0 nodad",
        "ip -n outside link set wan0 up",
        "ip route add default via 203.0.113.2",
    ] {
        run(line);
    }
}

/// Runs a command line, split at spaces, and gives its output.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn python(namespace: Option<&str>, arguments: &[&str]) -> Command {
    let mut command = match namespace {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, "python3"]);
            command
        }
        None => Command::new("python3"),
    };
    command.arg(SCRIPT).args(arguments);
    command
}

/// Starts one of the script's servers and waits until it is ready. It ends with the value.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> Process {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    Process(child)
}

/// A server that answers `text` and the peer's address, by TCP and UDP.
pub(crate) fn serve(namespace: Option<&str>, address: &str, port: u16, text: &str) -> Process {
    start(python(
        namespace,
        &["serve", address, &port.to_string(), text],
    ))
}

/// A name server that says 198.51.100.9 to everything.
pub(crate) fn upstream(namespace: &str, address: &str) -> Process {
    start(python(Some(namespace), &["upstream", address]))
}

/// A guest: a namespace whose eth0 is joined to the TAP.
pub(crate) fn guest_on_tap(namespace: &str, tap: OwnedFd, address: &str, gateway: &str) -> Process {
    run(&format!("ip netns add {namespace}"));
    // Inherited by number: the descriptor must survive exec and must not be non-blocking for nobody's sake.
    rustix::io::fcntl_setfd(&tap, rustix::io::FdFlags::empty()).unwrap();
    let process = start(python(
        Some(namespace),
        &["cable_tap", &tap.as_raw_fd().to_string()],
    ));
    drop(tap);
    configure(namespace, address, gateway);
    process
}

/// A guest: a namespace whose eth0 is joined to a stream socket, as QEMU's would be.
pub(crate) fn guest_on_stream(
    namespace: &str,
    socket: &std::path::Path,
    mac: &str,
    address: &str,
    gateway: &str,
) -> Process {
    run(&format!("ip netns add {namespace}"));
    let process = start(python(
        Some(namespace),
        &["cable_stream", socket.to_str().unwrap()],
    ));
    run(&format!("ip -n {namespace} link set eth0 address {mac}"));
    configure(namespace, address, gateway);
    process
}

fn configure(namespace: &str, address: &str, gateway: &str) {
    run(&format!("ip -n {namespace} link set lo up"));
    run(&format!("ip -n {namespace} address add {address} dev eth0"));
    run(&format!("ip -n {namespace} link set eth0 up"));
    run(&format!(
        "ip -n {namespace} route add default via {gateway}"
    ));
}

/// Runs one of the script's clients and gives what it prints.
pub(crate) async fn client(namespace: Option<&str>, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::from(python(namespace, arguments));
    let output = command.output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Asks a server for its text.
pub(crate) async fn ask(namespace: Option<&str>, kind: &str, address: &str, port: u16) -> String {
    client(namespace, &["ask", kind, address, &port.to_string()]).await
}

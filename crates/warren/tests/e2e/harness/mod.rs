//! A server of one's own for each test, on a data directory, bridge, subnet and port of its own, driven
//! by the same binary's CLI; and images made on the spot. Everything started here ends with the test, by
//! pid, also when the test panics.

mod calls;
mod http;
mod image;
mod leftovers;
mod server;

pub(crate) use crate::skip::skip;
pub(crate) use http::http;
pub(crate) use image::{busybox_layout, echo_tarball};
pub(crate) use server::{Build, Server};

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How guests are connected in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As root, with a bridge.
    Bridge,
    /// As an unprivileged user, with a user-mode stack.
    User,
}

pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the checkout exists")
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).any(|file| file.is_file())
}

/// Why a test in this mode cannot run here, if it cannot.
pub(crate) fn missing(mode: Mode) -> Option<String> {
    if !on_path("qemu-system-x86_64") {
        return Some("qemu-system-x86_64 is not installed".to_owned());
    }
    if !is_root() {
        return Some(
            "these tests start as root, which makes bridges and unprivileged users alike"
                .to_owned(),
        );
    }
    match mode {
        Mode::Bridge if !on_path("nft") => Some("nft is not installed".to_owned()),
        Mode::User if !on_path("passt") => Some("passt is not installed".to_owned()),
        Mode::Bridge | Mode::User => None,
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Repeats until it gives something, or panics with `what` after the deadline.
pub(crate) fn eventually<T>(what: &str, seconds: u64, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut pause = Duration::from_millis(3);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

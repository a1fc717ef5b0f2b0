//! Hostile images given to a running server, loaded and pulled: the answer is a problem with a stable code, nothing is
//! left, nothing outside is touched, and the server needs little memory. The images are the library's list of them.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod damage;
#[path = "../../../image/tests/support/hostile.rs"]
mod list;
mod registry;
mod server;

use list::{Ends, for_each_hostile, hostile, oci_archive};
use registry::Registry;
use server::Server;

/// A conversion's bound, and what a server has besides.
const MEMORY: u64 = 256 << 20;

fn run(name: &str) {
    let image = hostile(name);
    let server = Server::start();
    let registry = Registry::serve(&image.layers);
    let reference = format!("{}/hostile:1", registry.host());
    let attempts = [
        server.load("localhost/hostile:1", &oci_archive(&image.layers)),
        server.pull(&reference),
    ];
    for (way, answer) in ["load", "pull"].into_iter().zip(attempts) {
        match (image.ends, answer) {
            (Ends::Refused(code, words), Err(problem)) => {
                assert_eq!(problem.code, code, "{way}: {problem:?}");
                assert!(problem.detail.contains(words), "{way}: {problem:?}");
            }
            (Ends::Harmless(names), Ok(())) => {
                for disk in server.disks() {
                    assert_eq!(server::names_in(&disk), names, "{way}");
                }
            }
            (expected, answer) => panic!("{way}: {answer:?} instead of {expected:?}"),
        }
    }
    match image.ends {
        Ends::Refused(..) => {
            assert_eq!(server.images(), 0);
            assert_eq!(server.disks(), Vec::<std::path::PathBuf>::new());
            assert_eq!(server.half_made(), Vec::<std::path::PathBuf>::new());
        }
        Ends::Harmless(_) => assert_eq!(server.images(), 2),
    }
    assert!(!std::path::Path::new("/tmp/warren-escape").exists());
    let peak = server.peak_memory();
    assert!(peak < MEMORY, "the server had {} MiB", peak >> 20);
}

macro_rules! each {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*
    };
}
for_each_hostile!(each);

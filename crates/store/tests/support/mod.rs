//! Writes in short, and copies of the test binary in a role of their own: to be killed, or on a small disk.

#[path = "../../../../tests/skip.rs"]
mod skip;

pub(crate) use skip::skip;

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::process::Command;
use warren_core::ports::store::{Commit, Store, Transaction, Write};
use warren_store::SqliteStore;

/// Tells a copy of this test binary what to be, and where.
const ROLE: &str = "WARREN_STORE_TEST_ROLE";
const STORE: &str = "WARREN_STORE_TEST_PATH";
/// The role of a copy that `on_a_small_disk` runs.
pub(crate) const SMALL_DISK: &str = "small disk";

pub(crate) fn puts(pairs: &[(&str, &str)]) -> Transaction {
    Transaction {
        guards: vec![],
        writes: pairs
            .iter()
            .map(|(key, value)| {
                Write::Put((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()))
            })
            .collect(),
    }
}

/// The revision that it was written in.
pub(crate) async fn put(store: &SqliteStore, key: &str, value: &str) -> u64 {
    match store.commit(puts(&[(key, value)])).await.unwrap() {
        Commit::Done(revision) => revision,
        Commit::Refused { guard } => panic!("{guard}"),
    }
}

/// This binary again, as `test` alone, in the given role.
pub(crate) fn again(test: &str, role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(STORE, path);
    command
}

/// What this copy of the binary is to be, and the store's path; `None` where it is none.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(STORE)?.into()))
}

/// Runs `test` as [`SMALL_DISK`], its store on a tmpfs of this size (as mount's `size=` has it), until it ends well
/// and has said `done`; `name`, the test that this is, is skipped where nobody may mount.
pub(crate) fn on_a_small_disk(name: &str, size: &str, test: &str, done: &str) {
    let directory = tempfile::tempdir().unwrap();
    // A mount namespace of its own: the mount goes when the child does.
    let isolate = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", command])
            .env("SMALL", directory.path());
        unshare
    };
    let mount = format!("mount -t tmpfs -o size={size} none \"$SMALL\"");
    if !isolate(&mount)
        .status()
        .is_ok_and(|status| status.success())
    {
        return skip(name, "nobody may mount a small file system here");
    }
    let output = isolate(&format!(
        "{mount} && exec \"$TEST\" --exact {test} --nocapture"
    ))
    .env("TEST", std::env::current_exe().unwrap())
    .env(ROLE, SMALL_DISK)
    .env(STORE, directory.path().join("store"))
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains(done),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

//! Writable disks: clean, sparse, of their size, and cloned from ready-made ones.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use support::small::Small;
use support::{have, run};
use warren_core::ports::{Presence, Volumes as _};
use warren_core::units::ByteSize;
use warren_image::WritableDisks;

#[tokio::test]
async fn writable_disks_are_clean_sparse_and_of_their_size() {
    let test = "writable_disks_are_clean_sparse_and_of_their_size";
    if !Path::new("/sbin/mkfs.ext4").is_file() {
        support::skip(test, "mkfs.ext4 is not installed");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let disks = WritableDisks::open(work.path()).unwrap();
    let size = ByteSize::gib(2);
    let path = work.path().join("disk.img");
    assert_eq!(disks.observe(&path).await.unwrap(), Presence::Absent);
    disks.ensure_empty(&path, size).await.unwrap();
    assert_eq!(disks.observe(&path).await.unwrap(), Presence::Present);
    assert_eq!(path.metadata().unwrap().len(), size.0);
    assert!(disks.usage(&path).await.unwrap() < ByteSize::mib(16));
    run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&path));
    // An existing disk stays as it is, whatever size is asked for.
    std::fs::write(&path, b"the user's").unwrap();
    disks.ensure_empty(&path, ByteSize::gib(1)).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"the user's");
    let refused = disks
        .ensure_empty(&work.path().join("tiny"), ByteSize(4096))
        .await
        .unwrap_err();
    assert_eq!(refused.code, "disk_size_invalid");
    disks.remove(&path).await.unwrap();
    disks.remove(&path).await.unwrap();
    assert_eq!(disks.observe(&path).await.unwrap(), Presence::Absent);
}

#[tokio::test]
async fn where_the_file_system_can_a_clone_shares_its_blocks() {
    let test = "where_the_file_system_can_a_clone_shares_its_blocks";
    if !have(test, &["mkfs.xfs"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let Some(small) = Small::xfs(test, work.path().join("small")) else {
        return;
    };
    let disks = WritableDisks::open(&small.at).unwrap();
    let ensure = async |name: &str| {
        let path = small.at.join(name);
        disks.ensure_empty(&path, ByteSize::gib(1)).await.unwrap();
        path
    };
    let first = ensure("first").await;
    let own = disks.usage(&first).await.unwrap();
    assert!(own > ByteSize(100_000), "{own}");
    let before = small.used();
    for n in 0..4 {
        ensure(&n.to_string()).await;
    }
    // As much as the metadata of four files.
    assert!(
        small.used() - before < own.0,
        "{} bytes",
        small.used() - before
    );
    assert!(disks.ready_made().await.unwrap() >= own);
    run(Command::new("/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(small.at.join("2")));
    // Written to, it is its own.
    let at = |path: &Path| {
        let mut three = [0; 3];
        let file = std::fs::File::open(path).unwrap();
        file.read_exact_at(&mut three, 4096).unwrap();
        three
    };
    let last = small.at.join("3");
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.write_all_at(b"own", 4096).unwrap();
    assert_ne!(at(&last), at(&first));
}

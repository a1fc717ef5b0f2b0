//! What only a store on a disk can get wrong: reopening, crashes, damage, schemas, locks, a full disk,
//! backups.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use bytes::Bytes;
use futures::StreamExt;
use rusqlite::Connection;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{SMALL_DISK, again, on_a_small_disk, put, puts, role};
use tempfile::TempDir;
use tokio::time::timeout;
use warren_core::ports::store::{Change, Commit, Guard, Store, Transaction};
use warren_core::{ErrorClass, InstallationId};
use warren_store::{OpenOptions, Origin, SCHEMA_VERSION, SqliteStore};

const DEADLINE: Duration = Duration::from_secs(60);

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    (directory, path)
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, OpenOptions::default())
        .await
        .unwrap()
}

/// Ends the child whatever becomes of the test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn what_was_done_is_there_after_reopening() {
    let (_directory, path) = place();
    let id: InstallationId = "abcd".parse().unwrap();
    let options = OpenOptions {
        installation: Some(id.clone()),
        ..OpenOptions::default()
    };
    let store = SqliteStore::open(&path, options.clone()).await.unwrap();
    assert_eq!(store.origin(), Origin::New);
    assert_eq!(store.installation(), Some(&id));
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    store.commit(puts(&[("b", "1")])).await.unwrap();
    store.set_meta("fact", "true").await.unwrap();
    store.close().await.unwrap();
    assert_eq!(store.get("a").await.unwrap_err().code, "store_closed");
    assert_eq!(
        store.commit(puts(&[])).await.unwrap_err().code,
        "store_closed"
    );

    let store = SqliteStore::open(&path, OpenOptions::default())
        .await
        .unwrap();
    assert_eq!(store.origin(), Origin::Existing);
    assert_eq!(store.installation(), Some(&id));
    assert_eq!(store.revision().await.unwrap(), 3);
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, 2);
    assert_eq!(store.meta("fact").await.unwrap().as_deref(), Some("true"));
    assert_eq!(store.meta("none").await.unwrap(), None);
    // History from before, then live.
    let mut watch = store.watch("", 2).await.unwrap();
    put(&store, "c", "1").await;
    for revision in 2..=4 {
        let change = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
        assert!(matches!(change, Change::Put(record) if record.revision == revision));
    }
    store.close().await.unwrap();
    assert_eq!(timeout(DEADLINE, watch.next()).await.unwrap(), None);

    // Another data directory's store keeps its own id, so that the difference can be seen.
    let other = OpenOptions {
        installation: Some("zzzz".parse().unwrap()),
        ..options
    };
    let store = SqliteStore::open(&path, other).await.unwrap();
    assert_eq!(store.installation(), Some(&id));
    for file in ["store", "store-wal", "store.lock"] {
        let mode = std::fs::metadata(path.with_file_name(file)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600, "{file}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_is_queued_when_closing_is_still_done() {
    let (_directory, path) = place();
    let store = Arc::new(open(&path).await);
    let commits: Vec<_> = (0..100)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(puts(&[(&format!("k{n}"), "v")])).await })
        })
        .collect();
    tokio::task::yield_now().await;
    store.close().await.unwrap();
    let mut acknowledged = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Ok(Commit::Done(_)) => acknowledged += 1,
            Ok(Commit::Refused { .. }) => panic!("there are no guards"),
            Err(error) => assert_eq!(error.code, "store_closed"),
        }
    }
    let store = open(&path).await;
    assert_eq!(store.revision().await.unwrap(), acknowledged);
}

/// Not a test of its own: the writers that `acknowledged_commits_survive_kill_9` kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_killed() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "writer");
    let store = Arc::new(open(&path).await);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0u64.. {
                    let (one, two) = (format!("w{writer}/{n}"), format!("pair/w{writer}/{n}"));
                    let value = "x".repeat(usize::try_from(n % 50).unwrap() * 40);
                    let transaction = puts(&[(&one, &value), (&two, &value)]);
                    let Commit::Done(revision) = store.commit(transaction).await.unwrap() else {
                        panic!("there are no guards");
                    };
                    // One write, so that the parent never sees half a line of another writer.
                    let line = format!("ack {revision} {one}\n");
                    std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

fn writing_child(path: &Path) -> (Reaped, BufReader<ChildStdout>) {
    let mut child = Reaped(
        again("child_that_writes_until_killed", "writer", path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = BufReader::new(child.0.stdout.take().unwrap());
    (child, lines)
}

#[tokio::test]
async fn acknowledged_commits_survive_kill_9() {
    let (_directory, path) = place();
    let mut acknowledged = Vec::new();
    for round in 1..=3usize {
        let before = acknowledged.len();
        let (mut child, mut lines) = writing_child(&path);
        let started = Instant::now();
        let mut line = String::new();
        while acknowledged.len() < before + 40 * round {
            assert!(started.elapsed() < DEADLINE, "the child writes nothing");
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the child ended");
            acknowledged.extend(parse_ack(&line, round));
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        // What was printed after the last look counts as well; a torn last line does not.
        for line in rest.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            acknowledged.extend(parse_ack(line, round));
        }

        let store = open(&path).await;
        assert!(store.damaged().await.unwrap().is_empty());
        for (written_in, revision, key) in &acknowledged {
            let record = store.get(key).await.unwrap();
            let record = record.unwrap_or_else(|| panic!("{key} of {revision} is lost"));
            // The next round writes the same keys again.
            if *written_in == round {
                assert_eq!(record.revision, *revision);
            }
            assert!(store.revision().await.unwrap() >= *revision);
        }
        // Acknowledged or not, no transaction is there by half.
        let page = store.list("w", None, usize::MAX).await.unwrap();
        let pairs = store.list("pair/", None, usize::MAX).await.unwrap();
        assert_eq!(page.records.len(), pairs.records.len());
        for (one, two) in page.records.iter().zip(&pairs.records) {
            assert_eq!(format!("pair/{}", one.key), two.key);
            assert_eq!((one.revision, &one.value), (two.revision, &two.value));
        }
        // History has no hole: two changes for every revision there ever was.
        let last = store.revision().await.unwrap();
        let mut watch = store.watch("", 1).await.unwrap();
        for revision in 1..=last {
            for _ in 0..2 {
                let change = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
                assert!(matches!(change, Change::Put(record) if record.revision == revision));
            }
        }
        store.close().await.unwrap();
    }
}

fn parse_ack(line: &str, round: usize) -> Option<(usize, u64, String)> {
    // The test harness prints without a newline before the first line.
    let (_, ack) = line.trim_end().split_once("ack ")?;
    let (revision, key) = ack.split_once(' ')?;
    Some((round, revision.parse().unwrap(), key.to_owned()))
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_the_store() {
    let (_directory, path) = place();
    // A sibling in the same process is refused as well.
    let store = open(&path).await;
    let error = SqliteStore::open(&path, OpenOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.class, error.code),
        (ErrorClass::Conflict, "store_locked")
    );
    let expected = format!("the store is in use by process {}", std::process::id());
    assert_eq!(error.message, expected);
    put(&store, "a", "1").await;
    store.close().await.unwrap();

    let (mut child, mut lines) = writing_child(&path);
    let mut line = String::new();
    while !line.contains("ack ") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the child ended");
    }
    let error = SqliteStore::open(&path, OpenOptions::default())
        .await
        .unwrap_err();
    assert!(
        error.message.contains(&format!("process {}", child.0.id())),
        "{error}"
    );
    // The kernel lets go of a dead holder's lock.
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    open(&path).await.close().await.unwrap();
}

#[tokio::test]
async fn newer_and_foreign_files_are_refused_and_left_alone() {
    let (_directory, path) = place();
    let store = open(&path).await;
    put(&store, "a", "1").await;
    store.close().await.unwrap();
    let newer = SCHEMA_VERSION + 1;
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", newer)
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path, OpenOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        error.sentence(),
        format!(
            "this store was written by a newer Warren (schema {newer}); this one knows \
             {SCHEMA_VERSION}: use the newer binary or restore a backup"
        )
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let foreign = path.with_file_name("foreign");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE records (mine TEXT); INSERT INTO records VALUES ('x');")
        .unwrap();
    let noise = path.with_file_name("noise");
    std::fs::write(&noise, "not a database at all, ".repeat(500)).unwrap();
    for (file, code) in [(foreign, "store_foreign"), (noise, "store_corrupt")] {
        let before = std::fs::read(&file).unwrap();
        let error = SqliteStore::open(&file, OpenOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.code, code);
        assert_eq!(std::fs::read(&file).unwrap(), before, "{code}");
    }
}

/// Flips one bit of the only place in `records` where the file holds `text`.
fn flip(path: &Path, text: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let mut places = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, window)| *window == text.as_bytes())
        .map(|(at, _)| at);
    let at = places.next().unwrap_or_else(|| panic!("{text} not found"));
    assert_eq!(places.next(), None, "{text} is there twice");
    bytes[at] ^= 0x04;
    std::fs::write(path, bytes).unwrap();
}

/// A closed store of `records` whose history does not hold them a second time.
async fn store_without_history(path: &Path, records: &[(String, String)]) {
    let options = OpenOptions {
        history: 0,
        ..OpenOptions::default()
    };
    let store = SqliteStore::open(path, options).await.unwrap();
    for chunk in records.chunks(100) {
        let pairs: Vec<_> = chunk.iter().map(|(k, v)| (&**k, &**v)).collect();
        store.commit(puts(&pairs)).await.unwrap();
    }
    store.close().await.unwrap();
    Connection::open(path)
        .unwrap()
        .execute_batch("VACUUM")
        .unwrap();
}

#[tokio::test]
async fn a_flipped_record_is_set_aside_and_named_and_the_rest_serve() {
    let (_directory, path) = place();
    let records: Vec<_> = (0..50)
        .map(|n| (format!("k/{n:02}"), format!("value of {n:02}")))
        .collect();
    store_without_history(&path, &records).await;
    flip(&path, "value of 17");
    flip(&path, "k/33");

    let store = open(&path).await;
    let damaged = store.damaged().await.unwrap();
    let named: Vec<&str> = damaged.iter().map(|damaged| damaged.key.as_str()).collect();
    // A bit of the key's first letter was flipped: it is named as far as it can be told.
    assert_eq!(named, ["k/17", "o/33"]);
    assert!(damaged[0].reason.contains("checksum"));
    for (n, (key, value)) in records.iter().enumerate() {
        let found = store.get(key).await.unwrap().map(|record| record.value);
        let expected = (n != 17 && n != 33).then(|| Bytes::from(value.clone()));
        assert_eq!(found, expected, "{key}");
    }
    assert_eq!(
        store.list("", None, 100).await.unwrap().records.len(),
        records.len() - 2
    );
    // The key is free again; what was set aside stays until somebody has dealt with it.
    let guards = vec![Guard::Absent("k/17".into())];
    let writes = puts(&[("k/17", "new")]).writes;
    let again = store.commit(Transaction { guards, writes }).await.unwrap();
    assert!(matches!(again, Commit::Done(_)));
    store.close().await.unwrap();

    let store = open(&path).await;
    assert_eq!(store.get("k/17").await.unwrap().unwrap().value, "new");
    assert_eq!(store.damaged().await.unwrap(), damaged);
    store.forget_damaged("k/17").await.unwrap();
    assert_eq!(store.damaged().await.unwrap(), damaged[1..]);
}

#[tokio::test]
async fn damage_found_while_serving_is_set_aside_too() {
    let (_directory, path) = place();
    let store = open(&path).await;
    store
        .commit(puts(&[("a", "1"), ("b", "1"), ("c", "1")]))
        .await
        .unwrap();
    let other = Connection::open(&path).unwrap();
    let damage = |key: &str| {
        let changed = other
            .execute("UPDATE records SET value = x'00' WHERE key = ?1", [key])
            .unwrap();
        assert_eq!(changed, 1);
    };
    damage("b");
    assert_eq!(store.get("b").await.unwrap(), None);
    damage("a");
    let page = store.list("", None, 10).await.unwrap();
    let keys: Vec<_> = page.records.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(keys, ["c"]);
    let named: Vec<_> = store.damaged().await.unwrap();
    let named: Vec<_> = named.iter().map(|d| d.key.as_str()).collect();
    assert_eq!(named, ["b", "a"]);
    put(&store, "b", "2").await;
    assert_eq!(store.get("b").await.unwrap().unwrap().revision, 2);
}

#[tokio::test]
async fn a_torn_page_costs_what_was_on_it_and_no_more() {
    const PAGE: usize = 4096;
    let (_directory, path) = place();
    let records: Vec<_> = (0..2000)
        .map(|n| (format!("k/{n:04}"), format!("value of {n:04}")))
        .collect();
    store_without_history(&path, &records).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let inside = bytes
        .windows(13)
        .position(|w| w == b"value of 1000")
        .unwrap();
    let page = inside / PAGE * PAGE;
    assert_eq!(bytes[page], 0x0a, "a leaf of an index tree");
    let lost: Vec<usize> = (0..records.len())
        .filter(|n| {
            bytes[page..page + PAGE]
                .windows(13)
                .any(|window| window == records[*n].1.as_bytes())
        })
        .collect();
    bytes[page..page + PAGE].fill(0xee);
    std::fs::write(&path, bytes).unwrap();

    let store = open(&path).await;
    let damaged = store.damaged().await.unwrap();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(damaged[0].reason.contains("could not be read"));
    assert!(!lost.is_empty() && lost.len() < 200);
    let found = store.list("", None, usize::MAX).await.unwrap();
    let expected: Vec<&str> = records
        .iter()
        .enumerate()
        .filter(|(n, _)| !lost.contains(n))
        .map(|(_, (key, _))| key.as_str())
        .collect();
    let keys: Vec<&str> = found.records.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(keys, expected);
    let revision = put(&store, &records[lost[0]].0, "again").await;
    assert_eq!(revision, 21);
    store.close().await.unwrap();
    let store = open(&path).await;
    assert_eq!(store.damaged().await.unwrap().len(), 1);
    assert_eq!(store.revision().await.unwrap(), 21);
}

#[tokio::test]
async fn damaged_history_sends_watchers_back_to_a_listing() {
    let (_directory, path) = place();
    let store = open(&path).await;
    for n in 0..5 {
        put(&store, "a", &n.to_string()).await;
    }
    store.close().await.unwrap();
    Connection::open(&path)
        .unwrap()
        .execute("UPDATE changes SET value = x'00' WHERE revision = 3", [])
        .unwrap();
    let store = open(&path).await;
    let mut watch = store.watch("", 2).await.unwrap();
    let change = timeout(DEADLINE, watch.next()).await.unwrap();
    assert_eq!(change, Some(Change::Compacted { oldest: 6 }));
    let mut watch = store.watch("", 4).await.unwrap();
    let change = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(change, Change::Put(record) if record.revision == 4));
}

#[tokio::test]
async fn a_slow_watcher_reads_from_the_file_what_memory_no_longer_holds() {
    let (_directory, path) = place();
    let store = open(&path).await;
    let mut watch = store.watch("k", 1).await.unwrap();
    let keys: Vec<String> = (0..1000).map(|n| format!("k{n:03}")).collect();
    let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "v")).collect();
    for _ in 0..6 {
        store.commit(puts(&pairs)).await.unwrap();
    }
    for revision in 1..=6 {
        for key in &keys {
            let change = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
            let Change::Put(record) = change else {
                panic!("{change:?}");
            };
            assert_eq!((record.revision, &record.key), (revision, key));
        }
    }
}

#[tokio::test]
async fn a_backup_taken_during_writes_is_one_moment_of_the_store() {
    let (_directory, path) = place();
    let store = Arc::new(open(&path).await);
    put(&store, "n", "0").await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..200 {
                let text = n.to_string();
                store
                    .commit(puts(&[("n", &text), (&format!("k{n}"), &text)]))
                    .await
                    .unwrap();
            }
        })
    };
    while store.revision().await.unwrap() < 50 {
        tokio::task::yield_now().await;
    }
    let copy = path.with_file_name("copy");
    let revision = store.backup_to(&copy).await.unwrap();
    let error = store.backup_to(&copy).await.unwrap_err();
    assert_eq!(error.code, "backup_exists");
    writer.await.unwrap();

    let restored = open(&copy).await;
    assert_eq!(restored.origin(), Origin::Backup { revision });
    assert_eq!(restored.revision().await.unwrap(), revision);
    let records = restored.list("", None, usize::MAX).await.unwrap().records;
    assert_eq!(records.len() as u64, revision);
    assert_eq!(restored.get("n").await.unwrap().unwrap().revision, revision);
    restored.accept().await.unwrap();
    restored.close().await.unwrap();
    let restored = open(&copy).await;
    assert_eq!(restored.origin(), Origin::Existing);
    restored.close().await.unwrap();
    let mut files: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("copy"))
        .collect();
    files.sort();
    assert_eq!(files, ["copy", "copy.lock", "copy.seen"]);
}

/// Not a test of its own: `a_full_disk_is_said_and_survived` runs it on a small file system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_on_a_small_disk() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, SMALL_DISK);
    let ballast = path.with_file_name("ballast");
    let store = Arc::new(open(&path).await);
    put(&store, "before", "kept").await;
    // All but a little of what is left.
    std::fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let value = "x".repeat(64 << 10);
    let mut acknowledged = 0;
    let error = loop {
        match store
            .commit(puts(&[(&format!("filler/{acknowledged}"), &value)]))
            .await
        {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk never fills");
    };
    assert_eq!(
        (error.class, error.code),
        (ErrorClass::NoSpace, "disk_full")
    );
    // Many at once: each hears of it, none by way of another's failure.
    let huge = "x".repeat(1 << 20);
    let commits: Vec<_> = (0..8)
        .map(|n| {
            let (store, huge) = (Arc::clone(&store), huge.clone());
            tokio::spawn(async move { store.commit(puts(&[(&format!("huge/{n}"), &huge)])).await })
        })
        .collect();
    for commit in commits {
        assert_eq!(commit.await.unwrap().unwrap_err().code, "disk_full");
    }
    // It still reads.
    assert_eq!(store.get("before").await.unwrap().unwrap().value, "kept");
    let page = store.list("", None, usize::MAX).await.unwrap();
    assert_eq!(page.records.len(), acknowledged + 1);
    assert_eq!(page.revision, acknowledged as u64 + 1);
    // And writes again, in the same process, once there is room.
    std::fs::remove_file(&ballast).unwrap();
    let revision = put(&store, "after", "1").await;
    assert_eq!(revision, acknowledged as u64 + 2);
    store.close().await.unwrap();
    let store = open(&path).await;
    assert!(store.damaged().await.unwrap().is_empty());
    assert_eq!(store.revision().await.unwrap(), revision);
    println!("survived a full disk");
}

#[test]
fn a_full_disk_is_said_and_survived() {
    on_a_small_disk(
        "a_full_disk_is_said_and_survived",
        "4m",
        "child_on_a_small_disk",
        "survived a full disk",
    );
}

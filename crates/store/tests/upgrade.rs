//! Stores of older schemas: what an upgrade does to them, whatever comes in between; and history that cannot be read,
//! which an upgrade meets as well.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use futures::StreamExt;
use rusqlite::Connection;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{SMALL_DISK, again, on_a_small_disk, put, role, skip};
use tempfile::TempDir;
use tokio::time::timeout;
use warren_core::ports::store::{Change, Store};
use warren_core::{ErrorClass, PortError};
use warren_store::{OpenOptions, Origin, SCHEMA_VERSION, SqliteStore, restore};

const DEADLINE: Duration = Duration::from_secs(60);

/// What the fixture of the first schema holds.
const KEYS: [&str; 3] = ["instance/web", "name/default/web", "slug/web"];

/// A store that a binary of the first schema has left.
fn first_schema() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-1.db");
    std::fs::copy(fixture, &path).unwrap();
    // The fixture is a backup, and this is none.
    let store = Connection::open(&path).unwrap();
    store
        .execute_batch(
            "DELETE FROM meta WHERE key = 'backup_of_revision'; PRAGMA journal_mode = WAL;",
        )
        .unwrap();
    (directory, path)
}

/// What schema 2 added is taken from a store that nobody has open.
fn back_to_first_schema(path: &Path) {
    Connection::open(path)
        .unwrap()
        .execute_batch("ALTER TABLE counters DROP COLUMN held; PRAGMA user_version = 1;")
        .unwrap();
}

fn version(path: &Path) -> u32 {
    Connection::open(path)
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

async fn try_open(path: &Path) -> Result<SqliteStore, PortError> {
    SqliteStore::open(path, OpenOptions::default()).await
}

async fn open_keeping(path: &Path, history: usize) -> SqliteStore {
    let options = OpenOptions {
        history,
        ..OpenOptions::default()
    };
    SqliteStore::open(path, options).await.unwrap()
}

async fn keys(store: &SqliteStore) -> Vec<String> {
    let page = store.list("", None, usize::MAX).await.unwrap();
    page.records.into_iter().map(|record| record.key).collect()
}

async fn first_of_watch(store: &SqliteStore, from: u64) -> Change {
    let mut watch = store.watch("", from).await.unwrap();
    timeout(DEADLINE, watch.next()).await.unwrap().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Not a test of its own: opens the store, and may be told to die meanwhile.
#[tokio::test]
async fn child_that_opens() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "opener");
    try_open(&path).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn killed_at_every_step_of_an_upgrade_there_is_the_old_store_or_the_new_one_and_the_next_opening_completes_it()
 {
    if !cfg!(debug_assertions) {
        return skip(
            "killed_at_every_step_of_an_upgrade_there_is_the_old_store_or_the_new_one_and_the_next_opening_completes_it",
            "a release build has no crash points",
        );
    }
    for (place, then) in [
        ("upgrade.copied", 1),
        ("upgrade.copy-named", 1),
        ("upgrade.written", 1),
        ("upgrade.durable", SCHEMA_VERSION),
    ] {
        let (directory, path) = first_schema();
        // Twice: the second time it finds what the first one left.
        for _ in 0..2 {
            let died = again("child_that_opens", "opener", &path)
                .env("WARREN_CRASH_AT", place)
                .output()
                .unwrap();
            let killed = died.status.signal() == Some(9);
            assert!(
                killed || version(&path) == SCHEMA_VERSION,
                "{place}: {died:?}"
            );
        }
        assert_eq!(version(&path), then, "{place}");
        let store = try_open(&path).await.unwrap();
        assert_eq!(store.origin(), Origin::Existing, "{place}");
        assert_eq!(keys(&store).await, KEYS, "{place}");
        assert_eq!(put(&store, "after", "1").await, 4, "{place}");
        store.close().await.unwrap();
        assert_eq!(version(&path), SCHEMA_VERSION, "{place}");
        assert_eq!(
            names(directory.path()),
            ["store", "store.lock", "store.schema-1", "store.seen"],
            "{place}"
        );
        assert_eq!(
            version(&path.with_file_name("store.schema-1")),
            1,
            "{place}"
        );
    }
}

#[tokio::test]
async fn as_it_was_before_an_upgrade_the_store_is_kept_and_can_be_restored_and_upgraded_again() {
    let (directory, path) = first_schema();
    let copy = path.with_file_name("store.schema-1");
    let store = try_open(&path).await.unwrap();
    put(&store, "later", "1").await;
    store.close().await.unwrap();
    assert_eq!((version(&path), version(&copy)), (SCHEMA_VERSION, 1));
    let mode = std::os::unix::fs::PermissionsExt::mode(&copy.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds secrets");

    // Nothing is left to do the next time, and no copy is made of it.
    std::fs::remove_file(&copy).unwrap();
    try_open(&path).await.unwrap().close().await.unwrap();
    assert!(!copy.exists());

    // A backup of the first schema is restored, and brought up to date by the opening after.
    let (_old_directory, old) = first_schema();
    let aside = directory.path().join("aside");
    std::fs::create_dir(&aside).unwrap();
    restore(&old, &path, &aside).unwrap();
    assert_eq!(version(&path), 1);
    for _ in 0..2 {
        let store = try_open(&path).await.unwrap();
        assert_eq!(store.origin(), Origin::Backup { revision: 3 });
        assert_eq!(keys(&store).await, KEYS);
        store.close().await.unwrap();
    }
    assert_eq!((version(&path), version(&copy)), (SCHEMA_VERSION, 1));
}

#[tokio::test]
async fn who_meets_a_newer_schema_is_told_of_the_copy_of_before_the_upgrade() {
    let (_directory, path) = first_schema();
    try_open(&path).await.unwrap().close().await.unwrap();
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    let refused = try_open(&path).await.unwrap_err();
    let copy = path.with_file_name("store.schema-1");
    let advice = format!("`warren system restore {}`", copy.display());
    assert_eq!(refused.code, "store_newer");
    assert!(
        refused.sentence().contains(&advice),
        "{}",
        refused.sentence()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_open_an_older_store_at_once_one_has_it_and_the_others_are_told_so() {
    let (_directory, path) = first_schema();
    let openers: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { try_open(&path).await })
        })
        .collect();
    let mut opened = Vec::new();
    for opener in openers {
        match opener.await.unwrap() {
            Ok(store) => opened.push(store),
            Err(error) => assert_eq!(error.code, "store_locked", "{error:?}"),
        }
    }
    assert_eq!(opened.len(), 1);
    assert_eq!(keys(&opened[0]).await, KEYS);
}

/// Not a test of its own: on a file system of its own.
#[tokio::test]
async fn child_that_meets_a_full_and_a_read_only_disk() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, SMALL_DISK);
    let directory = path.parent().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-1.db");
    std::fs::copy(fixture, &path).unwrap();
    let before = std::fs::read(&path).unwrap();

    let ballast = directory.join("ballast");
    std::fs::write(&ballast, "").unwrap();
    for filler in [64 << 10, 4 << 10, 1] {
        let mut file = std::fs::File::options()
            .append(true)
            .open(&ballast)
            .unwrap();
        while std::io::Write::write_all(&mut file, &vec![0; filler]).is_ok() {}
    }
    let error = try_open(&path).await.unwrap_err();
    assert_eq!(
        (error.class, error.code),
        (ErrorClass::NoSpace, "disk_full"),
        "{error:?}"
    );
    assert!(
        error.sentence().contains("free some space"),
        "{}",
        error.sentence()
    );
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing was changed");
    assert!(!names(directory).iter().any(|name| name.contains("schema")));

    let remount = |how: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(directory);
        assert!(mount.status().unwrap().success());
    };
    remount("ro");
    let error = try_open(&path).await.unwrap_err();
    assert!(error.source.is_some(), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing was changed");
    remount("rw");

    let store = try_open(&path).await.unwrap();
    assert_eq!(keys(&store).await, KEYS);
    store.close().await.unwrap();
    println!("upgraded once there was room");
}

#[test]
fn an_upgrade_without_room_changes_nothing_says_so_and_is_made_once_there_is_room() {
    on_a_small_disk(
        "an_upgrade_without_room_changes_nothing_says_so_and_is_made_once_there_is_room",
        "1m",
        "child_that_meets_a_full_and_a_read_only_disk",
        "upgraded once there was room",
    );
}

#[tokio::test]
async fn a_damaged_record_of_an_older_store_is_set_aside_and_the_rest_is_upgraded() {
    let (_directory, path) = first_schema();
    Connection::open(&path)
        .unwrap()
        .execute(
            "UPDATE records SET value = x'00' WHERE key = 'slug/web'",
            [],
        )
        .unwrap();
    let store = try_open(&path).await.unwrap();
    assert_eq!(keys(&store).await, KEYS[..2]);
    assert_eq!(store.damaged().await.unwrap()[0].key, "slug/web");
}

#[tokio::test]
async fn an_older_store_that_was_cut_short_is_refused_or_opened_with_what_is_lost_named() {
    let (_directory, path) = first_schema();
    let store = open_keeping(&path, 0).await;
    for number in 0..400 {
        put(&store, &format!("k/{number:03}"), &"x".repeat(400)).await;
    }
    store.close().await.unwrap();
    back_to_first_schema(&path);
    let whole = std::fs::read(&path).unwrap();
    for part in [1, 3, 5, 7] {
        for ending in ["-wal", "-shm"] {
            let mut beside = path.clone().into_os_string();
            beside.push(ending);
            let _ = std::fs::remove_file(beside);
        }
        std::fs::write(&path, &whole[..whole.len() * part / 8]).unwrap();
        match try_open(&path).await {
            Ok(store) => {
                assert_ne!(store.damaged().await.unwrap(), [], "{part}/8");
                store.close().await.unwrap();
            }
            Err(error) => {
                assert_eq!(error.code, "store_corrupt", "{part}/8: {error:?}");
                assert!(error.sentence().contains("restore a backup"), "{error:?}");
            }
        }
    }
}

/// A closed store of one key, the history of which is many pages; one of them, the first or one further on, is torn.
async fn torn_history(leaf: usize) -> (TempDir, PathBuf) {
    const PAGE: usize = 4096;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = try_open(&path).await.unwrap();
    for number in 0..400 {
        put(
            &store,
            "k",
            &format!("value of {number:04}{}", "x".repeat(200)),
        )
        .await;
    }
    store.close().await.unwrap();
    tear(&path, PAGE, &format!("value of {leaf:04}"));
    (directory, path)
}

fn tear(path: &Path, page_size: usize, text: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let inside = bytes
        .windows(text.len())
        .rposition(|window| window == text.as_bytes())
        .unwrap();
    let page = inside / page_size * page_size;
    assert_eq!(bytes[page], 0x0a, "a leaf of an index tree");
    bytes[page..page + page_size].fill(0xee);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn history_with_a_torn_page_sends_watchers_back_and_is_put_aside_by_the_write_that_meets_it()
{
    let (_directory, path) = torn_history(200).await;
    let store = open_keeping(&path, 100).await;
    let gone = Change::Compacted { oldest: 401 };
    assert_eq!(first_of_watch(&store, 150).await, gone);
    // This one would take the oldest away.
    assert_eq!(put(&store, "k", "next").await, 401);
    assert_eq!(put(&store, "l", "and one more").await, 402);
    assert_eq!(keys(&store).await, ["k", "l"]);
    assert_eq!(store.damaged().await.unwrap(), []);
    let Change::Put(record) = first_of_watch(&store, 401).await else {
        panic!("the new history begins with it");
    };
    assert_eq!((&*record.key, &*record.value), ("k", &b"next"[..]));
    store.close().await.unwrap();

    let store = open_keeping(&path, 100).await;
    assert_eq!(store.revision().await.unwrap(), 402);
    assert_eq!(
        first_of_watch(&store, 1).await,
        Change::Compacted { oldest: 401 }
    );
    for number in 0..250 {
        put(&store, "k", &number.to_string()).await;
    }
}

#[tokio::test]
async fn history_that_is_torn_at_its_end_or_was_never_counted_keeps_no_store_from_opening() {
    for (leaf, counted) in [(399, true), (399, false), (200, false), (0, false)] {
        let (_directory, path) = torn_history(leaf).await;
        if !counted {
            back_to_first_schema(&path);
        }
        let store = try_open(&path).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), 400);
        assert_eq!(keys(&store).await, ["k"]);
        assert_eq!(store.damaged().await.unwrap(), []);
        assert_eq!(
            first_of_watch(&store, 1).await,
            Change::Compacted { oldest: 401 }
        );
        assert_eq!(put(&store, "k", "next").await, 401);
        store.close().await.unwrap();
        let store = try_open(&path).await.unwrap();
        let Change::Put(record) = first_of_watch(&store, 401).await else {
            panic!("history goes on");
        };
        assert_eq!(&*record.value, b"next");
    }
}

#[tokio::test]
async fn a_count_of_changes_that_is_wrong_comes_right_and_history_stays_bounded() {
    for wrong in ["1000000", "0", "-5", "'many'", "NULL"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = open_keeping(&path, 50).await;
        for _ in 0..50 {
            put(&store, "k", "v").await;
        }
        store.close().await.unwrap();
        let meddle = |script: &str| {
            Connection::open(&path)
                .unwrap()
                .execute_batch(script)
                .unwrap()
        };
        meddle(&format!("UPDATE counters SET held = {wrong}"));
        let store = open_keeping(&path, 50).await;
        for _ in 0..60 {
            put(&store, "k", "v").await;
        }
        store.close().await.unwrap();
        let (held, there): (i64, i64) = Connection::open(&path)
            .unwrap()
            .query_row(
                "SELECT held, (SELECT count(*) FROM changes) FROM counters",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert!(
            (50..=55).contains(&there) && held >= there && held <= 55,
            "{wrong}: {held} of {there}"
        );
    }
}

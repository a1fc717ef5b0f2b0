//! Stores that are not what was there last: restored, put back by hand, of older schemas, of newer ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "each test file uses a part")]
mod support;

use bytes::Bytes;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use support::put;
use tempfile::TempDir;
use warren_core::ports::store::Store;
use warren_core::{ErrorClass, InstallationId};
use warren_store::{OpenOptions, Origin, SCHEMA_VERSION, SqliteStore, Unowned, restore};

/// A data directory: the store's path in it, and where old stores go.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("aside")).unwrap();
        Place { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store.db")
    }

    async fn open(&self) -> SqliteStore {
        let options = OpenOptions {
            installation: Some(own()),
            ..OpenOptions::default()
        };
        SqliteStore::open(self.store(), options).await.unwrap()
    }
}

fn own() -> InstallationId {
    InstallationId::from_entropy([1; 3])
}

async fn contents(store: &SqliteStore) -> Vec<(String, String)> {
    let page = store.list("", None, usize::MAX).await.unwrap();
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    page.records
        .iter()
        .map(|record| (record.key.clone(), text(&record.value)))
        .collect()
}

#[tokio::test]
async fn a_restored_backup_has_the_same_contents_and_stays_marked_until_it_is_accepted() {
    let place = Place::new();
    let store = place.open().await;
    put(&store, "a", "1").await;
    put(&store, "b", "2").await;
    let backed_up = contents(&store).await;
    let revision = store.backup_to(place.path("backup")).await.unwrap();
    put(&store, "a", "later").await;

    // While it is open it is not replaced.
    let refused = restore(&place.path("backup"), &place.store(), &place.path("aside")).unwrap_err();
    assert_eq!(
        (refused.class, refused.code),
        (ErrorClass::Conflict, "store_locked")
    );
    store.close().await.unwrap();

    let restored = restore(&place.path("backup"), &place.store(), &place.path("aside")).unwrap();
    assert_eq!(restored, revision);
    for _ in 0..2 {
        let store = place.open().await;
        assert_eq!(store.origin(), Origin::Backup { revision });
        assert_eq!(contents(&store).await, backed_up);
        store.close().await.unwrap();
    }
    let store = place.open().await;
    store.accept().await.unwrap();
    put(&store, "c", "3").await;
    store.close().await.unwrap();
    let store = place.open().await;
    assert_eq!(store.origin(), Origin::Existing);
    store.close().await.unwrap();

    // What was there before can still be looked at.
    let old = SqliteStore::open(place.path("aside/store.db"), OpenOptions::default())
        .await
        .unwrap();
    assert_eq!(
        contents(&old).await[0],
        ("a".to_owned(), "later".to_owned())
    );
}

#[tokio::test]
async fn an_older_copy_put_in_place_by_hand_is_known_for_one_until_it_is_accepted() {
    let place = Place::new();
    let store = place.open().await;
    put(&store, "a", "1").await;
    store.close().await.unwrap();
    std::fs::copy(place.store(), place.path("hour-old")).unwrap();
    let store = place.open().await;
    assert_eq!(store.origin(), Origin::Existing);
    put(&store, "b", "2").await;
    store.close().await.unwrap();
    std::fs::copy(place.path("hour-old"), place.store()).unwrap();

    for _ in 0..2 {
        let store = place.open().await;
        let behind = Origin::Behind {
            revision: 1,
            seen: 2,
        };
        assert_eq!(store.origin(), behind);
        // Commits to a doubtful store do not make it the one that was seen.
        store.close().await.unwrap();
    }
    let store = place.open().await;
    store.accept().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(place.open().await.origin(), Origin::Existing);
}

#[tokio::test]
async fn a_store_made_anew_where_instances_exist_stays_nobodys_until_it_is_accepted() {
    let place = Place::new();
    let options = || OpenOptions {
        installation: Some(own()),
        unowned: Unowned::Leave,
        ..OpenOptions::default()
    };
    for origin in [Origin::New, Origin::Existing] {
        let store = SqliteStore::open(place.store(), options()).await.unwrap();
        assert_eq!((store.origin(), store.installation()), (origin, None));
        store.close().await.unwrap();
    }
    let store = SqliteStore::open(place.store(), options()).await.unwrap();
    store.accept().await.unwrap();
    store.close().await.unwrap();
    let store = SqliteStore::open(place.store(), options()).await.unwrap();
    assert_eq!(store.installation(), Some(&own()));
}

#[tokio::test]
async fn what_is_no_backup_of_ours_or_a_newer_ones_is_refused_in_words_and_the_store_stays() {
    let place = Place::new();
    let store = place.open().await;
    put(&store, "a", "1").await;
    store.backup_to(place.path("newer")).await.unwrap();
    store.close().await.unwrap();
    Connection::open(place.path("newer"))
        .unwrap()
        .execute_batch(&format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1))
        .unwrap();
    Connection::open(place.path("foreign"))
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    std::fs::write(place.path("text"), "no database at all, but a line of text").unwrap();
    std::fs::write(place.path("empty"), "").unwrap();
    for (file, code) in [
        ("newer", "store_newer"),
        ("foreign", "store_foreign"),
        ("text", "store_corrupt"),
        ("empty", "store_foreign"),
        ("missing", "store_not_accessible"),
    ] {
        let error = restore(&place.path(file), &place.store(), &place.path("aside")).unwrap_err();
        assert_eq!(error.code, code, "{file}: {error:?}");
    }
    let newer = restore(&place.path("newer"), &place.store(), &place.path("aside")).unwrap_err();
    let said = newer.sentence();
    assert!(
        said.contains(&format!("schema {}", SCHEMA_VERSION + 1)) && said.contains("newer binary"),
        "{said}"
    );
    let store = place.open().await;
    assert_eq!(contents(&store).await, [("a".to_owned(), "1".to_owned())]);
}

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/schema-{version}.db"))
}

/// What every fixture holds, in the words of its time.
const RECORDS: [(&str, &str); 3] = [
    ("instance/web", r#"{"id":"web"}"#),
    ("name/default/web", r#""web""#),
    ("slug/web", r#""web""#),
];

/// `WRITE_FIXTURE=1 cargo test -p warren-store --test restore` makes the fixture of the schema of today, once;
/// it is committed with the migration that leads to it and never written again.
#[tokio::test]
async fn a_store_of_every_schema_there_was_opens_with_all_it_held() {
    let newest = fixture(SCHEMA_VERSION);
    if std::env::var_os("WRITE_FIXTURE").is_some() && !newest.exists() {
        std::fs::create_dir_all(newest.parent().unwrap()).unwrap();
        let place = Place::new();
        let store = place.open().await;
        for (key, value) in RECORDS {
            put(&store, key, value).await;
        }
        store.backup_to(&newest).await.unwrap();
    }
    for version in 1..=SCHEMA_VERSION {
        let fixture = fixture(version);
        assert!(
            fixture.exists(),
            "schema {version} has no fixture: WRITE_FIXTURE=1 makes it"
        );
        let held: u32 = Connection::open(&fixture)
            .unwrap()
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(held, version, "a fixture is never migrated in place");
        let place = Place::new();
        restore(&fixture, &place.store(), &place.path("aside")).unwrap();
        let store = place.open().await;
        let expected: Vec<_> = RECORDS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(contents(&store).await, expected, "schema {version}");
        assert_eq!(store.damaged().await.unwrap(), []);
        // It is of the newest schema now, and can be written to.
        put(&store, "after", "1").await;
        store.close().await.unwrap();
        let now: u32 = Connection::open(place.store())
            .unwrap()
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(now, SCHEMA_VERSION);
    }
}

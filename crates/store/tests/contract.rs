//! What every store promises, asked of every store.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;
use warren_core::ErrorClass;
use warren_core::ports::BoxStream;
use warren_core::ports::store::{
    Change, Commit, Guard, Page, Record, Revision, Store, Transaction, Write,
};
use warren_store::{MAX_KEY_BYTES, MAX_VALUE_BYTES, MemoryStore, OpenOptions, SqliteStore};

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    Sqlite,
}

/// A store and what must outlive it.
struct Fixture {
    store: Arc<dyn Store>,
    _directory: Option<TempDir>,
}

async fn make(kind: Kind, history: usize) -> Fixture {
    match kind {
        Kind::Memory => Fixture {
            store: Arc::new(MemoryStore::with_history(history)),
            _directory: None,
        },
        Kind::Sqlite => {
            let directory = tempfile::tempdir().unwrap();
            let options = OpenOptions {
                history,
                ..OpenOptions::default()
            };
            Fixture {
                store: Arc::new(
                    SqliteStore::open(directory.path().join("store"), options)
                        .await
                        .unwrap(),
                ),
                _directory: Some(directory),
            }
        }
    }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned(), Bytes::copy_from_slice(value.as_bytes()))
}

fn delete(key: &str) -> Write {
    Write::Delete(key.to_owned())
}

async fn write(store: &dyn Store, writes: Vec<Write>) -> Revision {
    done(commit(store, vec![], writes).await)
}

async fn commit(store: &dyn Store, guards: Vec<Guard>, writes: Vec<Write>) -> Commit {
    store.commit(Transaction { guards, writes }).await.unwrap()
}

fn done(commit: Commit) -> Revision {
    match commit {
        Commit::Done(revision) => revision,
        Commit::Refused { guard } => panic!("guard {guard} refused"),
    }
}

fn record(key: &str, value: &str, revision: Revision) -> Record {
    Record {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        revision,
    }
}

async fn next(watch: &mut BoxStream<Change>) -> Change {
    timeout(DEADLINE, watch.next())
        .await
        .expect("a change within the deadline")
        .expect("a watch does not end")
}

async fn list_all(store: &dyn Store, prefix: &str, limit: usize) -> Vec<Record> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(prefix, after.as_deref(), limit).await.unwrap();
        assert!(page.records.len() <= limit);
        all.extend(page.records);
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

async fn revisions_count_commits(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    assert_eq!(store.revision().await.unwrap(), 0);
    assert_eq!(write(&*store, vec![put("a", "1")]).await, 1);
    assert_eq!(write(&*store, vec![put("a", "2"), put("b", "1")]).await, 2);
    // Also those that change nothing.
    assert_eq!(write(&*store, vec![delete("none")]).await, 3);
    assert_eq!(write(&*store, vec![]).await, 4);
    let refused = commit(&*store, vec![Guard::Absent("a".into())], vec![]).await;
    assert_eq!(refused, Commit::Refused { guard: 0 });
    assert_eq!(store.revision().await.unwrap(), 4);
    assert_eq!(store.get("a").await.unwrap(), Some(record("a", "2", 2)));
    assert_eq!(store.get("none").await.unwrap(), None);
    assert!(store.damaged().await.unwrap().is_empty());
}

async fn guards_name_the_first_that_does_not_hold(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let store = &*store;
    let first = write(store, vec![put("a", "1")]).await;
    let absent = |key: &str| Guard::Absent(key.into());
    let present = |key: &str| Guard::Present(key.into());
    let at = |key: &str, revision| Guard::At(key.into(), revision);
    let cases = [
        (vec![absent("a")], Some(0)),
        (vec![absent("b")], None),
        (vec![present("a")], None),
        (vec![present("b")], Some(0)),
        (vec![at("a", first)], None),
        (vec![at("a", first + 1)], Some(0)),
        (vec![at("a", 0)], Some(0)),
        (vec![at("a", u64::MAX)], Some(0)),
        (vec![at("b", first)], Some(0)),
        (vec![present("a"), absent("b"), at("a", 99)], Some(2)),
        (vec![present("a"), present("b"), absent("a")], Some(1)),
    ];
    for (guards, refused) in cases {
        let outcome = commit(store, guards.clone(), vec![]).await;
        let expected = match refused {
            Some(guard) => Commit::Refused { guard },
            None => Commit::Done(store.revision().await.unwrap()),
        };
        assert_eq!(outcome, expected, "{guards:?}");
    }
    // Guards look at what was before the transaction.
    let replaced = commit(store, vec![absent("c")], vec![put("c", "1"), put("c", "2")]).await;
    let replaced = done(replaced);
    assert_eq!(
        store.get("c").await.unwrap(),
        Some(record("c", "2", replaced))
    );
}

async fn a_refused_transaction_changes_nothing(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let store = &*store;
    write(store, vec![put("a", "1")]).await;
    let before = store.list("", None, 100).await.unwrap();
    let guards = vec![Guard::Present("a".into()), Guard::Present("gone".into())];
    let refused = commit(store, guards, vec![put("b", "1"), delete("a")]).await;
    assert_eq!(refused, Commit::Refused { guard: 1 });
    assert_eq!(store.list("", None, 100).await.unwrap(), before);
    let mut watch = store.watch("", 2).await.unwrap();
    let revision = write(store, vec![put("z", "1")]).await;
    assert_eq!(revision, 2);
    assert_eq!(
        next(&mut watch).await,
        Change::Put(record("z", "1", revision))
    );
}

async fn pages_join_to_the_whole_in_key_order(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let store = &*store;
    let keys: Vec<String> = (0..25).map(|n| format!("k/{n:02}")).collect();
    write(store, keys.iter().rev().map(|key| put(key, "v")).collect()).await;
    write(store, vec![put("j", "v"), put("l", "v")]).await;
    for limit in [1, 2, 5, 24, 25, 26, 1000] {
        let all = list_all(store, "k/", limit).await;
        let found: Vec<&str> = all.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(found, keys, "limit {limit}");
    }
    // A page that is exactly full and the last says so.
    let page = store.list("k/", Some("k/22"), 2).await.unwrap();
    assert_eq!((page.records.len(), page.next, page.revision), (2, None, 2));
    let page = store.list("k/", Some("k/21"), 2).await.unwrap();
    assert_eq!(page.next.as_deref(), Some("k/23"));
    // `after` need not exist, nor lie under the prefix.
    let first = |page: Page| page.records.first().map(|record| record.key.clone());
    for (after, expected) in [
        ("a", Some("k/00")),
        ("k/00x", Some("k/01")),
        ("k/24", None),
        ("l", None),
        ("z", None),
    ] {
        let page = store.list("k/", Some(after), 3).await.unwrap();
        assert_eq!(first(page).as_deref(), expected, "after {after}");
    }
    let error = store.list("k/", None, 0).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Invalid);
}

async fn prefixes_are_taken_literally(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let store = &*store;
    let keys = [
        "a",
        "a%",
        "a%b",
        "a/",
        "a/b",
        "aXb",
        "a_",
        "a_b",
        "ab",
        "a\u{7f}",
        "a\u{10ffff}",
        "a\u{10ffff}z",
        "b",
        "ä/1",
        "日本/1",
    ];
    write(store, keys.iter().map(|key| put(key, "v")).collect()).await;
    for prefix in keys
        .iter()
        .copied()
        .chain(["", "%", "_", "A", "日", "\u{10ffff}"])
    {
        let mut expected: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|key| key.starts_with(prefix))
            .collect();
        expected.sort_unstable();
        let found = list_all(store, prefix, 2).await;
        let found: Vec<&str> = found.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(found, expected, "prefix {prefix:?}");
    }
}

async fn a_watch_gives_history_and_then_what_comes(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let store = &*store;
    write(store, vec![put("a/1", "1"), put("b/1", "1")]).await;
    write(store, vec![put("a/2", "1"), delete("a/1"), delete("a/9")]).await;
    let mut all = store.watch("a/", 0).await.unwrap();
    let mut later = store.watch("a/", 2).await.unwrap();
    let mut future = store.watch("", 5).await.unwrap();
    assert_eq!(next(&mut all).await, Change::Put(record("a/1", "1", 1)));
    let second = [
        Change::Put(record("a/2", "1", 2)),
        Change::Delete {
            key: "a/1".into(),
            revision: 2,
        },
    ];
    for watch in [&mut all, &mut later] {
        for change in &second {
            assert_eq!(next(watch).await, *change);
        }
        let nothing = timeout(Duration::from_millis(50), watch.next()).await;
        assert!(nothing.is_err(), "there is nothing yet: {nothing:?}");
    }
    write(store, vec![put("b/2", "1")]).await;
    write(store, vec![put("a/3", "1")]).await;
    write(store, vec![put("c", "1")]).await;
    for watch in [&mut all, &mut later] {
        assert_eq!(next(watch).await, Change::Put(record("a/3", "1", 4)));
    }
    assert_eq!(next(&mut future).await, Change::Put(record("c", "1", 5)));
}

async fn a_listing_and_a_watch_from_it_miss_nothing(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100_000).await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..200 {
                write(&*store, vec![put(&format!("k{}", n % 7), &n.to_string())]).await;
            }
        })
    };
    while store.revision().await.unwrap() < 20 {
        tokio::task::yield_now().await;
    }
    let page = store.list("", None, 1000).await.unwrap();
    let mut model: BTreeMap<String, Record> = page
        .records
        .into_iter()
        .map(|record| (record.key.clone(), record))
        .collect();
    let mut watch = store.watch("", page.revision + 1).await.unwrap();
    for revision in page.revision + 1..=200 {
        match next(&mut watch).await {
            Change::Put(record) => {
                assert_eq!(record.revision, revision);
                model.insert(record.key.clone(), record);
            }
            other => panic!("{other:?}"),
        }
    }
    writer.await.unwrap();
    assert_eq!(
        model.into_values().collect::<Vec<_>>(),
        list_all(&*store, "", 3).await
    );
}

async fn a_watch_from_lost_history_says_so_and_ends(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 20).await;
    let store = &*store;
    let mut slow = store.watch("", 1).await.unwrap();
    for n in 0..100 {
        write(store, vec![put("a", &n.to_string()), put("b", "x")]).await;
    }
    for watch in [&mut slow, &mut store.watch("none", 1).await.unwrap()] {
        let Change::Compacted { oldest } = next(watch).await else {
            panic!("history from 1 is gone");
        };
        // 20 changes are 10 commits; up to a tenth more may be kept.
        assert!((89..=91).contains(&oldest), "{oldest}");
        assert_eq!(timeout(DEADLINE, watch.next()).await.unwrap(), None);
        let mut kept = store.watch("a", oldest).await.unwrap();
        for revision in oldest..=100 {
            let value = (revision - 1).to_string();
            assert_eq!(
                next(&mut kept).await,
                Change::Put(record("a", &value, revision))
            );
        }
        let mut lost = store.watch("a", oldest - 1).await.unwrap();
        assert_eq!(next(&mut lost).await, Change::Compacted { oldest });
    }
}

async fn one_of_many_writers_wins_each_round(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 10_000).await;
    let mut last = None;
    for round in 0..20 {
        let guard = match last {
            None => Guard::Absent("leader".into()),
            Some(revision) => Guard::At("leader".into(), revision),
        };
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (store, guard) = (Arc::clone(&store), guard.clone());
                tokio::spawn(async move {
                    let writes = vec![put("leader", &format!("{round}/{writer}"))];
                    (writer, commit(&*store, vec![guard], writes).await)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for writer in writers {
            match timeout(DEADLINE, writer).await.unwrap().unwrap() {
                (writer, Commit::Done(revision)) => winners.push((writer, revision)),
                (_, Commit::Refused { guard }) => assert_eq!(guard, 0),
            }
        }
        let [(writer, revision)] = winners[..] else {
            panic!("round {round}: {winners:?}");
        };
        let expected = record("leader", &format!("{round}/{writer}"), revision);
        assert_eq!(store.get("leader").await.unwrap(), Some(expected));
        last = Some(revision);
    }
    assert_eq!(store.revision().await.unwrap(), 20);
}

async fn concurrent_writers_and_watchers_agree(kind: Kind) {
    const WRITERS: usize = 8;
    const EACH: usize = 150;
    let Fixture { store, _directory } = make(kind, 1_000_000).await;
    let watchers: Vec<_> = (0..4)
        .map(|speed| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut watch = store.watch("k/", 1).await.unwrap();
                let mut seen = Vec::new();
                while seen.len() < WRITERS * EACH * 2 {
                    seen.push(next(&mut watch).await);
                    for _ in 0..speed * 20 {
                        tokio::task::yield_now().await;
                    }
                }
                seen
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..EACH {
                    let value = format!("{writer}/{n}");
                    write(
                        &*store,
                        vec![
                            put(&format!("k/{}", n % 5), &value),
                            put(&format!("other/{writer}"), &value),
                            put(&format!("k/own/{writer}"), &value),
                        ],
                    )
                    .await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let live = list_all(&*store, "k/", 4).await;
    let mut first = None;
    for watcher in watchers {
        let seen = timeout(DEADLINE, watcher).await.unwrap().unwrap();
        let mut model = BTreeMap::new();
        for (index, change) in seen.iter().enumerate() {
            let Change::Put(record) = change else {
                panic!("{change:?}");
            };
            // Two changes of each commit, in order, none missing, none twice.
            assert_eq!(record.revision, index as u64 / 2 + 1);
            assert_eq!(record.key.starts_with("k/own/"), index % 2 == 1);
            model.insert(record.key.clone(), record.clone());
        }
        assert_eq!(model.into_values().collect::<Vec<_>>(), live);
        assert_eq!(*first.get_or_insert_with(|| seen.clone()), seen);
    }
}

async fn what_is_too_large_or_malformed_is_refused(kind: Kind) {
    let Fixture { store, _directory } = make(kind, 100).await;
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let big = Bytes::from(vec![b'x'; MAX_VALUE_BYTES + 1]);
    let transactions = [
        (vec![], vec![put("", "v")]),
        (vec![], vec![put("a\0b", "v")]),
        (vec![], vec![delete(&long)]),
        (vec![Guard::Absent(long.clone())], vec![]),
        (vec![], vec![Write::Put("a".into(), big)]),
        (vec![], vec![put("a", "v"); 5000]),
    ];
    for (guards, writes) in transactions {
        let error = store
            .commit(Transaction { guards, writes })
            .await
            .unwrap_err();
        assert_eq!(error.class, ErrorClass::Invalid, "{error}");
    }
    assert_eq!(store.revision().await.unwrap(), 0);
    // At the limits it works, and what was read is what was written.
    let key = "k".repeat(MAX_KEY_BYTES);
    let value = Bytes::from(vec![0xa5; MAX_VALUE_BYTES]);
    write(&*store, vec![Write::Put(key.clone(), value.clone())]).await;
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, value);
}

/// One step of the random history.
#[derive(Debug, Clone)]
enum Operation {
    Commit(Vec<PlannedGuard>, Vec<Write>),
    List(String, Option<String>, usize),
    Watch(String, f64),
}

#[derive(Debug, Clone)]
enum PlannedGuard {
    Absent(String),
    Present(String),
    Unchanged(String),
    At(String, Revision),
}

fn keys() -> impl Strategy<Value = String> {
    "[ab%_]{1,2}(/[ab]){0,1}"
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let guard = prop_oneof![
        1 => keys().prop_map(PlannedGuard::Absent),
        1 => keys().prop_map(PlannedGuard::Present),
        4 => keys().prop_map(PlannedGuard::Unchanged),
        1 => (keys(), 0..9u64).prop_map(|(key, revision)| PlannedGuard::At(key, revision)),
    ];
    let change = prop_oneof![
        3 => (keys(), "[x-z]{0,3}").prop_map(|(key, value)| put(&key, &value)),
        1 => keys().prop_map(Write::Delete),
    ];
    let operation = prop_oneof![
        6 => (
            proptest::collection::vec(guard, 0..2),
            proptest::collection::vec(change, 0..4)
        )
            .prop_map(|(guards, writes)| Operation::Commit(guards, writes)),
        2 => ("[ab%_/]{0,2}", proptest::option::of(keys()), 1..5usize)
            .prop_map(|(prefix, after, limit)| Operation::List(prefix, after, limit)),
        1 => ("[ab%_/]{0,2}", any::<f64>()).prop_map(|(prefix, at)| Operation::Watch(prefix, at)),
    ];
    proptest::collection::vec(operation, 1..60)
}

/// What a store is, without anything that could go wrong.
#[derive(Default)]
struct Model {
    records: BTreeMap<String, Record>,
    log: Vec<Change>,
    revision: Revision,
}

impl Model {
    fn guard(&self, planned: PlannedGuard) -> Guard {
        match planned {
            PlannedGuard::Absent(key) => Guard::Absent(key),
            PlannedGuard::Present(key) => Guard::Present(key),
            PlannedGuard::At(key, revision) => Guard::At(key, revision),
            PlannedGuard::Unchanged(key) => match self.records.get(&key) {
                Some(record) => Guard::At(key, record.revision),
                None => Guard::Absent(key),
            },
        }
    }

    fn commit(&mut self, guards: &[Guard], writes: &[Write]) -> Commit {
        for (index, guard) in guards.iter().enumerate() {
            let holds = match guard {
                Guard::Absent(key) => !self.records.contains_key(key),
                Guard::Present(key) => self.records.contains_key(key),
                Guard::At(key, at) => self.records.get(key).is_some_and(|r| r.revision == *at),
            };
            if !holds {
                return Commit::Refused { guard: index };
            }
        }
        self.revision += 1;
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let record = Record {
                        key: key.clone(),
                        value: value.clone(),
                        revision: self.revision,
                    };
                    self.records.insert(key.clone(), record.clone());
                    self.log.push(Change::Put(record));
                }
                Write::Delete(key) => {
                    if self.records.remove(key).is_some() {
                        self.log.push(Change::Delete {
                            key: key.clone(),
                            revision: self.revision,
                        });
                    }
                }
            }
        }
        Commit::Done(self.revision)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut records: Vec<Record> = self
            .records
            .values()
            .filter(|r| r.key.starts_with(prefix) && after.is_none_or(|a| r.key.as_str() > a))
            .cloned()
            .collect();
        let more = records.len() > limit;
        records.truncate(limit);
        Page {
            next: records.last().filter(|_| more).map(|r| r.key.clone()),
            records,
            revision: self.revision,
        }
    }

    fn log(&self, prefix: &str, from: Revision) -> Vec<Change> {
        self.log
            .iter()
            .filter(|change| {
                let (key, revision) = match change {
                    Change::Put(record) => (&record.key, record.revision),
                    Change::Delete { key, revision } => (key, *revision),
                    Change::Compacted { .. } => return false,
                };
                key.starts_with(prefix) && revision >= from
            })
            .cloned()
            .collect()
    }
}

fn a_store_does_what_its_model_does(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    proptest!(proptest::test_runner::Config::with_cases(48), |(operations in operations())| {
        runtime.block_on(async {
            let Fixture { store, _directory } = make(kind, 1_000).await;
            let mut model = Model::default();
            let mut watches = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Commit(guards, writes) => {
                        let guards: Vec<Guard> =
                            guards.into_iter().map(|guard| model.guard(guard)).collect();
                        let expected = model.commit(&guards, &writes);
                        prop_assert_eq!(commit(&*store, guards, writes).await, expected);
                    }
                    Operation::List(prefix, after, limit) => {
                        let page = store.list(&prefix, after.as_deref(), limit).await.unwrap();
                        prop_assert_eq!(page, model.list(&prefix, after.as_deref(), limit));
                    }
                    Operation::Watch(prefix, at) => {
                        let from = at.to_bits() % (model.revision + 3);
                        let watch = store.watch(&prefix, from).await.unwrap();
                        watches.push((prefix, from, watch));
                    }
                }
            }
            for (prefix, from, mut watch) in watches {
                for expected in model.log(&prefix, from) {
                    prop_assert_eq!(next(&mut watch).await, expected);
                }
                let more = futures::poll!(watch.next());
                prop_assert!(more.is_pending(), "{:?}", more);
            }
            Ok(())
        })?;
    });
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Kind::Memory).await;
            })*
            #[test]
            fn a_store_does_what_its_model_does() {
                super::a_store_does_what_its_model_does(super::Kind::Memory);
            }
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Kind::Sqlite).await;
            })*
            #[test]
            fn a_store_does_what_its_model_does() {
                super::a_store_does_what_its_model_does(super::Kind::Sqlite);
            }
        }
    };
}

contract!(
    revisions_count_commits,
    guards_name_the_first_that_does_not_hold,
    a_refused_transaction_changes_nothing,
    pages_join_to_the_whole_in_key_order,
    prefixes_are_taken_literally,
    a_watch_gives_history_and_then_what_comes,
    a_listing_and_a_watch_from_it_miss_nothing,
    a_watch_from_lost_history_says_so_and_ends,
    one_of_many_writers_wins_each_round,
    concurrent_writers_and_watchers_agree,
    what_is_too_large_or_malformed_is_refused,
);

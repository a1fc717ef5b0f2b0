//! Records that releases of the past have left are read with all that they say. A fixture is a backup of a server whose
//! instances are in every state that lasts: `fixtures/record-schema-N.db` is of the last one that wrote schema N of the
//! store. It is made once, and never written again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use warren_control::records::Records;
use warren_core::ports::Store;
use warren_store::{OpenOptions, Origin, SqliteStore};

fn fixtures() -> BTreeMap<u32, PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = std::fs::read_dir(directory).unwrap();
    files
        .filter_map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name()?.to_str()?.to_owned();
            let schema = name.strip_prefix("record-schema-")?.strip_suffix(".db")?;
            Some((schema.parse().unwrap(), path))
        })
        .collect()
}

/// Whether `now` still says everything that `then` said.
fn assert_says(then: &Value, now: &Value, place: &str) {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            for (name, value) in then {
                let place = format!("{place}.{name}");
                let now = now.get(name).unwrap_or(&Value::Null);
                assert_says(value, now, &place);
            }
        }
        (then, now) => assert_eq!(then, now, "{place}"),
    }
}

#[tokio::test]
async fn instances_in_every_state_that_an_older_record_tells_of_are_read_with_all_that_it_says() {
    let fixtures = fixtures();
    assert!(fixtures.contains_key(&1));
    for (schema, fixture) in fixtures {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        std::fs::copy(&fixture, &path).unwrap();
        let store = SqliteStore::open(&path, OpenOptions::default())
            .await
            .unwrap();
        assert!(matches!(store.origin(), Origin::Backup { .. }));
        let records = Records::read(&store).await.unwrap();
        assert_eq!(
            records.differences(),
            [],
            "schema {schema} agrees with itself"
        );

        let states: Vec<(String, Value)> = records
            .statuses
            .values()
            .map(|status| {
                let state = serde_json::to_value(&status.state).unwrap();
                (status.id.to_string(), state["state"].clone())
            })
            .collect();
        let state = |id: &str, state: &str| (id.to_owned(), Value::from(state));
        let expected = [
            state("failed", "Stopped"),
            state("paused", "Paused"),
            state("running", "Running"),
            state("stopped", "Stopped"),
        ];
        assert_eq!(states, expected, "schema {schema}");
        let failed = &records.statuses[&"failed".parse().unwrap()];
        assert_eq!(failed.failure.as_ref().unwrap().code, "image_not_here");

        for record in store.list("", None, usize::MAX).await.unwrap().records {
            let then: Value = serde_json::from_slice(&record.value).unwrap();
            let now = match record.key.split_once('/') {
                Some(("instance", id)) => {
                    serde_json::to_value(&records.intents[&id.parse().unwrap()].0)
                }
                Some(("status", id)) => {
                    serde_json::to_value(&records.statuses[&id.parse().unwrap()])
                }
                _ => continue,
            };
            assert_says(
                &then,
                &now.unwrap(),
                &format!("schema {schema}: {}", record.key),
            );
        }
        store.close().await.unwrap();
    }
}

//! `fsck` and `system`: through a server, and on a data directory that no server holds.

use super::*;
use std::path::Path;

/// A data directory of installation `abcd`, with one instance's directory in which half a file lies.
fn installation() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("installation"), "abcd\n").unwrap();
    std::fs::create_dir_all(data.path().join("instances/aaaabbbb")).unwrap();
    std::fs::write(data.path().join("instances/aaaabbbb/.tmp1"), "ha").unwrap();
    data
}

fn on(data: &Path, words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = warren(home.path());
    command
        .env("DATA_DIR", data)
        .env("WARREN_NETWORK", "none")
        .env("WARREN_HYPERVISORS", "[fake]");
    command.args(words).output().unwrap()
}

#[test]
fn a_servers_differences_are_shown_with_what_to_do_and_make_exit_status_1() {
    let double = Double::start(None);
    let answer = ask(&double, &["fsck"]);
    assert_eq!(answer.status.code(), Some(1), "{}", err(&answer));
    let text = out(&answer);
    for needle in [
        "leaked",
        "wtabcdaaaabbbb belongs to no recorded instance",
        "warren fsck --repair",
    ] {
        assert!(text.contains(needle), "{text}");
    }
    let json: Value = serde_json::from_str(&out(&ask(&double, &["fsck", "-o", "json"]))).unwrap();
    assert_eq!(json["differences"][0]["item"]["handle"], "aaaabbbb");
    let answer = ask(&double, &["fsck", "--repair"]);
    assert_eq!(answer.status.code(), Some(0));
    assert!(
        out(&answer).starts_with("repaired: network device"),
        "{}",
        out(&answer)
    );
    assert!(
        double
            .requests()
            .contains(&"POST /system/repair".to_owned())
    );
}

#[test]
fn without_a_server_or_a_data_directory_nothing_is_found_out_and_that_is_exit_status_2() {
    let answer = output(&[
        "--server",
        &nobody(),
        "fsck",
        "--data-dir",
        "/nonexistent/warren",
    ]);
    assert_eq!(answer.status.code(), Some(2), "{}", err(&answer));
    assert!(
        err(&answer).contains("no Warren server answers"),
        "{}",
        err(&answer)
    );
}

#[test]
fn a_data_directory_without_a_server_is_looked_at_and_put_right() {
    let data = installation();
    let check = on(data.path(), &["fsck", "-o", "json"]);
    assert_eq!(check.status.code(), Some(1), "{}", err(&check));
    let json: Value = serde_json::from_str(&out(&check)).unwrap();
    let found: Vec<(&str, &str)> = json["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["kind"].as_str().unwrap(),
                one["remedy"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("damaged", "recover"),
            ("leaked", "recover"),
            ("leaked", "repair")
        ],
        "{json}"
    );
    assert!(
        !data.path().join("store.db").exists(),
        "looking makes no record"
    );

    let repair = on(data.path(), &["fsck", "--repair", "-o", "json"]);
    let json: Value = serde_json::from_str(&out(&repair)).unwrap();
    assert_eq!(json["repaired"].as_array().unwrap().len(), 1, "{json}");
    assert!(!data.path().join("instances/aaaabbbb/.tmp1").exists());
    assert!(
        data.path().join("instances/aaaabbbb").exists(),
        "a directory is never removed"
    );
}

#[test]
fn a_backup_is_taken_from_a_server_whole_and_only_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let double = Double::start(None);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("copy.db");
    let path = file.to_str().unwrap();
    let answer = ask(&double, &["system", "backup", path, "-o", "json"]);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    let json: Value = serde_json::from_str(&out(&answer)).unwrap();
    assert_eq!(
        (&json["file"], &json["bytes"]),
        (&json!(path), &json!(160_000))
    );
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = ask(&double, &["system", "backup", path]);
    assert_eq!(again.status.code(), Some(1));
    assert!(err(&again).contains("already a file"), "{}", err(&again));
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_record_is_backed_up_and_restored_on_a_data_directory_and_then_doubted() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("installation"), "abcd\n").unwrap();
    let copy = data.path().join("copy.db");
    let copy = copy.to_str().unwrap();
    let none = on(data.path(), &["system", "backup", copy]);
    assert_eq!(none.status.code(), Some(1));
    assert!(err(&none).contains("there is no record"), "{}", err(&none));
    // A recovery makes the record of what is there: of nothing, here.
    let made = on(data.path(), &["system", "recover"]);
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    assert_eq!(on(data.path(), &["fsck"]).status.code(), Some(0));
    assert_eq!(
        on(data.path(), &["system", "backup", copy]).status.code(),
        Some(0)
    );

    let foreign = data.path().join("foreign");
    std::fs::write(&foreign, "this is no backup of anything at all").unwrap();
    let refused = on(
        data.path(),
        &["system", "restore", foreign.to_str().unwrap()],
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).starts_with("error: "), "{}", err(&refused));
    let restored = on(data.path(), &["system", "restore", copy]);
    assert_eq!(restored.status.code(), Some(0), "{}", err(&restored));
    assert!(
        err(&restored).contains("warren system recover"),
        "{}",
        err(&restored)
    );
    std::fs::create_dir_all(data.path().join("instances/aaaabbbb")).unwrap();
    let doubted = on(data.path(), &["fsck"]);
    assert_eq!(doubted.status.code(), Some(1));
    assert!(
        out(&doubted).contains("restored from a backup"),
        "{}",
        out(&doubted)
    );
}

#[test]
fn a_record_of_a_newer_version_is_refused_in_words_and_left_alone_and_a_backup_of_before_helps() {
    let data = tempfile::tempdir().unwrap();
    let path = |name: &str| data.path().join(name);
    std::fs::write(path("installation"), "abcd\n").unwrap();
    assert_eq!(
        on(data.path(), &["system", "recover"]).status.code(),
        Some(0)
    );
    let copy = path("copy.db");
    let copy = copy.to_str().unwrap();
    assert_eq!(
        on(data.path(), &["system", "backup", copy]).status.code(),
        Some(0)
    );
    rusqlite::Connection::open(path("store.db"))
        .unwrap()
        .execute_batch("PRAGMA user_version = 99")
        .unwrap();
    let newer = std::fs::read(path("store.db")).unwrap();
    // Free again as soon as it is known.
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|bound| bound.local_addr());
    let port = free.unwrap().port().to_string();
    for words in [
        &["server", "--port", &port][..],
        &["fsck"],
        &["fsck", "--repair"],
        &["system", "recover"],
        &["system", "backup", path("other.db").to_str().unwrap()],
    ] {
        let refused = on(data.path(), words);
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{words:?}");
        let said = err(&refused);
        for needle in [
            "a newer Warren (schema 99)",
            "use the newer binary or restore a backup",
        ] {
            assert!(said.contains(needle), "{words:?}: {said}");
        }
        assert_eq!(std::fs::read(path("store.db")).unwrap(), newer, "{words:?}");
    }
    let restored = on(data.path(), &["system", "restore", copy]);
    assert_eq!(restored.status.code(), Some(0), "{}", err(&restored));
    assert_eq!(
        on(data.path(), &["system", "recover"]).status.code(),
        Some(0)
    );
    assert_eq!(on(data.path(), &["fsck"]).status.code(), Some(0));
}

#[test]
fn a_record_of_an_older_version_is_brought_up_to_date_by_who_may_change_it_and_not_by_who_looks() {
    let data = tempfile::tempdir().unwrap();
    let path = |name: &str| data.path().join(name);
    std::fs::write(path("installation"), "abcd\n").unwrap();
    assert_eq!(
        on(data.path(), &["system", "recover"]).status.code(),
        Some(0)
    );
    rusqlite::Connection::open(path("store.db"))
        .unwrap()
        .execute_batch("ALTER TABLE counters DROP COLUMN held; PRAGMA user_version = 1")
        .unwrap();
    let older = std::fs::read(path("store.db")).unwrap();
    let looked = on(data.path(), &["fsck"]);
    assert_eq!(looked.status.code(), Some(2), "{}", err(&looked));
    for needle in ["an older Warren (schema 1)", "start the server"] {
        assert!(err(&looked).contains(needle), "{}", err(&looked));
    }
    assert_eq!(std::fs::read(path("store.db")).unwrap(), older);
    assert!(!path("store.db.schema-1").exists());

    let repaired = on(data.path(), &["fsck", "--repair"]);
    assert_eq!(repaired.status.code(), Some(0), "{}", err(&repaired));
    assert!(path("store.db.schema-1").exists());
    assert_eq!(on(data.path(), &["fsck"]).status.code(), Some(0));
}

#[test]
fn a_recovery_says_what_became_of_each_instance() {
    let double = Double::start(None);
    let answer = ask(&double, &["system", "recover"]);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    assert_eq!(
        out(&answer),
        "web: recorded again\ndb: recorded as it is\nold: deleted since, and forgotten\n"
    );
    assert!(
        double
            .requests()
            .contains(&"POST /system/recover?missing=forget".to_owned())
    );
    ask(&double, &["system", "recover", "--recreate"]);
    assert!(
        double
            .requests()
            .contains(&"POST /system/recover?missing=recreate".to_owned())
    );
}

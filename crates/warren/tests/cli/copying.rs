//! `warren cp` out of an instance whose guest lies: whatever comes, nothing is written beside the place that it is for.

use crate::double::Double;
use crate::{ask, err, lies};
use axum::Json;
use axum::extract::Path as Parameter;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `GET /instances/{id}/stat`: every path is a directory, or of another kind than what comes.
pub(crate) async fn stat(Parameter(lie): Parameter<String>) -> Json<Value> {
    let is_directory = lie != "changed";
    Json(json!({
        "exists": true, "is_dir": is_directory, "is_file": !is_directory, "is_symlink": false, "mode": 0o644, "size": 4,
    }))
}

/// `GET /instances/{id}/cp`, out of the instance.
pub(crate) async fn cp(Parameter(lie): Parameter<String>, socket: WebSocketUpgrade) -> Response {
    socket.on_upgrade(async move |mut socket| {
        let _ = tell(&mut socket, &lie).await;
    })
}

async fn tell(socket: &mut WebSocket, lie: &str) -> Result<(), axum::Error> {
    let text = |value: Value| Message::Text(value.to_string().into());
    let _start = socket.recv().await;
    let archive = lies::archive(lie);
    // In pieces that no header fits into.
    for piece in archive.chunks(100) {
        socket.send(Message::Binary(piece.to_vec().into())).await?;
    }
    match lie {
        "silent" => return socket.send(Message::Close(None)).await,
        "nonsense" => socket.send(text(json!({"type": "surprise"}))).await?,
        "out-of-turn" => {
            let result = json!({"type": "result", "success": true, "bytes_written": 0});
            socket.send(text(result)).await?;
        }
        "torn" => {
            // Without a word: as when the server dies.
            return Ok(());
        }
        _ => {}
    }
    socket
        .send(text(json!({"type": "end", "final": true})))
        .await
}

/// Everything in a directory but what is beneath `target`.
fn names_beside(world: &Path) -> Vec<String> {
    let names = std::fs::read_dir(world).unwrap();
    let mut names: Vec<String> = names
        .map(|name| name.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_instance_that_lies_gets_nothing_written_beside_the_place_that_it_is_for() {
    let double = Double::start(None);
    for (lie, code) in [
        ("parent", 1),
        ("deep", 1),
        ("absolute", 1),
        ("through", 1),
        ("twice", 1),
        ("hard", 1),
        ("above", 1),
        ("cut", 1),
        ("endless", 1),
        ("promises", 1),
        ("silent", 1),
        ("nonsense", 1),
        ("out-of-turn", 1),
        ("torn", 1),
        ("device", 0),
        ("escapes", 0),
        ("honest", 0),
    ] {
        let world = tempfile::tempdir().unwrap();
        let canary = world.path().join("canary");
        std::fs::write(&canary, "untouched").unwrap();
        let before = std::fs::metadata(&canary).unwrap();
        std::fs::create_dir(world.path().join("target")).unwrap();
        let source = format!("{lie}:/tree/.");
        let target = world.path().join("target");
        let copied = ask(&double, &["cp", &source, target.to_str().unwrap()]);
        let said = err(&copied);
        assert_eq!(copied.status.code(), Some(code), "{lie}: {said}");
        assert!(!said.contains('\u{1b}'), "{lie}: {said:?}");
        assert_eq!(names_beside(world.path()), ["canary", "target"], "{lie}");
        let after = std::fs::metadata(&canary).unwrap();
        assert_eq!(
            (after.ino(), after.nlink(), after.mode(), after.mtime_nsec()),
            (before.ino(), 1, before.mode(), before.mtime_nsec()),
            "{lie}"
        );
        assert_eq!(std::fs::read(&canary).unwrap(), b"untouched", "{lie}");
        for name in names_beside(&target) {
            assert!(!name.starts_with(".warren-part-"), "{lie}: {name}");
            let seen = std::fs::symlink_metadata(target.join(&name)).unwrap();
            let is_ordinary = seen.is_file() || seen.is_dir() || seen.is_symlink();
            assert!(is_ordinary, "{lie}: {name}");
            // A file is there whole.
            if seen.is_file() {
                assert_eq!(std::fs::read(target.join(&name)).unwrap(), b"evil", "{lie}");
            }
        }
    }
}

#[test]
fn a_file_that_became_a_tree_takes_the_place_of_nothing_else() {
    let double = Double::start(None);
    let world = tempfile::tempdir().unwrap();
    let target = world.path().join("file");
    std::fs::write(&target, "kept").unwrap();
    // Told to be a file, it is sent as a tree that has one.
    let copied = ask(&double, &["cp", "changed:/x", target.to_str().unwrap()]);
    assert_eq!(copied.status.code(), Some(1), "{}", err(&copied));
    assert_eq!(std::fs::read(&target).unwrap(), b"kept");
    assert_eq!(names_beside(world.path()), ["file"]);
}

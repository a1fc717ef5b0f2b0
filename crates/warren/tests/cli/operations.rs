//! `warren operations`: the list, and the word that ends one.

use super::*;
use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};

fn one(id: &str, kind: &str, state: &str) -> Value {
    json!({"id": id, "kind": kind, "subject": format!("{kind}\u{1b}[2J:1"), "state": state,
           "created_at": "2026-01-01T00:00:00Z"})
}

pub(crate) fn list() -> Value {
    let mut pull = one("op-1", "pull", "running");
    pull["phase"] = json!("downloading");
    pull["bytes_done"] = json!(512);
    pull["bytes_total"] = json!(2048);
    let mut failed = one("op-2", "push", "failed");
    failed["error"] = json!({"code": "registry_unreachable", "message": "nobody listens"});
    json!([pull, failed, one("op-3", "save", "queued")])
}

pub(crate) async fn cancel(Path(id): Path<String>) -> Response {
    match id.as_str() {
        "op-1" => Json(one("op-1", "pull", "cancelled")).into_response(),
        "op-3" => Json(one("op-3", "save", "succeeded")).into_response(),
        _ => double::problem(404, "operation_not_found", "there is no such operation"),
    }
}

#[test]
fn operations_are_listed_with_their_progress() {
    let double = Double::start(None);
    let table = out(&ask(&double, &["operations"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("ID     KIND   SUBJECT"), "{table}");
    for part in ["op-1", "pull", "downloading", "512 B of 2.0 KiB (25 %)"] {
        assert!(lines[1].contains(part), "{part}: {table}");
    }
    assert!(lines[2].contains("queued"), "{table}");
    assert!(!table.contains('\u{1b}'), "a reference drives the terminal");
    let all = out(&ask(&double, &["ops", "--all"]));
    assert!(all.contains("failed: nobody listens"), "{all}");
    assert_eq!(out(&ask(&double, &["operations", "-q"])), "op-1\nop-3\n");
    let json: Value =
        serde_json::from_str(&out(&ask(&double, &["operations", "-o", "json"]))).unwrap();
    assert_eq!(json[0]["bytes_total"], 2048);
    assert_eq!(json.as_array().unwrap().len(), 2);
}

#[test]
fn cancelling_fails_for_what_was_not_cancelled() {
    let double = Double::start(None);
    let done = ask(&double, &["operations", "cancel", "op-1"]);
    assert_eq!(
        (done.status.code(), out(&done).as_str()),
        (Some(0), "op-1\n")
    );
    let late = ask(&double, &["operations", "cancel", "op-3"]);
    assert_eq!((late.status.code(), out(&late).as_str()), (Some(1), ""));
    assert!(err(&late).contains("done before"), "{}", err(&late));
    let some = ask(
        &double,
        &["operations", "cancel", "op-1", "op-9", "-o", "json"],
    );
    assert_eq!(some.status.code(), Some(1));
    assert!(err(&some).contains("no such operation") && err(&some).contains("1 of 2 failed"));
    let json: Value = serde_json::from_str(&out(&some)).unwrap();
    assert_eq!(json[0]["state"], "cancelled");
    let mut asked = double.requests();
    asked.sort(); // Several are asked for at once, and come in either order.
    assert_eq!(
        asked,
        [
            "DELETE /operations/op-1",
            "DELETE /operations/op-1",
            "DELETE /operations/op-3",
            "DELETE /operations/op-9"
        ]
    );
    let usage = ask(&double, &["operations", "cancel"]);
    assert_eq!(usage.status.code(), Some(2));
}

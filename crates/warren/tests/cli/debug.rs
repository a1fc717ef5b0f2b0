//! `warren debug bundle`: the archive goes where it should.

use super::*;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};

const ARCHIVE: &[u8] = b"\x1f\x8b an archive";

pub(crate) async fn bundle(Path(id): Path<String>) -> Response {
    match id.as_str() {
        "web" => ARCHIVE.into_response(),
        _ => double::problem(404, "instance_not_found", "there is no instance"),
    }
}

#[test]
fn a_bundle_goes_to_a_file_or_a_pipe() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let ask_here = |words: &[&str]| {
        let mut command = warren(home.path());
        command.current_dir(home.path());
        command.args(["--server", &double.url]).args(words);
        command.output().unwrap()
    };
    let usual = ask_here(&["debug", "bundle", "web"]);
    assert_eq!(usual.status.code(), Some(0), "{}", err(&usual));
    assert_eq!(out(&usual), "warren-debug-web.tar.gz\n");
    let file = home.path().join("warren-debug-web.tar.gz");
    assert_eq!(std::fs::read(&file).unwrap(), ARCHIVE);
    assert!(
        err(&usual).contains("look through its logs"),
        "{}",
        err(&usual)
    );

    let named = home.path().join("b.tgz");
    let words = ["debug", "bundle", "web", "-o", "json", "--file"];
    let answer = ask_here(&[&words[..], &[named.to_str().unwrap()]].concat());
    let json: Value = serde_json::from_str(&out(&answer)).unwrap();
    assert_eq!(json["bytes"], ARCHIVE.len());
    assert_eq!(std::fs::read(&named).unwrap(), ARCHIVE);

    let piped = ask_here(&["debug", "bundle", "web", "-f", "-"]);
    assert_eq!(
        (piped.status.code(), piped.stdout.as_slice()),
        (Some(0), ARCHIVE)
    );

    let missing = ask_here(&["debug", "bundle", "nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!home.path().join("warren-debug-nobody.tar.gz").exists());
}

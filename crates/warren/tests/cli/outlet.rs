//! Images on their way out: whole or not at all, and never to a terminal.

use super::double::Double;
use super::skip::skip;
use super::{ask, ended, err, interrupt, out, warren};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// The double's archive: of a layout; cut off, or without an end, where an image is called so.
pub(crate) async fn save(Json(body): Json<Value>) -> Response {
    let names = body["names"].to_string();
    let whole = layout();
    if names.contains("endless") {
        let pieces = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 1000])));
        let pieces = pieces.then(async |piece| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            piece
        });
        return Body::from_stream(pieces).into_response();
    }
    if names.contains("broken") {
        let cut = Ok(Bytes::from(whole[..700].to_vec()));
        let end = Err(std::io::Error::other("the disk is gone"));
        let headers = [("content-length", whole.len().to_string())];
        return (headers, Body::from_stream(stream::iter([cut, end]))).into_response();
    }
    whole.into_response()
}

fn layout() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in [
        ("oci-layout", "{}"),
        ("index.json", "[]"),
        ("blobs/", ""),
        ("blobs/sha256/", ""),
        ("blobs/sha256/aa", "a blob"),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder
            .append_data(&mut header, name, text.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_archive_goes_to_a_file_or_a_pipe_as_it_came() {
    let double = Double::start(None);
    let piped = ask(&double, &["save", "app:1", "app:2"]);
    assert_eq!(piped.status.code(), Some(0), "{}", err(&piped));
    assert!(piped.stdout == layout());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.tar");
    std::fs::write(&file, "an older one").unwrap();
    let path = file.to_str().unwrap();
    let saved = ask(
        &double,
        &["save", "app:1", "-f", path, "--format", "docker-archive"],
    );
    assert_eq!(saved.status.code(), Some(0), "{}", err(&saved));
    assert_eq!(out(&saved), format!("{path}\n"));
    assert!(std::fs::read(&file).unwrap() == layout());
    let json = ask(&double, &["save", "app:1", "--file", path, "-o", "json"]);
    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(json, json!({"file": path, "bytes": layout().len()}));
    assert_eq!(names(directory.path()), ["app.tar"]);
    // A pipe is written and not replaced.
    let through = ask(&double, &["save", "app:1", "--file", "/dev/null"]);
    assert_eq!(through.status.code(), Some(0), "{}", err(&through));
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_layout_directory_is_made_anew() {
    let double = Double::start(None);
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let path = layout.to_str().unwrap();
    let words = ["save", "app:1", "--format", "oci-dir", "-f", path];
    let saved = ask(&double, &words);
    assert_eq!(saved.status.code(), Some(0), "{}", err(&saved));
    assert_eq!(names(&layout), ["blobs", "index.json", "oci-layout"]);
    let blob = std::fs::read_to_string(layout.join("blobs/sha256/aa"));
    assert_eq!(blob.unwrap(), "a blob");
    let again = ask(&double, &words);
    assert_eq!(again.status.code(), Some(1));
    assert!(err(&again).contains("there already"), "{}", err(&again));
    let nowhere = ask(&double, &["save", "app:1", "--format", "oci-dir"]);
    assert!(err(&nowhere).contains("--file"), "{}", err(&nowhere));
    assert_eq!(names(directory.path()), ["layout"]);
}

#[test]
fn what_breaks_off_leaves_nothing_and_what_was_there() {
    let double = Double::start(None);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.tar");
    std::fs::write(&file, "an older one").unwrap();
    let path = file.to_str().unwrap();
    let layout = directory.path().join("layout");
    for words in [
        vec!["save", "broken", "-f", path],
        vec!["save", "broken", "--format", "oci-dir", "-f"],
    ] {
        let mut words = words;
        if words.last() == Some(&"-f") {
            words.push(layout.to_str().unwrap());
        }
        let broken = ask(&double, &words);
        assert_eq!(broken.status.code(), Some(1), "{words:?}");
        assert_eq!(names(directory.path()), ["app.tar"], "{}", err(&broken));
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "an older one");
    let nowhere = ask(&double, &["save", "app", "-f", "/nowhere/app.tar"]);
    assert!(err(&nowhere).contains("/nowhere"), "{}", err(&nowhere));
}

#[test]
fn a_full_disk_is_told_and_nothing_stays_on_it() {
    let double = Double::start(None);
    let full = ask(&double, &["save", "app", "-f", "/dev/full"]);
    assert_eq!(full.status.code(), Some(1));
    assert!(err(&full).contains("No space left"), "{}", err(&full));
}

#[test]
fn ctrl_c_leaves_no_half_file() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.tar");
    let mut process = warren(home.path())
        .args(["--server", &double.url, "save", "endless", "-f"])
        .arg(&file)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while names(directory.path()).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(names(directory.path()).len(), 1, "it has begun");
    interrupt(&process);
    assert_eq!(ended(&mut process), Some(130));
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

/// Where the double's disk has something, and what; it is 1 MiB.
const DISK: [(usize, &[u8]); 2] = [(4096, &[7; 4096]), (1 << 19, &[9; 512])];

/// A sparse file as GNU tar's PAX form 1.0 has it.
pub(crate) async fn export(Json(body): Json<Value>) -> Response {
    let mut map = format!("{}\n", DISK.len()).into_bytes();
    let mut data: Vec<u8> = Vec::new();
    for (at, bytes) in DISK {
        map.extend(format!("{at}\n{}\n", bytes.len()).into_bytes());
        data.extend(bytes);
    }
    map.resize(512, 0);
    map.extend(data);
    let mut builder = tar::Builder::new(Vec::new());
    let size = (1 << 20).to_string();
    builder
        .append_pax_extensions([
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"disk.raw"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(map.len() as u64);
    builder
        .append_data(&mut header, "GNUSparseFile.0/disk.raw", map.as_slice())
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    if body["name"] == "cut" {
        bytes.truncate(4000);
    }
    bytes.into_response()
}

#[test]
fn a_disk_has_its_holes_and_is_there_when_it_is_whole() {
    use std::os::unix::fs::MetadataExt;
    let double = Double::start(None);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk.raw");
    let path = file.to_str().unwrap();
    let words = [
        "image", "export", "app:1", path, "--size", "1M", "-o", "json",
    ];
    let exported = ask(&double, &words);
    assert_eq!(exported.status.code(), Some(0), "{}", err(&exported));
    let json: Value = serde_json::from_str(&out(&exported)).unwrap();
    assert_eq!(
        json,
        json!({"file": path, "format": "raw", "size_bytes": 1 << 20})
    );
    let mut wanted = vec![0; 1 << 20];
    for (at, bytes) in DISK {
        wanted[at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert!(std::fs::read(&file).unwrap() == wanted);
    assert!(file.metadata().unwrap().blocks() * 512 < 64 << 10);
    let cut = ask(
        &double,
        &["image", "export", "cut", path, "--format", "ext4"],
    );
    assert_eq!(cut.status.code(), Some(1));
    assert!(std::fs::read(&file).unwrap() == wanted, "{}", err(&cut));
    assert_eq!(names(directory.path()), ["disk.raw"]);
    for place in ["-", "/dev/null"] {
        let refused = ask(&double, &["image", "export", "app", place]);
        assert!(err(&refused).contains("is no file"), "{}", err(&refused));
    }
}

#[test]
fn qcow2_is_made_where_it_can_be() {
    let double = Double::start(None);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk.qcow2");
    let home = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    let export = |path: &str| {
        let mut command = warren(home.path());
        command.args(["--server", &double.url, "image", "export", "app"]);
        command.arg(&file).env("PATH", path).output().unwrap()
    };
    let without = export("/nowhere");
    assert_eq!(without.status.code(), Some(1));
    assert!(err(&without).contains("qemu-utils"), "{}", err(&without));
    assert_eq!(double.requests().len(), 0, "nothing was fetched");
    // One that fails, as on a full disk.
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("qemu-img");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] || { echo broken >&2; exit 3; }\n";
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let failed = export(&format!("{}:/usr/bin:/bin", tools.path().display()));
    assert_eq!(failed.status.code(), Some(1));
    assert!(err(&failed).contains("broken"), "{}", err(&failed));
    assert_eq!(names(directory.path()), Vec::<String>::new());
    if !std::path::Path::new("/usr/bin/qemu-img").exists() {
        return skip("qcow2_is_made_where_it_can_be", "qemu-img is not installed");
    }
    let made = export("/usr/bin:/bin");
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    assert_eq!(names(directory.path()), ["disk.qcow2"]);
    let mut info = std::process::Command::new("qemu-img");
    let info = info.args(["info", "--output=json"]).arg(&file).output();
    let info: Value = serde_json::from_slice(&info.unwrap().stdout).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], 1 << 20);
}

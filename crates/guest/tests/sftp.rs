//! The agent's SFTP server with OpenSSH's own client at the other end, started as the guest starts it.
#![cfg(feature = "agent")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/skip.rs"]
mod skip;

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use warren_guest::sftp::{self, Request};

/// Lets the client carry out these commands in `home`; `None` where there is no client.
fn sftp(test: &str, home: &Path, commands: &str) -> Option<Output> {
    let server = format!("{} sftp-server", env!("CARGO_BIN_EXE_warren-guest"));
    let client = Command::new("sftp")
        .args(["-q", "-b", "-", "-D", &server])
        .current_dir(home)
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut client) = client else {
        skip::skip(test, "there is no sftp (openssh-client)");
        return None;
    };
    let mut input = client.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    Some(client.wait_with_output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_stock_client_moves_files_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let (home, here) = (directory.path().join("home"), directory.path().join("here"));
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(here.join("tree/deep")).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(here.join("large"), &large).unwrap();
    fs::set_permissions(here.join("large"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(here.join("tree/deep/empty"), b"").unwrap();
    fs::write(here.join("tree/a name with 'signs'"), b"x").unwrap();
    let here = here.display();
    let commands = format!(
        "put -p {here}/large large\nput -R {here}/tree tree\nget -p large {here}/back\nget -R tree {here}/tree-back\n"
    );
    let Some(done) = sftp("the_stock_client_moves_files_both_ways", &home, &commands) else {
        return;
    };
    assert!(done.status.success(), "{}", text(&done.stderr));
    for copy in [home.join("large"), directory.path().join("here/back")] {
        assert_eq!(fs::read(&copy).unwrap(), large);
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o751);
        let original = fs::metadata(directory.path().join("here/large")).unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().mtime(), original.mtime());
    }
    let back = directory.path().join("here/tree-back");
    assert_eq!(fs::read(back.join("deep/empty")).unwrap(), b"");
    assert_eq!(fs::read(back.join("a name with 'signs'")).unwrap(), b"x");
}

#[test]
fn the_stock_clients_commands_do_what_they_say() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("one"), b"1").unwrap();
    fs::write(home.join("two"), b"22").unwrap();
    fs::write(home.join(std::ffi::OsStr::from_bytes(b"no\xfftext")), b"").unwrap();
    let commands = "\
mkdir made\nchmod 640 one\nln one linked\nln -s one soft\nrename two made/two\nls -l\nls -l made\npwd\ndf .\n\
mkdir empty\nrmdir empty\nsymlink nowhere dangling\nls -la .\n";
    let Some(done) = sftp(
        "the_stock_clients_commands_do_what_they_say",
        home,
        commands,
    ) else {
        return;
    };
    assert!(done.status.success(), "{}", text(&done.stderr));
    let (one, linked) = (
        fs::metadata(home.join("one")).unwrap(),
        fs::metadata(home.join("linked")).unwrap(),
    );
    assert_eq!((one.mode() & 0o7777, one.ino()), (0o640, linked.ino()));
    assert_eq!(fs::read_link(home.join("soft")).unwrap(), Path::new("one"));
    assert_eq!(fs::read(home.join("made/two")).unwrap(), b"22");
    assert!(!home.join("empty").exists());
    let said = text(&done.stdout);
    assert!(said.contains("-rw-r-----    2 "), "{said}");
    assert!(said.contains(" dangling"), "{said}");
    assert!(
        said.contains(&format!("Remote working directory: {}", home.display())),
        "{said}"
    );
    assert!(said.contains("%Capacity"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::create_dir(home.join("full")).unwrap();
    fs::write(home.join("full/file"), b"kept").unwrap();
    for (command, words) in [
        ("get missing /dev/null", "not found"),
        ("rmdir full", "Failure"),
        ("rm full", "Failure"),
        ("mkdir full", "Failure"),
        ("ls full/file/deeper", "not found"),
        ("chmod 600 missing", "No such file"),
    ] {
        let Some(done) = sftp(
            "what_cannot_be_done_is_said_and_changes_nothing",
            home,
            command,
        ) else {
            return;
        };
        let said = text(&done.stderr);
        assert!(
            !done.status.success() && said.contains(words),
            "{command}: {said}"
        );
        assert_eq!(fs::read(home.join("full/file")).unwrap(), b"kept");
    }
}

#[test]
fn a_reply_to_each_request_comes_in_order() {
    let packet = |kind: u8, id: u32, fields: &[u8]| {
        let mut packet = vec![kind];
        packet.extend(id.to_be_bytes());
        packet.extend(fields);
        let mut sent = u32::try_from(packet.len()).unwrap().to_be_bytes().to_vec();
        sent.extend(packet);
        sent
    };
    let mut input = vec![0, 0, 0, 5, 1, 0, 0, 0, 3];
    // A read of a handle that nobody has, an unknown request, an extension that is not there, a limit.
    input.extend(packet(
        5,
        7,
        &[0, 0, 0, 4, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ));
    input.extend(packet(99, 8, &[]));
    input.extend(packet(200, 9, b"\0\0\0\x01x"));
    let mut output = Vec::new();
    sftp::serve(&input[..], &mut output, Path::new("/")).unwrap();
    let mut replies = Vec::new();
    let mut rest = &output[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let (reply, after) = after.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
        replies.push(reply.to_vec());
        rest = after;
    }
    assert_eq!(replies[0][..5], [2, 0, 0, 0, 3]);
    for (reply, (id, code)) in replies[1..].iter().zip([(7, 4), (8, 8), (9, 8)]) {
        assert_eq!(reply[..9], [101, 0, 0, 0, id, 0, 0, 0, code]);
    }
    assert_eq!(replies.len(), 4);
    for broken in [
        &[0, 0, 0, 0][..],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 1, 3],
        &[0, 0],
    ] {
        assert!(
            sftp::serve(broken, Vec::new(), Path::new("/")).is_err(),
            "{broken:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_packet_makes_the_parser_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&packet);
    }
}

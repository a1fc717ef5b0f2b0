//! Archives of a tree that would do harm to who unpacks them as they are: included by path by the tests of who is to be trusted with
//! none of them. A file beside the place to unpack to is called `canary`.

use std::io::Write as _;
use warren_tar::{Entry, EntryKind, Writer};

/// The archive that tells this lie.
pub(crate) fn archive(lie: &str) -> Vec<u8> {
    let file = |path: &str, size: u64| {
        let segments = None;
        Entry::plain(path, EntryKind::File { size, segments })
    };
    let link = |path: &str, target: &str| Entry::plain(path, EntryKind::Symlink(target.into()));
    let hard = |path: &str, target: &str| Entry::plain(path, EntryKind::HardLink(target.into()));
    let directory = |path: &str| Entry::plain(path, EntryKind::Directory);
    let entries = match lie {
        "parent" => vec![file("../canary", 4)],
        "deep" => vec![directory("a/"), file("a/../../../canary", 4)],
        "absolute" => vec![file("/canary", 4)],
        "through" => vec![link("a", ".."), file("a/canary", 4)],
        "twice" => vec![link("a", "../canary"), directory("a/"), file("a/x", 4)],
        "hard" => vec![hard("a", "../canary"), file("a", 4)],
        "above" => vec![file("..", 4)],
        "device" => vec![
            Entry::plain("null", EntryKind::Character(1, 3)),
            file("x", 4),
        ],
        "escapes" => vec![
            Entry::plain("pipe\u{1b}]0;owned\u{7}\n", EntryKind::Fifo),
            file("x", 4),
        ],
        "names" => vec![
            Entry::plain("pipe\u{1b}]0;owned\u{7}\n", EntryKind::Fifo),
            file("..", 4),
        ],
        "promises" => vec![file("x", 1 << 62)],
        _ => vec![file("x", 4)],
    };
    let mut archive = Vec::new();
    let mut writer = Writer::new(&mut archive);
    let written = entries.iter().try_for_each(|entry| {
        writer.entry(entry)?;
        let data = b"evil".repeat(usize::from(entry.kind.stored() > 0));
        writer.write_all(&data)
    });
    written
        .and_then(|()| match lie {
            "promises" => Ok(()),
            _ => writer.finish().map(drop),
        })
        .unwrap();
    match lie {
        "cut" => archive.truncate(514),
        "endless" => archive.truncate(archive.len() - warren_tar::END),
        _ => {}
    }
    archive
}

//! The layer that a commit makes of an instance's disk, where its guest can have written any byte.
#![no_main]

use std::fs::File;
use std::io::{self, Write};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{in_memory, limits, open_up};
use warren_image::erofs;
use warren_image::fuzzing::{has_changes, write_changes};
use warren_image::merge::Merge;
use warren_tar as tar;

/// A layer may be as large as the disk's files say, which take no room on it.
const LAYER: usize = 4 << 20;
/// For the headers of one entry.
const HEADERS: u64 = 16 << 20;

/// What the instance runs from: the directories that a boot makes where there are none, and a file to be removed.
static IMAGE: LazyLock<File> = LazyLock::new(|| {
    let mut archive = tar::Writer::new(Vec::new());
    for name in ["etc/", "proc/", "d/", "opq/", "gone"] {
        let kind = match name.ends_with('/') {
            true => tar::EntryKind::Directory,
            false => tar::EntryKind::Fifo,
        };
        let entry = tar::Entry {
            path: name.into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: erofs::Timestamp {
                seconds: 0,
                nanoseconds: 0,
            },
            xattrs: Vec::new(),
        };
        archive.entry(&entry).expect("memory takes it");
    }
    let layer = archive.finish().expect("memory takes it");
    let mut merge = Merge::new(in_memory(&[]), limits());
    merge.layer(layer.as_slice()).expect("it is a layer");
    merge.finish([7; 16]).expect("it is an image").0
});

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let mut disk = bytes.to_vec();
    if choice & 1 == 1 {
        open_up(&mut disk);
    }
    let image = || {
        let file = IMAGE.try_clone().expect("there are descriptors");
        erofs::Reader::open(file).expect("it is an image")
    };
    let base = || (choice & 2 == 2).then(image);
    let made = || write_changes(in_memory(&disk), base(), limits(), Bounded::default());
    let Some(layer) = made() else {
        return;
    };
    let again = made().expect("what was read can be read again");
    assert!(layer.0 == again.0, "the same disk gives the same layer");
    let entries = read_back(&layer.0);
    assert!(entries <= limits().entries);
    let changed = has_changes(in_memory(&disk), base(), limits());
    assert_eq!(changed, Some(entries > 0), "it is known beforehand");
});

/// Everything in the layer means something, and nothing in it leaves its tree; how many entries it has.
fn read_back(layer: &[u8]) -> u64 {
    let mut archive = tar::Reader::new(layer, HEADERS);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry().expect("what is written can be read") {
        let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let mut parts = path.split(|byte| *byte == b'/');
        assert!(path == b"." || parts.all(|part| !matches!(part, b"" | b"." | b"..")));
        entries += 1;
    }
    entries
}

/// Takes so many bytes and no more.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LAYER {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

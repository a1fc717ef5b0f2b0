//! The tar reader by itself: headers, PAX records, ACLs, sparse maps, and what it says of them.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::sealed;
use warren_tar::{EntryKind, Reader};

const HEADERS: u64 = 16 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let archive = match choice & 1 {
        0 => bytes.to_vec(),
        _ => sealed(bytes),
    };
    let mut reader = Reader::new(archive.as_slice(), HEADERS);
    let mut entries = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        entries += 1;
        assert!(entry.mode <= 0o7777 && entry.mtime.nanoseconds < 1_000_000_000);
        let mut names: Vec<&[u8]> = entry.xattrs.iter().map(|(name, _)| &name[..]).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        if let EntryKind::File { size, segments } = entry.kind {
            let stored = match segments {
                None => size,
                Some(segments) => {
                    let mut end = 0;
                    for segment in &segments {
                        assert!(segment.offset >= end);
                        end = segment.offset + segment.length;
                    }
                    assert!(end <= size);
                    segments.iter().map(|segment| segment.length).sum()
                }
            };
            // Every other file is skipped unread.
            if entries % 2 == 0 {
                let mut data = Vec::new();
                let read = reader.by_ref().take(1 << 20).read_to_end(&mut data);
                assert!(read.is_err() || data.len() as u64 <= stored);
            }
        }
    }
    assert!(entries <= archive.len() / 512);
});

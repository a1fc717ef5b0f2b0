//! Archives from guests: read to their end, and unpacked. Whatever they say, nothing lands beside the place they are for.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use warren_tree::archive::ArchiveReader;
use warren_tree::{Links, Owners, Root, Rules, Specials, unpack};

fuzz_target!(|input: &[u8]| {
    let mut archive = ArchiveReader::new(input);
    let mut piece = [0; 4096];
    let mut content = 0u64;
    while let Ok(Some(entry)) = archive.next_entry() {
        let stored = entry.kind.stored();
        let mut read = 0;
        while let Ok(count @ 1..) = archive.content(&mut piece) {
            read += count as u64;
        }
        assert!(read <= stored, "no more than was announced");
        content += read;
    }
    assert!(content <= input.len() as u64);
    let world = tempfile::tempdir().expect("there is room for a directory");
    let inside = world.path().join("inside");
    std::fs::create_dir(&inside).expect("there is room for a directory");
    std::fs::write(world.path().join("canary"), "untouched").expect("there is room for a file");
    let rules = Rules {
        owners: Owners::Own,
        specials: Specials::LeftOut,
    };
    let root = Root::open(&inside, Links::Refused).expect("it was just made");
    let _ = unpack(&root, Path::new("."), rules, input);
    let canary = std::fs::read(world.path().join("canary")).expect("it is still there");
    assert_eq!(canary, b"untouched");
    let names = std::fs::read_dir(world.path()).expect("it is still there");
    assert_eq!(names.count(), 2, "nothing lands outside");
});

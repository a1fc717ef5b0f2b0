//! Archives from guests, unpacked. Whatever they say, nothing lands beside the place they are for.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::sealed;
use warren_tree::{Links, Owners, Root, Rules, Specials, unpack};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let archive = match choice & 1 {
        0 => bytes.to_vec(),
        _ => sealed(bytes),
    };
    let world = tempfile::tempdir().expect("there is room for a directory");
    let inside = world.path().join("inside");
    std::fs::create_dir(&inside).expect("there is room for a directory");
    std::fs::write(world.path().join("canary"), "untouched").expect("there is room for a file");
    let rules = Rules {
        owners: Owners::Own,
        specials: Specials::LeftOut,
    };
    let root = Root::open(&inside, Links::Refused).expect("it was just made");
    let _ = unpack(&root, Path::new("."), rules, archive.as_slice());
    let canary = std::fs::read(world.path().join("canary")).expect("it is still there");
    assert_eq!(canary, b"untouched");
    let names = std::fs::read_dir(world.path()).expect("it is still there");
    assert_eq!(names.count(), 2, "nothing lands outside");
});

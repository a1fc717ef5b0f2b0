//! The merge of one or two layers, and the image that comes out of it, which must be whole.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{in_memory, limits, sealed};
use warren_image::erofs::{FileType, Reader};
use warren_image::merge::Merge;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let archive = match choice & 1 {
        0 => bytes.to_vec(),
        _ => sealed(bytes),
    };
    // Cut at a block's border, so that both halves begin with what may be a header.
    let cut = (usize::from(choice >> 1) * 512).min(archive.len());
    let (lower, upper) = archive.split_at(cut);
    let (Some(first), Some(second)) = (merged(lower, upper), merged(lower, upper)) else {
        return;
    };
    assert_eq!(first, second, "the same layers give the same image");
});

fn merged(lower: &[u8], upper: &[u8]) -> Option<Vec<u8>> {
    let limits = limits();
    let mut merge = Merge::new(in_memory(&[]), limits);
    for layer in [lower, upper] {
        merge.layer(layer).ok()?;
    }
    let (file, merged) = merge.finish([7; 16]).ok()?;
    assert!(merged.entries <= limits.entries);
    let size = file.metadata().ok()?.len();
    assert!(size <= limits.image_bytes && size.is_multiple_of(4096));
    let mut bytes = vec![0; usize::try_from(size).ok()?.min(1 << 16)];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).ok()?;
    read_back(file, merged.image.inodes);
    Some(bytes)
}

fn read_back(file: std::fs::File, inodes: u64) {
    let reader = Reader::open(file).expect("what is written can be read");
    let mut nids = HashSet::new();
    for found in reader.walk() {
        let node = found.expect("directories are whole").node;
        reader.xattrs(&node).expect("attributes are whole");
        match node.file_type {
            FileType::Symlink => drop(reader.target(&node).expect("it has a target")),
            FileType::Regular => {
                let mut data = reader.data(&node).expect("it is a file");
                data.next_data(0).expect("its map is whole");
            }
            _ => {}
        }
        nids.insert(node.nid);
    }
    assert_eq!(nids.len() as u64, inodes);
}

//! The reader of EROFS images: damaged ones, and such as no writer would make.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::in_memory;
use warren_image::erofs::Reader;

/// A sparse file may be as large as numbers are.
const DATA: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let mut image = bytes.to_vec();
    if choice & 1 == 1 {
        open_up(&mut image);
    }
    let Ok(reader) = Reader::open(in_memory(&image)) else {
        return;
    };
    assert!(reader.size() <= image.len() as u64);
    let (mut entries, mut left) = (0, DATA);
    for found in reader.walk() {
        let Ok(found) = found else {
            break;
        };
        entries += 1;
        assert!(!found.path.contains(&0));
        let xattrs = reader.xattrs(&found.node).unwrap_or_default();
        assert!(xattrs.len() <= image.len());
        if let Ok(target) = reader.target(&found.node) {
            assert_eq!(target.len() as u64, found.node.size);
        }
        if let Ok(mut data) = reader.data(&found.node) {
            let mut at = 0;
            // Each stretch lies behind the one before.
            for _ in 0..16 {
                let Ok(Some(stretch)) = data.next_data(at) else {
                    break;
                };
                assert!(stretch.offset >= at && stretch.length > 0);
                at = stretch.offset + stretch.length;
                assert!(at <= found.node.size);
            }
            let mut bytes = Vec::new();
            let whole = data.take(left).read_to_end(&mut bytes).is_ok();
            assert!(!whole || bytes.len() as u64 == found.node.size.min(left));
            left -= bytes.len() as u64;
        }
    }
    // An entry takes 12 bytes at least, and no directory is met twice.
    assert!(entries <= 1 + image.len() / 12);
});

/// Makes whole blocks of it, with a superblock that leads behind itself.
fn open_up(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(4096).max(4096), 0);
    let blocks = (image.len() / 4096) as u32;
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    // No checksum.
    image[1032..1036].fill(0);
    image[1036] = 12;
    image[1040..1048].copy_from_slice(&1u64.to_le_bytes());
    image[1060..1064].copy_from_slice(&blocks.to_le_bytes());
    image[1104..1108].copy_from_slice(&4u32.to_le_bytes());
    image[1110..1112].fill(0);
    image[1114] = 0;
}

//! The reader of ext4: disks that guests have written to, who can write any byte.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::open_up;
use warren_image::erofs::FileType;
use warren_image::ext4::Ext4;

/// A sparse file may be as large as numbers are.
const DATA: u64 = 1 << 20;
/// Names that one directory may have.
const NAMES: usize = 1 << 12;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let mut disk = bytes.to_vec();
    if choice & 1 == 1 {
        open_up(&mut disk);
    }
    let Ok(ext4) = Ext4::open(disk.as_slice()) else {
        return;
    };
    assert!(ext4.bytes() <= disk.len() as u64);
    let Ok(root) = ext4.root() else {
        return;
    };
    let (mut left, mut seen) = (DATA, BTreeSet::new());
    let mut pending = vec![root];
    while let Some(inode) = pending.pop() {
        // Whoever walks has to remember where it was: directories can be in each other.
        if !seen.insert(inode.number) {
            continue;
        }
        let xattrs = ext4.xattrs(&inode).unwrap_or_default();
        assert!(xattrs.iter().all(|(name, _)| !name.contains(&0)));
        match inode.file_type {
            FileType::Directory => {
                for (name, number) in ext4.entries(&inode, NAMES).unwrap_or_default() {
                    assert!(!name.is_empty() && !name.contains(&b'/') && name.len() <= 255);
                    if let Ok(inode) = ext4.inode(number) {
                        pending.push(inode);
                    }
                }
            }
            FileType::Symlink => {
                let target = ext4.symlink(&inode).unwrap_or_default();
                assert!(target.len() as u64 <= inode.size);
            }
            FileType::Regular => {
                let mut end = 0;
                for segment in ext4.segments(&inode).unwrap_or_default() {
                    // Each lies behind the one before, and in the file.
                    assert!(segment.offset >= end);
                    end = segment.offset + segment.bytes;
                    assert!(end <= inode.size);
                    let mut into = vec![0; segment.bytes.min(left) as usize];
                    let _ = ext4.read_segment(&segment, 0, &mut into);
                    left -= into.len() as u64;
                }
            }
            FileType::Character | FileType::Block | FileType::Fifo | FileType::Socket => {}
        }
    }
});

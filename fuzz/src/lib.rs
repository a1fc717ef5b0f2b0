//! What several targets share.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use warren_image::Limits;

/// A file of this content that is nowhere.
pub fn in_memory(content: &[u8]) -> File {
    let descriptor = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)
        .expect("a file in memory can be had");
    let mut file = File::from(descriptor);
    file.write_all(content)
        .expect("there is memory for an input");
    file
}

/// Small ones, so that every limit can be met by a small input.
pub fn limits() -> Limits {
    Limits {
        image_bytes: 16 << 20,
        unpacked_bytes: 8 << 20,
        entries: 256,
        file_bytes: 8 << 20,
        depth: 16,
        path_bytes: 512,
        ratio: 200,
        ratio_from: 1 << 20,
        xattr_bytes: 2048,
        header_bytes: 16 << 10,
        tree_memory: 2 << 20,
        layers: 4,
        time: Duration::from_secs(30),
    }
}

/// Right checksums in every block that looks like a header: mutations would hardly ever get past them.
pub fn sealed(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.as_chunks_mut::<512>().0 {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

/// Takes an ext4's checksums away, which would hide everything behind them.
pub fn open_up(disk: &mut [u8]) {
    const METADATA_CSUM: u8 = 0x4;
    if let Some(features) = disk.get_mut(1024 + 0x65) {
        *features &= !METADATA_CSUM;
    }
}

//! Groups: their descriptions and bitmaps.

use super::Plan;
use super::bytes::{put_halves, put_quarters, put16};
use super::geometry::{BLOCK, DESCRIPTOR, GROUP};
use super::tree::FIRST_INODE;
use crate::crc32c;
use crate::erofs::FileType;
use crate::ext4::format::ROOT_INODE;

/// `EXT4_BG_INODE_ZEROED`: nothing of the table is left to be cleared.
const INODES_ZEROED: u16 = 0x4;

impl Plan {
    pub(super) fn block_bitmap(&self, group: u64) -> Vec<u8> {
        let geometry = &self.geometry;
        let start = super::geometry::Geometry::start_of(group);
        let used = geometry.data_of(group) - start + self.layout.taken(geometry, group);
        let mut bitmap = vec![0; BLOCK as usize];
        set(&mut bitmap, 0, used);
        // What is behind the end cannot be used.
        set(&mut bitmap, geometry.end_of(group) - start, GROUP);
        bitmap
    }

    pub(super) fn inode_bitmap(&self, group: u64) -> Vec<u8> {
        let geometry = &self.geometry;
        let mut bitmap = vec![0; BLOCK as usize];
        set(
            &mut bitmap,
            0,
            geometry.inodes_used(group, self.tree.last()),
        );
        set(&mut bitmap, geometry.inodes_in_group, 8 * BLOCK);
        bitmap
    }

    pub(super) fn free_blocks(&self, group: u64) -> u64 {
        let free = self.geometry.end_of(group) - self.geometry.data_of(group);
        free - self.layout.taken(&self.geometry, group)
    }

    pub(super) fn free_inodes(&self, group: u64) -> u64 {
        let used = self.geometry.inodes_used(group, self.tree.last());
        self.geometry.inodes_in_group - used
    }

    /// Directories by the group of their inodes.
    fn directories(&self) -> Vec<u32> {
        let mut counts = vec![0; self.geometry.groups as usize];
        let mut count = |number: u32| {
            counts[(u64::from(number - 1) / self.geometry.inodes_in_group) as usize] += 1;
        };
        if self.layout.lost_and_found.is_some() {
            count(FIRST_INODE);
        }
        for (index, file) in self.tree.files.iter().enumerate() {
            if file.kind == FileType::Directory {
                count(self.tree.number(index as u32));
            }
        }
        debug_assert!(counts[0] > 0, "the root is {ROOT_INODE}");
        counts
    }

    /// All of them, to whole blocks.
    pub(super) fn descriptors(&self) -> Vec<u8> {
        let geometry = &self.geometry;
        let mut all = vec![0; (geometry.descriptor_blocks() * BLOCK) as usize];
        let directories = self.directories();
        let descriptors = all.chunks_mut(DESCRIPTOR as usize);
        for ((group, directories), raw) in (0..geometry.groups).zip(directories).zip(descriptors) {
            let bitmaps = geometry.bitmaps_of(group);
            put_halves(raw, 0x00, 0x20, bitmaps);
            put_halves(raw, 0x04, 0x24, bitmaps + 1);
            put_halves(raw, 0x08, 0x28, geometry.table_of(group));
            // A group has 32768 of anything at most.
            put_quarters(raw, 0x0c, 0x2c, self.free_blocks(group) as u32);
            let free_inodes = self.free_inodes(group) as u32;
            put_quarters(raw, 0x0e, 0x2e, free_inodes);
            put_quarters(raw, 0x10, 0x30, directories);
            put16(raw, 0x12, INODES_ZEROED);
            let blocks = crc32c::update(self.seed, &self.block_bitmap(group));
            put_quarters(raw, 0x18, 0x38, blocks);
            let inodes = &self.inode_bitmap(group)[..(geometry.inodes_in_group / 8) as usize];
            put_quarters(raw, 0x1a, 0x3a, crc32c::update(self.seed, inodes));
            // They are used from the first on.
            put_quarters(raw, 0x1c, 0x32, free_inodes);
            let seed = crc32c::update(self.seed, &(group as u32).to_le_bytes());
            let checksum = crc32c::update(seed, raw);
            put16(raw, 0x1e, checksum as u16);
        }
        all
    }
}

/// Sets the bits from `from` to below `to`.
fn set(bitmap: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

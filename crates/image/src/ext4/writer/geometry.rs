//! How large everything is: groups of 128 MiB, each with bitmaps and a table of inodes at its beginning, and copies of the
//! superblock in some (`sparse_super`).

use super::WriteError;
use super::tree::Tree;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// As many as a bitmap of one block has bits.
pub(super) const GROUP: u64 = 8 * BLOCK;
/// `sizeof(struct ext4_group_desc)` with 64 bits.
pub(super) const DESCRIPTOR: u64 = 64;
pub(super) const INODE: u64 = 256;
pub(super) const INODES_IN_BLOCK: u64 = BLOCK / INODE;
/// One inode for so many bytes, as `mke2fs` has it.
const BYTES_FOR_INODE: u64 = 16 << 10;
/// Blocks of file systems whose descriptors leave most of each group to data.
const MOST_BLOCKS: u64 = (16 << 40) / BLOCK;
/// Journals by the blocks of the file system, as `mke2fs` has them, in blocks.
const JOURNALS: [(u64, u64); 5] = [
    (4096 * 128, 16_384),
    (4096 * 64, 8192),
    (32_768, 4096),
    (2048, 1024),
    (0, 0),
];
/// Blocks of data that a last group must have to be worth its tables.
const WORTH: u64 = 64;
/// What `lost+found` has.
const LOST_AND_FOUND_BLOCKS: u64 = 1;
const MIB: u64 = (1 << 20) / BLOCK;
/// Room for more, where no size is given.
const ROOM: u64 = 256 * MIB;

/// The numbers of a file system; blocks where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_in_group: u64,
    pub(super) journal: u64,
}

impl Geometry {
    /// For a tree: of a size in bytes, or of what it needs and room for more.
    pub(super) fn for_tree(tree: &Tree, size: Option<u64>) -> Result<Self, WriteError> {
        let content = tree.blocks + LOST_AND_FOUND_BLOCKS;
        let inodes = u64::from(tree.last());
        let least = least(content, inodes);
        let wanted = match size {
            None => (least + ROOM.max(least / 4)).next_multiple_of(MIB),
            Some(size) => size / BLOCK,
        };
        if wanted > MOST_BLOCKS {
            return Err(WriteError::TooLarge);
        }
        let fitting = Geometry::of(wanted, inodes)
            .filter(|_| wanted >= least)
            .and_then(|geometry| geometry.with_journal(content));
        fitting.ok_or(WriteError::TooSmall {
            asked: size.unwrap_or(wanted * BLOCK),
            least: least * BLOCK,
        })
    }

    /// `None` where there would be no place for so many inodes.
    fn of(blocks: u64, inodes: u64) -> Option<Self> {
        let mut geometry = Geometry {
            blocks,
            groups: blocks.div_ceil(GROUP),
            inodes_in_group: 0,
            journal: 0,
        };
        let room = geometry.groups.checked_mul(GROUP)?;
        let wanted = (inodes + inodes / 4 + 16).max(blocks * BLOCK / BYTES_FOR_INODE);
        if inodes > room {
            return None;
        }
        let in_group = wanted.min(room).div_ceil(geometry.groups);
        geometry.inodes_in_group = in_group.next_multiple_of(INODES_IN_BLOCK);
        let last = geometry.groups - 1;
        if geometry.end_of(last) < geometry.data_of(last) + WORTH {
            // What is left over is no group.
            return match last {
                0 => None,
                last => Geometry::of(last * GROUP, inodes),
            };
        }
        Some(geometry)
    }

    /// With the largest journal that leaves room for what is to be kept.
    fn with_journal(mut self, content: u64) -> Option<Self> {
        let free = self.data_blocks().checked_sub(content)?;
        let fits = |(blocks, journal): &&(u64, u64)| self.blocks >= *blocks && *journal <= free;
        self.journal = JOURNALS.iter().find(fits)?.1;
        Some(self)
    }

    fn data_blocks(&self) -> u64 {
        (0..self.groups)
            .map(|group| self.end_of(group) - self.data_of(group))
            .sum()
    }

    /// Blocks of all descriptors together.
    pub(super) fn descriptor_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }

    /// Whether a group has a copy of the superblock and the descriptors.
    pub(super) fn has_superblock(group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || is_power_of(3) || is_power_of(5) || is_power_of(7)
    }

    pub(super) fn start_of(group: u64) -> u64 {
        group * GROUP
    }

    /// Where a group ends.
    pub(super) fn end_of(&self, group: u64) -> u64 {
        (Geometry::start_of(group) + GROUP).min(self.blocks)
    }

    /// Its bitmap of blocks; that of inodes follows, and then their table.
    pub(super) fn bitmaps_of(&self, group: u64) -> u64 {
        let copies = match Geometry::has_superblock(group) {
            true => 1 + self.descriptor_blocks(),
            false => 0,
        };
        Geometry::start_of(group) + copies
    }

    pub(super) fn table_of(&self, group: u64) -> u64 {
        self.bitmaps_of(group) + 2
    }

    /// Where a group has place for data.
    pub(super) fn data_of(&self, group: u64) -> u64 {
        self.table_of(group) + self.inodes_in_group / INODES_IN_BLOCK
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_in_group
    }

    /// How many inodes of a group are used when all up to `last` are.
    pub(super) fn inodes_used(&self, group: u64, last: u32) -> u64 {
        u64::from(last)
            .saturating_sub(group * self.inodes_in_group)
            .min(self.inodes_in_group)
    }
}

/// Blocks in which so much has room, to the MiB, and one of them for what cannot be told beforehand.
fn least(content: u64, inodes: u64) -> u64 {
    let mut blocks = content + WORTH;
    loop {
        let has_room = Geometry::of(blocks, inodes)
            .is_some_and(|geometry| geometry.blocks == blocks && geometry.data_blocks() >= content);
        if has_room {
            return (blocks + MIB).next_multiple_of(MIB);
        }
        // The tables of a group take a hundredth of it or more.
        blocks += (blocks / 256).max(MIB);
        if blocks > MOST_BLOCKS {
            return blocks;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn copies_are_where_sparse_super_has_them() {
        let copies: Vec<u64> = (0..130)
            .filter(|group| Geometry::has_superblock(*group))
            .collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn what_is_least_is_enough_for_every_larger_size() {
        for (content, inodes) in [(1, 11), (5000, 40_000), (40_000, 1_000_000), (900_000, 12)] {
            let least = least(content, inodes);
            for blocks in (least..least + 200_000).step_by(997) {
                let geometry = Geometry::of(blocks, inodes).unwrap();
                assert!(geometry.with_journal(content).is_some(), "{blocks}");
                assert!(geometry.inodes() >= inodes && geometry.blocks <= blocks);
            }
        }
    }
}

//! The superblock (`Documentation/filesystems/ext4/super.rst`), and that of the journal.

use super::Plan;
use super::bytes::{put_halves, put16, put32};
use super::geometry::{BLOCK, DESCRIPTOR, GROUP, INODE};
use super::inode::JOURNAL_INODE;
use super::tree::FIRST_INODE;
use crate::crc32c;
use crate::ext4::format::{MAGIC, SUPERBLOCK_BYTES, incompat, ro_compat};

/// Features that older programs may ignore: has_journal, ext_attr, dir_index.
const COMPAT: u32 = 0x4 | 0x8 | 0x20;
const INCOMPAT: u32 = incompat::FILETYPE | incompat::EXTENTS | incompat::BITS_64;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | ro_compat::METADATA_CSUM;
const HAS_JOURNAL: u32 = 0x4;
/// The second part of an inode.
pub(super) const EXTRA: u16 = 32;
/// `user_xattr` and `acl`.
const MOUNT_OPTIONS: u32 = 0xc;
/// Directories that get hash trees later: half MD4.
const HASH: u8 = 1;

impl Plan {
    /// With the number of the group it is in.
    pub(super) fn superblock(&self, group: u64) -> Vec<u8> {
        let geometry = &self.geometry;
        let mut raw = vec![0; SUPERBLOCK_BYTES];
        let free = |of: fn(&Plan, u64) -> u64| -> u64 {
            (0..geometry.groups).map(|group| of(self, group)).sum()
        };
        put32(&mut raw, 0x00, geometry.inodes() as u32);
        put_halves(&mut raw, 0x04, 0x150, geometry.blocks);
        put_halves(&mut raw, 0x0c, 0x158, free(Plan::free_blocks));
        put32(&mut raw, 0x10, free(Plan::free_inodes) as u32);
        // Blocks and clusters are 1024 bytes shifted by this.
        put32(&mut raw, 0x18, 2);
        put32(&mut raw, 0x1c, 2);
        put32(&mut raw, 0x20, GROUP as u32);
        put32(&mut raw, 0x24, GROUP as u32);
        put32(&mut raw, 0x28, geometry.inodes_in_group as u32);
        // It may be mounted for ever without a check.
        put16(&mut raw, 0x36, u16::MAX);
        put16(&mut raw, 0x38, MAGIC);
        // Clean; goes on after errors.
        put16(&mut raw, 0x3a, 1);
        put16(&mut raw, 0x3c, 1);
        // Revision 1: with inodes of other sizes and features.
        put32(&mut raw, 0x4c, 1);
        put32(&mut raw, 0x54, FIRST_INODE);
        put16(&mut raw, 0x58, INODE as u16);
        put16(&mut raw, 0x5a, group as u16);
        let compat = match geometry.journal {
            0 => COMPAT & !HAS_JOURNAL,
            _ => COMPAT,
        };
        put32(&mut raw, 0x5c, compat);
        put32(&mut raw, 0x60, INCOMPAT);
        put32(&mut raw, 0x64, RO_COMPAT);
        raw[0x68..0x78].copy_from_slice(&self.identity.uuid);
        raw[0xec..0xfc].copy_from_slice(&self.identity.hash_seed);
        raw[0xfc] = HASH;
        put16(&mut raw, 0xfe, DESCRIPTOR as u16);
        put32(&mut raw, 0x100, MOUNT_OPTIONS);
        put16(&mut raw, 0x15c, EXTRA);
        put16(&mut raw, 0x15e, EXTRA);
        // Names are hashed as signed bytes, as mke2fs has it on most machines.
        put32(&mut raw, 0x160, 1);
        // CRC-32C.
        raw[0x175] = 1;
        if geometry.journal > 0 {
            put32(&mut raw, 0xe0, JOURNAL_INODE);
            // A copy of its inode's blocks and size.
            raw[0xfd] = 1;
            let bytes = geometry.journal * BLOCK;
            raw[0x10c..0x148].copy_from_slice(&self.journal_extents());
            put_halves(&mut raw, 0x14c, 0x148, bytes);
        }
        let checksum = crc32c::update(!0, &raw[..0x3fc]);
        put32(&mut raw, 0x3fc, checksum);
        raw
    }

    /// The first block of a journal that has nothing to replay (`journal_superblock_t`; big-endian).
    pub(super) fn journal(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let mut put = |at: usize, value: u32| {
            block[at..at + 4].copy_from_slice(&value.to_be_bytes());
        };
        put(0x00, 0xc03b_3998);
        // Version 2.
        put(0x04, 4);
        put(0x0c, BLOCK as u32);
        put(0x10, self.geometry.journal as u32);
        // The log begins behind this block, with the first transaction.
        put(0x14, 1);
        put(0x18, 1);
        // One file system uses it.
        put(0x40, 1);
        block
    }
}

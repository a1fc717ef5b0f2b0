//! Inodes (`Documentation/filesystems/ext4/inodes.rst`).

use super::attributes::Encoded;
use super::bytes::{put_halves, put_quarters, put16, put32};
use super::extents::{self, Extent};
use super::geometry::{BLOCK, INODE};
use super::superblock::EXTRA;
use super::tree::{FIRST_INODE, File, LostAndFound, Place, SHORT_TARGET};
use super::{Plan, Reader, WriteError};
use crate::crc32c;
use crate::erofs::{FileType, Timestamp};
use crate::ext4::format::{ROOT_INODE, flag};

pub(super) const JOURNAL_INODE: u32 = 8;
/// A directory with more says that it has one.
const LINKS: u32 = 65_000;
/// What an inode has for blocks.
const BLOCKS_AT: usize = 0x28;
const BLOCKS_END: usize = 0x64;
/// Seconds that are written with 32 signed bits and 2 more.
const EARLIEST: i64 = i32::MIN as i64;
const LATEST: i64 = i32::MAX as i64 + (3 << 32);

impl Plan {
    /// The seed of the checksums of an inode and of its blocks; all generations are 0.
    pub(super) fn seed_of(&self, number: u32) -> u32 {
        let seed = crc32c::update(self.seed, &number.to_le_bytes());
        crc32c::update(seed, &[0; 4])
    }

    pub(super) fn journal_extents(&self) -> [u8; 60] {
        // A group or two hold the largest journal.
        extents::Tree::new(&self.layout.journal, &[]).root()
    }

    /// An inode by its number; zeros where it is none.
    pub(super) fn inode(&self, image: &Reader, number: u32) -> Result<[u8; 256], WriteError> {
        if let Some(index) = self.tree.index(number) {
            return self.file(image, index, number);
        }
        match (number, self.tree.lost_and_found) {
            (JOURNAL_INODE, _) if self.geometry.journal > 0 => {
                let root = self.journal_extents();
                let size = self.geometry.journal * BLOCK;
                Ok(self.own(number, 0o100_600, 1, size, root, image)?)
            }
            (FIRST_INODE, LostAndFound::Added) => {
                let block = self.layout.lost_and_found.unwrap_or_default();
                let extent = Extent {
                    logical: 0,
                    blocks: 1,
                    block,
                };
                let root = extents::Tree::new(&[extent], &[]).root();
                Ok(self.own(number, 0o040_700, 2, BLOCK, root, image)?)
            }
            _ => Ok([0; INODE as usize]),
        }
    }

    /// What no image has: root's, as old as the root directory.
    fn own(
        &self,
        number: u32,
        mode: u16,
        links: u16,
        size: u64,
        extents: [u8; 60],
        image: &Reader,
    ) -> Result<[u8; 256], WriteError> {
        let mut raw = [0; INODE as usize];
        put16(&mut raw, 0x00, mode);
        put16(&mut raw, 0x1a, links);
        put_halves(&mut raw, 0x04, 0x6c, size);
        put32(&mut raw, 0x1c, (size / 512) as u32);
        put32(&mut raw, 0x20, flag::EXTENTS);
        raw[BLOCKS_AT..BLOCKS_END].copy_from_slice(&extents);
        put_times(&mut raw, image.root()?.mtime);
        self.seal(&mut raw, number);
        Ok(raw)
    }

    fn file(&self, image: &Reader, index: u32, number: u32) -> Result<[u8; 256], WriteError> {
        let file = &self.tree.files[index as usize];
        let node = image.node(file.nid)?;
        let mut raw = [0; INODE as usize];
        put16(&mut raw, 0x00, file.kind.mode_bits() | node.permissions);
        put_quarters(&mut raw, 0x02, 0x78, node.uid);
        put_quarters(&mut raw, 0x18, 0x7a, node.gid);
        let links = match (file.kind, file.links) {
            (FileType::Directory, LINKS..) => 1,
            (_, links) => links as u16,
        };
        put16(&mut raw, 0x1a, links);
        put_times(&mut raw, node.mtime);
        let sectors = blocks(file) * (BLOCK / 512);
        put32(&mut raw, 0x1c, sectors as u32);
        put16(&mut raw, 0x74, (sectors >> 32) as u16);
        if let Place::Block(block) = file.attributes {
            put32(&mut raw, 0x68, block as u32);
            put16(&mut raw, 0x76, (block >> 32) as u16);
        }
        match file.kind {
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                put_halves(&mut raw, 0x04, 0x6c, file.size);
            }
            FileType::Character | FileType::Block | FileType::Fifo | FileType::Socket => {}
        }
        match (file.kind, node.device) {
            (FileType::Symlink, _) if file.size < SHORT_TARGET => {
                let target = image.target(&node)?;
                raw[BLOCKS_AT..BLOCKS_AT + target.len()].copy_from_slice(&target);
            }
            (FileType::Regular | FileType::Directory | FileType::Symlink, _) => {
                put32(&mut raw, 0x20, flag::EXTENTS);
                let root = extents::Tree::new(&file.extents, &file.nodes).root();
                raw[BLOCKS_AT..BLOCKS_END].copy_from_slice(&root);
            }
            (_, Some((major, minor))) => put_device(&mut raw, major, minor),
            (_, None) => {}
        }
        let attributes = encoded(image, file)?.inode;
        let at = INODE as usize - super::attributes::IN_INODE;
        raw[at..at + attributes.len()].copy_from_slice(&attributes);
        self.seal(&mut raw, number);
        Ok(raw)
    }

    fn seal(&self, raw: &mut [u8], number: u32) {
        put16(raw, 0x80, EXTRA);
        let checksum = crc32c::update(self.seed_of(number), raw);
        put_quarters(raw, 0x7c, 0x82, checksum);
        debug_assert!(number >= ROOT_INODE);
    }
}

/// A file's attributes; that they can be encoded was seen when the tree was made.
pub(super) fn encoded(image: &Reader, file: &File) -> Result<Encoded, WriteError> {
    let node = image.node(file.nid)?;
    Encoded::of(image.xattrs(&node)?).map_err(|why| WriteError::File {
        path: format!("inode {}", file.nid),
        why,
    })
}

fn blocks(file: &File) -> u64 {
    let data: u64 = file.extents.iter().map(|it| u64::from(it.blocks)).sum();
    data + file.nodes.len() as u64 + u64::from(file.attributes != Place::Inode)
}

/// Changed, read, modified and made at the same time.
fn put_times(raw: &mut [u8], time: Timestamp) {
    let seconds = time.seconds.clamp(EARLIEST, LATEST);
    let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
    let extra = time.nanoseconds << 2 | epoch;
    for (at, extra_at) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
        put32(raw, at, seconds as u32);
        put32(raw, extra_at, extra);
    }
}

/// Small numbers in the first word, in the old form; others in the second.
fn put_device(raw: &mut [u8], major: u32, minor: u32) {
    if major < 256 && minor < 256 {
        put32(raw, BLOCKS_AT, major << 8 | minor);
    } else {
        let new = minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12;
        put32(raw, BLOCKS_AT + 4, new);
    }
}

//! Trees of extents (`fs/ext4/ext4_extents.h`): four of them in the inode, or nodes of a block each below it.

use super::bytes::{put16, put32};
use super::geometry::BLOCK;
use crate::crc32c;
use crate::ext4::format::EXTENT_MAGIC;

/// Entries that an inode has room for.
const IN_INODE: usize = 4;
/// Entries of a node: behind the header of 12 bytes, 12 each, and a checksum.
const IN_NODE: usize = (BLOCK as usize - 12) / 12;
/// A group has at least so many blocks for data: its inodes never take half of it.
pub(super) const LEAST_IN_GROUP: u64 = 16_384;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where in the file, in blocks.
    pub(super) logical: u32,
    /// At most 32768.
    pub(super) blocks: u16,
    /// Where on the disk.
    pub(super) block: u64,
}

/// Nodes that a tree of so many extents has below the inode.
pub(super) fn nodes(extents: u64) -> u64 {
    let (mut level, mut all) = (extents, 0);
    while level > IN_INODE as u64 {
        level = level.div_ceil(IN_NODE as u64);
        all += level;
    }
    all
}

/// An entry of any level: what it begins with, and the bytes behind that.
#[derive(Clone, Copy)]
struct Entry {
    logical: u32,
    rest: [u8; 8],
}

fn leaf(extent: &Extent) -> Entry {
    let mut rest = [0; 8];
    put16(&mut rest, 0, extent.blocks);
    put16(&mut rest, 2, (extent.block >> 32) as u16);
    put32(&mut rest, 4, extent.block as u32);
    Entry {
        logical: extent.logical,
        rest,
    }
}

fn index(logical: u32, block: u64) -> Entry {
    let mut rest = [0; 8];
    put32(&mut rest, 0, block as u32);
    put16(&mut rest, 4, (block >> 32) as u16);
    Entry { logical, rest }
}

fn fill(area: &mut [u8], entries: &[Entry], most: usize, depth: u16) {
    put16(area, 0, EXTENT_MAGIC);
    put16(area, 2, entries.len() as u16);
    put16(area, 4, most as u16);
    put16(area, 6, depth);
    for (number, entry) in entries.iter().enumerate() {
        let at = 12 + 12 * number;
        put32(area, at, entry.logical);
        area[at + 4..at + 12].copy_from_slice(&entry.rest);
    }
}

/// A tree over extents, with the places of its nodes, the lowest level first.
pub(super) struct Tree<'a> {
    extents: &'a [Extent],
    places: &'a [u64],
    /// The nodes of each level: where their places begin, and how many there are.
    levels: Vec<(usize, usize)>,
}

impl<'a> Tree<'a> {
    /// There are as many places as [`nodes`] counts.
    pub(super) fn new(extents: &'a [Extent], places: &'a [u64]) -> Self {
        let (mut start, mut width, mut levels) = (0, extents.len(), Vec::new());
        while width > IN_INODE {
            width = width.div_ceil(IN_NODE);
            levels.push((start, width));
            start += width;
        }
        Tree {
            extents,
            places,
            levels,
        }
    }

    /// Entries of nodes of a level: extents in the lowest, nodes of the one below in others.
    fn entries(&self, level: usize, range: std::ops::Range<usize>) -> Vec<Entry> {
        let Some((start, _)) = level.checked_sub(1).map(|below| self.levels[below]) else {
            return self.extents[range].iter().map(leaf).collect();
        };
        let below = IN_NODE.pow(level as u32);
        range
            .map(|entry| {
                index(
                    self.extents[entry * below].logical,
                    self.places[start + entry],
                )
            })
            .collect()
    }

    /// Entries that all nodes of a level have together.
    fn width(&self, level: usize) -> usize {
        match level.checked_sub(1) {
            Some(below) => self.levels[below].1,
            None => self.extents.len(),
        }
    }

    /// What the inode has.
    pub(super) fn root(&self) -> [u8; 60] {
        let top = self.levels.len();
        let mut root = [0; 60];
        fill(
            &mut root,
            &self.entries(top, 0..self.width(top)),
            IN_INODE,
            top as u16,
        );
        root
    }

    /// A node by its number among the places. `seed` is that of the inode.
    pub(super) fn node(&self, number: usize, seed: u32) -> Vec<u8> {
        let starts = self.levels.iter().map(|(start, _)| *start);
        let (level, start) = starts
            .enumerate()
            .take_while(|(_, start)| *start <= number)
            .last()
            .unwrap_or_default();
        let from = (number - start) * IN_NODE;
        let to = (from + IN_NODE).min(self.width(level));
        let mut block = vec![0; BLOCK as usize];
        fill(
            &mut block,
            &self.entries(level, from..to),
            IN_NODE,
            level as u16,
        );
        let tail = 12 + 12 * IN_NODE;
        let checksum = crc32c::update(seed, &block[..tail]);
        put32(&mut block, tail, checksum);
        block
    }
}

//! Directories as lists of names, a block at a time (`struct ext4_dir_entry_2`, and the tail with its checksum).

use super::bytes::{put16, put32};
use super::geometry::BLOCK;
use crate::crc32c;
use crate::erofs::FileType;

/// What of a block has no entries: `struct ext4_dir_entry_tail`.
const TAIL: usize = 12;
const ENTRIES: usize = BLOCK as usize - TAIL;
const TAIL_KIND: u8 = 0xde;

fn room(name: usize) -> usize {
    8 + name.next_multiple_of(4)
}

/// How many blocks the names need that are added one by one.
#[derive(Debug)]
pub(super) struct Packing {
    whole: u64,
    used: usize,
}

impl Default for Packing {
    fn default() -> Self {
        Packing {
            whole: 0,
            // `.` and `..`.
            used: 2 * room(2),
        }
    }
}

impl Packing {
    pub(super) fn add(&mut self, name: usize) {
        if self.used + room(name) > ENTRIES {
            self.whole += 1;
            self.used = 0;
        }
        self.used += room(name);
    }

    pub(super) fn blocks(&self) -> u64 {
        self.whole + 1
    }
}

/// Blocks of entries; packs as [`Packing`] counts.
pub(super) struct Blocks {
    /// Of the directory's inode.
    seed: u32,
    done: Vec<u8>,
    block: Vec<u8>,
    /// Where the last entry begins, and where the next one goes.
    last: usize,
    next: usize,
}

impl Blocks {
    pub(super) fn new(own: u32, parent: u32, seed: u32) -> Self {
        let mut blocks = Blocks {
            seed,
            done: Vec::new(),
            block: vec![0; BLOCK as usize],
            last: 0,
            next: 0,
        };
        blocks.add(b".", own, FileType::Directory);
        blocks.add(b"..", parent, FileType::Directory);
        blocks
    }

    pub(super) fn add(&mut self, name: &[u8], number: u32, kind: FileType) {
        if self.next + room(name.len()) > ENTRIES {
            self.end_block();
        }
        let at = self.next;
        let room = room(name.len());
        put32(&mut self.block, at, number);
        put16(&mut self.block, at + 4, room as u16);
        self.block[at + 6] = name.len() as u8;
        self.block[at + 7] = code(kind);
        self.block[at + 8..at + 8 + name.len()].copy_from_slice(name);
        (self.last, self.next) = (at, at + room);
    }

    fn end_block(&mut self) {
        // The last entry has what is left.
        let rest = ENTRIES - self.last;
        put16(&mut self.block, self.last + 4, rest as u16);
        put16(&mut self.block, ENTRIES + 4, TAIL as u16);
        self.block[ENTRIES + 7] = TAIL_KIND;
        let checksum = crc32c::update(self.seed, &self.block[..ENTRIES]);
        put32(&mut self.block, ENTRIES + 8, checksum);
        self.done.extend_from_slice(&self.block);
        self.block.fill(0);
        (self.last, self.next) = (0, 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end_block();
        self.done
    }
}

/// `EXT4_FT_*`.
fn code(kind: FileType) -> u8 {
    match kind {
        FileType::Regular => 1,
        FileType::Directory => 2,
        FileType::Character => 3,
        FileType::Block => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
    }
}

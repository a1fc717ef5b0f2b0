//! Directories: names and the inodes they lead to. Hash trees are read as the lists they are laid over.

use super::{Ext4, Ext4Error, Inode, Source};
use crate::crc32c;
use crate::erofs::FileType;
use crate::ext4::format::{flag, u16_at, u32_at};

/// What stands at the end of a block with a checksum: an entry without a name, of a kind that is none.
const TAIL_KIND: u8 = 0xde;

impl<S: Source> Ext4<S> {
    /// The names in a directory but for `.` and `..`, sorted by their bytes, each with its inode; `most` at most.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn entries(
        &self,
        directory: &Inode,
        most: usize,
    ) -> Result<Vec<(Vec<u8>, u32)>, Ext4Error> {
        if directory.file_type != FileType::Directory {
            return Err(Ext4Error::Damaged("a directory is none"));
        }
        let mut entries = Vec::new();
        for (logical, number) in self.block_list(directory)? {
            let block = self.block(number)?;
            let is_root = logical == 0 && directory.flags & flag::INDEX != 0;
            let length = if is_root || is_inner(&block) {
                block.len()
            } else {
                check(&block, directory)?
            };
            read(&block[..length], &mut entries)?;
            if entries.len() > most {
                return Err(Ext4Error::Damaged("a directory has too many names"));
            }
        }
        entries.sort();
        if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Ext4Error::Damaged("a directory has a name twice"));
        }
        Ok(entries)
    }
}

/// Whether a block is an inner one of a hash tree: it looks like one empty entry.
fn is_inner(block: &[u8]) -> bool {
    u32_at(block, 0) == 0 && usize::from(u16_at(block, 4)) == block.len() && block[6] == 0
}

/// How much of a block are entries; the checksum behind them is verified where there is one.
fn check(block: &[u8], directory: &Inode) -> Result<usize, Ext4Error> {
    let tail = block.len() - 12;
    let has_tail = u32_at(block, tail) == 0
        && u16_at(block, tail + 4) == 12
        && block[tail + 6] == 0
        && block[tail + 7] == TAIL_KIND;
    match directory.seed {
        None => Ok(block.len()),
        Some(seed)
            if has_tail && crc32c::update(seed, &block[..tail]) == u32_at(block, tail + 8) =>
        {
            Ok(tail)
        }
        Some(_) => Err(Ext4Error::Damaged("a directory's checksum is wrong")),
    }
}

fn read(block: &[u8], entries: &mut Vec<(Vec<u8>, u32)>) -> Result<(), Ext4Error> {
    let damaged = || Ext4Error::Damaged("a directory's entry is none");
    let mut at = 0;
    while at < block.len() {
        let rest = &block[at..];
        if rest.len() < 8 {
            return Err(damaged());
        }
        let inode = u32_at(rest, 0);
        // A block of 64 KiB has no number of its own.
        let length = match usize::from(u16_at(rest, 4)) {
            0 | 65535 => 65536,
            length => length,
        };
        let name = usize::from(rest[6]);
        if length < 8 || !length.is_multiple_of(4) || length > rest.len() || 8 + name > length {
            return Err(damaged());
        }
        if inode != 0 {
            let name = &rest[8..8 + name];
            if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return Err(damaged());
            }
            if !matches!(name, b"." | b"..") {
                entries.push((name.to_vec(), inode));
            }
        }
        at += length;
    }
    Ok(())
}

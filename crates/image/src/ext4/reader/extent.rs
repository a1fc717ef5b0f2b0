//! Where a file's bytes are: its tree of extents, flattened and checked.

use super::{Ext4, Ext4Error, Inode, Source};
use crate::crc32c;
use crate::erofs::FileType;
use crate::ext4::format::{EXTENT_DEPTH, EXTENT_MAGIC, WRITTEN_MOST, flag, u16_at, u32_at};

/// Bytes of a file that are on the disk, one after the other; what is between segments are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where they are in the file.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Their first block.
    pub(super) block: u64,
}

/// In blocks.
#[derive(Debug, Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    blocks: u64,
    written: bool,
}

/// Symbolic links shorter than this are in the inode itself.
const FAST_SYMLINK: u64 = 60;

impl<S: Source> Ext4<S> {
    /// The written parts of a regular file, in order, none behind its end.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn segments(&self, inode: &Inode) -> Result<Vec<Segment>, Ext4Error> {
        let size = self.geometry.block_bytes;
        let mut segments: Vec<Segment> = Vec::new();
        for extent in self.extents(inode)? {
            let offset = extent
                .logical
                .checked_mul(size)
                .ok_or(Ext4Error::Damaged("a file is too long"))?;
            if !extent.written || offset >= inode.size {
                continue;
            }
            let bytes = (extent.blocks * size).min(inode.size - offset);
            match segments.last_mut() {
                Some(last)
                    if last.offset + last.bytes == offset
                        && last.bytes % size == 0
                        && last.block + last.bytes / size == extent.physical =>
                {
                    last.bytes += bytes;
                }
                _ => segments.push(Segment {
                    offset,
                    bytes,
                    block: extent.physical,
                }),
            }
        }
        Ok(segments)
    }

    /// Fills `into` with the bytes of a segment from `at` on, all of which are in it.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn read_segment(
        &self,
        segment: &Segment,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), Ext4Error> {
        debug_assert!(
            at + into.len() as u64 <= segment.bytes,
            "within the segment"
        );
        let size = self.geometry.block_bytes;
        if self.replay.is_empty() {
            return self
                .disk
                .read_at(into, segment.block * size + at)
                .map_err(Ext4Error::Read);
        }
        // Blocks of data are in the journal only where a guest mounts with `data=journal`.
        let mut block = vec![0; size as usize];
        let (mut at, mut done) = (at, 0);
        while done < into.len() {
            self.read_block(segment.block + at / size, &mut block)?;
            let from = &block[(at % size) as usize..];
            let count = from.len().min(into.len() - done);
            into[done..done + count].copy_from_slice(&from[..count]);
            done += count;
            at += count as u64;
        }
        Ok(())
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn symlink(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        if inode.size == 0 || inode.size > self.geometry.block_bytes.min(4096) {
            return Err(Ext4Error::Damaged("a symbolic link has no length"));
        }
        if inode.flags & flag::EXTENTS == 0 {
            if inode.size >= FAST_SYMLINK {
                return Err(Ext4Error::Damaged("a symbolic link is not where it fits"));
            }
            return Ok(inode.raw[0x28..0x28 + inode.size as usize].to_vec());
        }
        self.whole(inode)
    }

    /// A small file, whole.
    pub(super) fn whole(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        let mut whole = vec![0; inode.size as usize];
        for segment in self.segments(inode)? {
            let (at, end) = (
                segment.offset as usize,
                (segment.offset + segment.bytes) as usize,
            );
            self.read_segment(&segment, 0, &mut whole[at..end])?;
        }
        Ok(whole)
    }

    /// The blocks of a directory or of the journal, in order: each that there is.
    pub(super) fn block_list(&self, inode: &Inode) -> Result<Vec<(u64, u64)>, Ext4Error> {
        let mut list = Vec::new();
        let most = inode.size.div_ceil(self.geometry.block_bytes);
        for extent in self.extents(inode)? {
            if !extent.written {
                return Err(Ext4Error::Damaged("its metadata was never written"));
            }
            for index in 0..extent.blocks {
                if extent.logical + index < most {
                    list.push((extent.logical + index, extent.physical + index));
                }
            }
        }
        Ok(list)
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, Ext4Error> {
        if inode.flags & flag::EXTENTS == 0 {
            let unmapped = inode.raw[0x28..0x28 + 60].iter().all(|byte| *byte == 0);
            // Files of other kinds keep other things there.
            return match inode.file_type {
                FileType::Regular | FileType::Directory | FileType::Symlink if !unmapped => Err(
                    Ext4Error::Unsupported("block maps from before ext4".to_owned()),
                ),
                _ => Ok(Vec::new()),
            };
        }
        let mut found = Vec::new();
        let node = &inode.raw[0x28..0x28 + 60];
        self.node(inode, node, None, &mut found)?;
        let mut end = 0;
        for extent in &found {
            if extent.logical < end {
                return Err(Ext4Error::Damaged("a file's parts overlap"));
            }
            end = extent.logical + extent.blocks;
        }
        let claimed: u64 = found.iter().map(|extent| extent.blocks).sum();
        let left = self.data_left.get();
        if claimed > left {
            return Err(Ext4Error::Damaged(
                "its files have more blocks than there are",
            ));
        }
        self.data_left.set(left - claimed);
        Ok(found)
    }

    fn node(
        &self,
        inode: &Inode,
        node: &[u8],
        expected_depth: Option<u16>,
        found: &mut Vec<Extent>,
    ) -> Result<(), Ext4Error> {
        let damaged = Ext4Error::Damaged;
        let (entries, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        if u16_at(node, 0) != EXTENT_MAGIC
            || 12 + entries * 12 > node.len()
            || depth > EXTENT_DEPTH
            || expected_depth.is_some_and(|expected| expected != depth)
        {
            return Err(damaged("a list of extents is none"));
        }
        for entry in node[12..12 + entries * 12].chunks_exact(12) {
            if depth == 0 {
                let length = u16_at(entry, 4);
                let written = length <= WRITTEN_MOST;
                let blocks = u64::from(if written {
                    length
                } else {
                    length - WRITTEN_MOST
                });
                let physical = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                let fits = physical
                    .checked_add(blocks)
                    .is_some_and(|end| end <= self.geometry.blocks);
                if blocks == 0 || !fits {
                    return Err(damaged("an extent is not on the disk"));
                }
                found.push(Extent {
                    logical: u64::from(u32_at(entry, 0)),
                    physical,
                    blocks,
                    written,
                });
                continue;
            }
            let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
            let block = self.block(child)?;
            if let Some(seed) = inode.seed {
                let tail = 12 + usize::from(u16_at(&block, 4)) * 12;
                let right = block.len() >= tail + 4
                    && crc32c::update(seed, &block[..tail]) == u32_at(&block, tail);
                if !right {
                    return Err(damaged("a list of extents has a wrong checksum"));
                }
            }
            self.node(inode, &block, Some(depth - 1), found)?;
        }
        Ok(())
    }
}

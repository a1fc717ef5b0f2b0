//! The bytes of a planned file system, in the order of its blocks.

use std::io::{Read, Seek, SeekFrom, Write};

use super::geometry::{BLOCK, Geometry, INODES_IN_BLOCK};
use super::layout::{Holding, Run};
use super::tree::{FIRST_INODE, LOST_AND_FOUND, LostAndFound};
use super::{Plan, Reader, WriteError, attributes, directory, extents, inode};
use crate::erofs::FileType;
use crate::ext4::format::{ROOT_INODE, SUPERBLOCK_AT};

/// Bytes that are copied at once.
const COPY: usize = 256 << 10;

/// Blocks with something in them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) block: u64,
    pub(super) blocks: u64,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Superblock(u64),
    Descriptors,
    BlockBitmap(u64),
    InodeBitmap(u64),
    Inodes(u64),
    Data(Holding),
}

impl Plan {
    /// All of them in their order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut runs = self.layout.runs.iter().peekable();
        (0..self.geometry.groups).flat_map(move |group| {
            let mut pieces = self.own_pieces(group);
            let end = self.geometry.end_of(group);
            while let Some(Run {
                block,
                blocks,
                holding,
            }) = runs.next_if(|run| run.block < end)
            {
                pieces.push(Piece {
                    block: *block,
                    blocks: *blocks,
                    what: What::Data(*holding),
                });
            }
            pieces
        })
    }

    /// What a group has besides data.
    fn own_pieces(&self, group: u64) -> Vec<Piece> {
        let geometry = &self.geometry;
        let mut pieces = Vec::new();
        let mut push = |block, blocks, what| {
            pieces.push(Piece {
                block,
                blocks,
                what,
            });
        };
        if Geometry::has_superblock(group) {
            let start = Geometry::start_of(group);
            push(start, 1, What::Superblock(group));
            push(start + 1, geometry.descriptor_blocks(), What::Descriptors);
        }
        let bitmaps = geometry.bitmaps_of(group);
        push(bitmaps, 1, What::BlockBitmap(group));
        push(bitmaps + 1, 1, What::InodeBitmap(group));
        let inodes = geometry.inodes_used(group, self.tree.last());
        if inodes > 0 {
            let blocks = inodes.div_ceil(INODES_IN_BLOCK);
            push(geometry.table_of(group), blocks, What::Inodes(group));
        }
        pieces
    }

    /// Writes what [`Plan::segments`] names, one behind the other, from the image that the plan was made of. Blocking.
    ///
    /// # Errors
    /// An image that changed or cannot be read; the writer's.
    pub fn write(&self, image: &Reader, to: &mut impl Write) -> Result<(), WriteError> {
        let descriptors = self.descriptors();
        for piece in self.pieces() {
            match piece.what {
                What::Superblock(group) => {
                    let mut block = vec![0; BLOCK as usize];
                    let at = if group == 0 {
                        SUPERBLOCK_AT as usize
                    } else {
                        0
                    };
                    let superblock = self.superblock(group);
                    block[at..at + superblock.len()].copy_from_slice(&superblock);
                    put(to, &block)?;
                }
                What::Descriptors => put(to, &descriptors)?,
                What::BlockBitmap(group) => put(to, &self.block_bitmap(group))?,
                What::InodeBitmap(group) => put(to, &self.inode_bitmap(group))?,
                What::Inodes(group) => self.write_inodes(image, group, piece.blocks, to)?,
                What::Data(holding) => self.write_data(image, &piece, holding, to)?,
            }
        }
        Ok(())
    }

    fn write_inodes(
        &self,
        image: &Reader,
        group: u64,
        blocks: u64,
        to: &mut impl Write,
    ) -> Result<(), WriteError> {
        // Inodes are numbered with 32 bits, from 1 on.
        let first = (group * self.geometry.inodes_in_group + 1) as u32;
        let count = (blocks * INODES_IN_BLOCK) as u32;
        for number in first..first + count {
            put(to, &self.inode(image, number)?)?;
        }
        Ok(())
    }

    fn write_data(
        &self,
        image: &Reader,
        piece: &Piece,
        holding: Holding,
        to: &mut impl Write,
    ) -> Result<(), WriteError> {
        match holding {
            Holding::Journal => put(to, &self.journal()),
            Holding::LostAndFound => {
                let seed = self.seed_of(FIRST_INODE);
                let empty = directory::Blocks::new(FIRST_INODE, ROOT_INODE, seed);
                put(to, &empty.finish())
            }
            Holding::Contents { file, logical } => {
                self.write_contents(image, file, logical, piece.blocks, to)
            }
            Holding::Attributes { file } => {
                let encoded = inode::encoded(image, &self.tree.files[file as usize])?;
                let mut block = encoded.block.unwrap_or_default();
                attributes::seal(&mut block, piece.block, self.seed);
                put(to, &block)
            }
            Holding::Node { file, node } => {
                let seed = self.seed_of(self.tree.number(file));
                let file = &self.tree.files[file as usize];
                let tree = extents::Tree::new(&file.extents, &file.nodes);
                put(to, &tree.node(node as usize, seed))
            }
        }
    }

    fn write_contents(
        &self,
        image: &Reader,
        index: u32,
        logical: u32,
        blocks: u64,
        to: &mut impl Write,
    ) -> Result<(), WriteError> {
        let file = &self.tree.files[index as usize];
        let node = image.node(file.nid)?;
        let from = u64::from(logical) * BLOCK;
        match file.kind {
            FileType::Directory => {
                // Of one that lies in several groups, each has its part.
                let all = self.entries(image, index)?;
                let (from, length) = (from as usize, (blocks * BLOCK) as usize);
                put(to, &all[from..from + length])
            }
            FileType::Symlink => {
                let mut block = image.target(&node)?;
                block.resize(BLOCK as usize, 0);
                put(to, &block)
            }
            FileType::Regular => {
                let mut data = image.data(&node)?;
                let reading = |error| WriteError::Image(crate::erofs::ReadError::Read(error));
                data.seek(SeekFrom::Start(from)).map_err(reading)?;
                let mut left = blocks * BLOCK;
                let mut buffer = vec![0; COPY.min(left as usize)];
                while left > 0 {
                    let length = buffer.len().min(left as usize);
                    let at = from + blocks * BLOCK - left;
                    let real = file.size.saturating_sub(at).min(length as u64) as usize;
                    data.read_exact(&mut buffer[..real]).map_err(reading)?;
                    buffer[real..length].fill(0);
                    put(to, &buffer[..length])?;
                    left -= length as u64;
                }
                Ok(())
            }
            FileType::Character | FileType::Block | FileType::Fifo | FileType::Socket => Ok(()),
        }
    }

    /// The blocks of a directory.
    fn entries(&self, image: &Reader, index: u32) -> Result<Vec<u8>, WriteError> {
        let file = &self.tree.files[index as usize];
        let number = self.tree.number(index);
        let parent = self.tree.number(file.parent);
        let mut blocks = directory::Blocks::new(number, parent, self.seed_of(number));
        for entry in image.entries(&image.node(file.nid)?)? {
            let entry = entry?;
            let number = self.tree.number_of(entry.nid)?;
            blocks.add(&entry.name, number, entry.file_type);
        }
        if index == 0 && self.tree.lost_and_found == LostAndFound::Added {
            blocks.add(LOST_AND_FOUND, FIRST_INODE, FileType::Directory);
        }
        let all = blocks.finish();
        debug_assert_eq!(all.len() as u64, file.size);
        Ok(all)
    }
}

fn put(to: &mut impl Write, bytes: &[u8]) -> Result<(), WriteError> {
    to.write_all(bytes).map_err(WriteError::Write)
}

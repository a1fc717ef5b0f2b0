//! What there is: every file of the image, numbered in the order of a walk.

use std::collections::HashMap;

use super::attributes::Encoded;
use super::directory::Packing;
use super::extents::{self, Extent};
use super::geometry::BLOCK;
use super::{ReadError, Reader, WriteError};
use crate::erofs::{FileType, Found};

/// `s_first_ino`: those below have a purpose of their own. `lost+found` has this one, by custom.
pub(super) const FIRST_INODE: u32 = 11;
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";
/// `EXT4_LINK_MAX`.
const LINKS: u32 = 65_000;
/// Logical blocks have 32 bits, and the last number stands for none.
const FILE_BLOCKS: u64 = u32::MAX as u64;
/// A target that is shorter lies in the inode (with the NUL behind it).
pub(super) const SHORT_TARGET: u64 = 60;

/// A file of the image.
#[derive(Debug)]
pub(super) struct File {
    /// Its number in the image.
    pub(super) nid: u64,
    pub(super) kind: FileType,
    /// Bytes; of a directory, those of its blocks here.
    pub(super) size: u64,
    pub(super) links: u32,
    /// For a directory: the one it is in.
    pub(super) parent: u32,
    /// Whether not all of its attributes fit into its inode.
    pub(super) attributes: Place,
    pub(super) extents: Box<[Extent]>,
    /// The blocks of its tree of extents, the lowest level first.
    pub(super) nodes: Box<[u64]>,
}

/// Where a file's attributes lie, besides in its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere.
    Inode,
    /// In a block, which is 0 until it has one.
    Block(u64),
}

/// Whether the image brings the directory that `fsck` wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LostAndFound {
    Added,
    OfTheImage,
}

/// All of them; the first is the root.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
    pub(super) lost_and_found: LostAndFound,
    indexes: HashMap<u64, u32>,
    /// Blocks that they need, but for the journal and `lost+found`.
    pub(super) blocks: u64,
}

impl Tree {
    pub(super) fn of(image: &Reader) -> Result<Self, WriteError> {
        let mut tree = Tree {
            files: Vec::new(),
            lost_and_found: LostAndFound::Added,
            indexes: HashMap::new(),
            blocks: 0,
        };
        // The directories that the walk is in, from the root down.
        let mut open: Vec<(u32, Packing)> = Vec::new();
        for found in image.walk() {
            tree.meet(image, found?, &mut open)?;
        }
        for (directory, packing) in open {
            tree.close(directory, packing);
        }
        Ok(tree)
    }

    fn meet(
        &mut self,
        image: &Reader,
        found: Found,
        open: &mut Vec<(u32, Packing)>,
    ) -> Result<(), WriteError> {
        let refused = |why| WriteError::File {
            path: found.path.escape_ascii().to_string(),
            why,
        };
        let depth = match found.path.len() {
            0 => 0,
            _ => 1 + found.path.iter().filter(|byte| **byte == b'/').count(),
        };
        while open.len() > depth
            && let Some((directory, packing)) = open.pop()
        {
            self.close(directory, packing);
        }
        let parent = open.last().map_or(0, |(directory, _)| *directory);
        if let Some((_, packing)) = open.last_mut() {
            let name = found.path.rsplit(|byte| *byte == b'/').next();
            let name = name.unwrap_or_default();
            packing.add(name.len());
            if depth == 1 && name == LOST_AND_FOUND {
                self.lost_and_found = LostAndFound::OfTheImage;
            }
        }
        let node = found.node;
        if let Some(index) = self.indexes.get(&node.nid) {
            let links = &mut self.files[*index as usize].links;
            *links += 1;
            return match *links {
                ..=LINKS => Ok(()),
                _ => Err(refused("it has more than 65,000 names")),
            };
        }
        let index = u32::try_from(self.files.len()).map_err(|_| WriteError::TooLarge)?;
        self.indexes.insert(node.nid, index);
        let encoded = Encoded::of(image.xattrs(&node)?).map_err(&refused)?;
        let place = match encoded.block {
            Some(_) => Place::Block(0),
            None => Place::Inode,
        };
        self.blocks += u64::from(place != Place::Inode);
        let mut links = 1;
        match node.file_type {
            FileType::Directory => {
                links = 2;
                if index > 0 {
                    self.files[parent as usize].links += 1;
                }
                open.push((index, Packing::default()));
            }
            FileType::Regular => {
                if node.size.div_ceil(BLOCK) > FILE_BLOCKS {
                    return Err(refused("it is larger than 16 TiB with its holes"));
                }
                let (blocks, pieces) = blocks_of(image, &node)?;
                self.blocks += blocks + extents::nodes(pieces);
            }
            FileType::Symlink if node.size >= SHORT_TARGET => self.blocks += 1,
            FileType::Symlink
            | FileType::Character
            | FileType::Block
            | FileType::Fifo
            | FileType::Socket => {}
        }
        self.files.push(File {
            nid: node.nid,
            kind: node.file_type,
            size: node.size,
            links,
            parent,
            attributes: place,
            extents: Box::default(),
            nodes: Box::default(),
        });
        Ok(())
    }

    fn close(&mut self, directory: u32, mut packing: Packing) {
        if directory == 0 && self.lost_and_found == LostAndFound::Added {
            packing.add(LOST_AND_FOUND.len());
            self.files[0].links += 1;
        }
        self.files[directory as usize].size = packing.blocks() * BLOCK;
        self.blocks += packing.blocks();
    }

    /// The number of an inode here.
    pub(super) fn number(&self, index: u32) -> u32 {
        match (index, self.lost_and_found) {
            (0, _) => super::super::format::ROOT_INODE,
            (index, LostAndFound::Added) => FIRST_INODE + index,
            (index, LostAndFound::OfTheImage) => FIRST_INODE - 1 + index,
        }
    }

    /// The file of an inode; the other way round.
    pub(super) fn index(&self, number: u32) -> Option<u32> {
        let index = match (number, self.lost_and_found) {
            (super::super::format::ROOT_INODE, _) => 0,
            (..FIRST_INODE, _) | (FIRST_INODE, LostAndFound::Added) => return None,
            (number, LostAndFound::Added) => number - FIRST_INODE,
            (number, LostAndFound::OfTheImage) => number - FIRST_INODE + 1,
        };
        ((index as usize) < self.files.len()).then_some(index)
    }

    /// The number of what a directory of the image names.
    pub(super) fn number_of(&self, nid: u64) -> Result<u32, ReadError> {
        let index = self.indexes.get(&nid).ok_or(ReadError::Inode {
            nid,
            what: "it came after the walk",
        })?;
        Ok(self.number(*index))
    }

    /// The last inode that is used.
    pub(super) fn last(&self) -> u32 {
        // Files are counted with 32 bits.
        self.number(self.files.len() as u32 - 1).max(FIRST_INODE)
    }
}

/// The runs of blocks that have data, in their order.
pub(super) fn runs(
    image: &Reader,
    node: &crate::erofs::Node,
    mut each: impl FnMut(u64, u64),
) -> Result<(), ReadError> {
    let mut data = image.data(node)?;
    let (mut from, mut pending): (u64, Option<(u64, u64)>) = (0, None);
    while let Some(segment) = data.next_data(from)? {
        from = segment.offset + segment.length;
        let (start, end) = (segment.offset / BLOCK, from.div_ceil(BLOCK));
        match &mut pending {
            Some((_, last)) if start <= *last => *last = end,
            _ => {
                if let Some((start, end)) = pending.replace((start, end)) {
                    each(start, end - start);
                }
            }
        }
    }
    if let Some((start, end)) = pending {
        each(start, end - start);
    }
    Ok(())
}

/// Blocks of data, and in how many extents at most.
fn blocks_of(image: &Reader, node: &crate::erofs::Node) -> Result<(u64, u64), ReadError> {
    let (mut blocks, mut pieces) = (0, 0);
    runs(image, node, |_, count| {
        blocks += count;
        // A run that begins at a group's end goes on in others.
        pieces += 2 + count / extents::LEAST_IN_GROUP;
    })?;
    Ok((blocks, pieces))
}

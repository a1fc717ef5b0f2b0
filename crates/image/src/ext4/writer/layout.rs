//! Which blocks everything gets: the next ones that are free, group after group.

use super::extents::{self, Extent};
use super::geometry::{BLOCK, GROUP, Geometry};
use super::tree::{self, LostAndFound, Place, SHORT_TARGET, Tree};
use super::{Reader, WriteError};
use crate::erofs::FileType;

/// What blocks of data hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// The journal's beginning; the rest of it is a hole.
    Journal,
    LostAndFound,
    /// Of a file, a directory or a symbolic link: what it has from this block of it on.
    Contents {
        file: u32,
        logical: u32,
    },
    Attributes {
        file: u32,
    },
    /// A node of a file's tree of extents.
    Node {
        file: u32,
        node: u32,
    },
}

/// Blocks in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) holding: Holding,
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of their blocks.
    pub(super) runs: Vec<Run>,
    pub(super) journal: Vec<Extent>,
    pub(super) lost_and_found: Option<u64>,
    /// The first block that is free; behind it only the groups' own are taken.
    pub(super) free_from: u64,
}

impl Layout {
    pub(super) fn of(
        image: &Reader,
        tree: &mut Tree,
        geometry: &Geometry,
    ) -> Result<Self, WriteError> {
        let mut space = Space {
            geometry,
            next: geometry.data_of(0),
            runs: Vec::new(),
        };
        let mut journal = Vec::new();
        let mut logical = 0;
        while logical < geometry.journal {
            let (block, blocks) = space.take(geometry.journal - logical)?;
            if logical == 0 {
                space.note(block, 1, Holding::Journal);
            }
            journal.push(extent(logical, block, blocks));
            logical += blocks;
        }
        let mut lost_and_found = None;
        if tree.lost_and_found == LostAndFound::Added {
            let (block, _) = space.take(1)?;
            space.note(block, 1, Holding::LostAndFound);
            lost_and_found = Some(block);
        }
        for index in 0..tree.files.len() {
            place(image, tree, index, &mut space)?;
        }
        Ok(Layout {
            free_from: space.next,
            runs: space.runs,
            journal,
            lost_and_found,
        })
    }

    /// Blocks of a group that are taken by data.
    pub(super) fn taken(&self, geometry: &Geometry, group: u64) -> u64 {
        let end = self.free_from.min(geometry.end_of(group));
        end.saturating_sub(geometry.data_of(group))
    }
}

/// Gives one file its blocks.
fn place(
    image: &Reader,
    tree: &mut Tree,
    index: usize,
    space: &mut Space<'_>,
) -> Result<(), WriteError> {
    let file = &mut tree.files[index];
    let number = index as u32;
    if file.attributes != Place::Inode {
        let (block, _) = space.take(1)?;
        space.note(block, 1, Holding::Attributes { file: number });
        file.attributes = Place::Block(block);
    }
    let mut wanted = Vec::new();
    match file.kind {
        FileType::Regular => {
            let node = image.node(file.nid)?;
            tree::runs(image, &node, |logical, blocks| {
                wanted.push((logical, blocks))
            })?;
        }
        FileType::Directory => wanted.push((0, file.size / BLOCK)),
        FileType::Symlink if file.size >= SHORT_TARGET => wanted.push((0, 1)),
        FileType::Symlink
        | FileType::Character
        | FileType::Block
        | FileType::Fifo
        | FileType::Socket => {}
    }
    let mut extents: Vec<Extent> = Vec::new();
    for (mut logical, mut left) in wanted {
        while left > 0 {
            let (block, blocks) = space.take(left)?;
            let holding = Holding::Contents {
                file: number,
                logical: logical as u32,
            };
            space.note(block, blocks, holding);
            extents.push(extent(logical, block, blocks));
            logical += blocks;
            left -= blocks;
        }
    }
    let mut nodes = Vec::new();
    for node in 0..extents::nodes(extents.len() as u64) {
        let (block, _) = space.take(1)?;
        let holding = Holding::Node {
            file: number,
            node: node as u32,
        };
        space.note(block, 1, holding);
        nodes.push(block);
    }
    file.extents = extents.into();
    file.nodes = nodes.into();
    Ok(())
}

/// Of at most a group, whose blocks 16 bits can count.
fn extent(logical: u64, block: u64, blocks: u64) -> Extent {
    Extent {
        logical: logical as u32,
        blocks: blocks as u16,
        block,
    }
}

struct Space<'a> {
    geometry: &'a Geometry,
    next: u64,
    runs: Vec<Run>,
}

impl Space<'_> {
    /// The next blocks, `wanted` or what the group still has.
    fn take(&mut self, wanted: u64) -> Result<(u64, u64), WriteError> {
        // Groups begin with their own blocks.
        let mut group = self.next / GROUP;
        if self.next.is_multiple_of(GROUP) && group < self.geometry.groups {
            self.next = self.geometry.data_of(group);
        }
        group = group.min(self.geometry.groups - 1);
        let free = self.geometry.end_of(group).saturating_sub(self.next);
        if free == 0 {
            let bytes = self.geometry.blocks * BLOCK;
            return Err(WriteError::TooSmall {
                asked: bytes,
                // Nothing that was counted is ever more than this off.
                least: bytes + bytes / 64 + (1 << 20),
            });
        }
        let taken = (self.next, wanted.min(free));
        self.next += taken.1;
        Ok(taken)
    }

    fn note(&mut self, block: u64, blocks: u64, holding: Holding) {
        self.runs.push(Run {
            block,
            blocks,
            holding,
        });
    }
}

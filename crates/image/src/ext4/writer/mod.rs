//! Writing: a fresh ext4 with the tree of an image in it, as `mke2fs -d` would make one.
//!
//! Everything is decided before the first byte: [`Plan::of`] walks the image once, numbers its files and gives each its blocks,
//! one behind the other. What then is where no longer depends on what is written, so that a disk of any size streams out in the
//! order of its blocks, and what nothing lies in is known to be a hole. The same image and size always give the same bytes.
//!
//! The file system is as Linux distributions make theirs: blocks of 4 KiB, extents, checksums, an empty journal, room for directories to
//! get hash trees. Directories are written as the plain lists that are valid as well. There is no clock: change and access times
//! are the modification time.
//!
//! ```text
//! tree      what there is, from the image       layout      which blocks it gets
//! geometry  groups, tables, how many of what    emit        its bytes, in the order of blocks
//! ```

mod attributes;
mod bytes;
mod descriptors;
mod directory;
mod emit;
mod extents;
mod geometry;
mod inode;
mod layout;
mod superblock;
mod tree;

use crate::crc32c;
use crate::erofs::{ReadError, Reader, Segment};
use geometry::Geometry;
use layout::Layout;
use tree::Tree;

pub(crate) use geometry::BLOCK;

/// Why a tree does not become a file system.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ReadError),
    /// Where the bytes go.
    #[error("the disk cannot be written")]
    Write(#[source] std::io::Error),
    /// The size that was asked for.
    #[error("{asked} bytes are too few: what is in the image needs {least}")]
    TooSmall {
        /// How many were asked for.
        asked: u64,
        /// How many it takes.
        least: u64,
    },
    /// More than the format has numbers for.
    #[error("an ext4 file system cannot be that large: 16 TiB is the most")]
    TooLarge,
    /// A file that ext4 cannot hold.
    #[error("{path} cannot be in an ext4 file system: {why}")]
    File {
        /// Its path in the image.
        path: String,
        /// What about it.
        why: &'static str,
    },
}

/// What tells a file system from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// What the hashes of names begin with.
    pub hash_seed: [u8; 16],
}

/// A file system that is laid out and not written yet.
#[derive(Debug)]
pub struct Plan {
    geometry: Geometry,
    tree: Tree,
    layout: Layout,
    identity: Identity,
    /// What all checksums begin with.
    seed: u32,
}

impl Plan {
    /// Lays an image's tree out: in `size` bytes, or in what it needs with a quarter more, and 256 MiB more at least. Blocking.
    ///
    /// # Errors
    /// A damaged image; a size that is too small or too large; files that ext4 cannot hold.
    pub fn of(image: &Reader, size: Option<u64>, identity: Identity) -> Result<Self, WriteError> {
        let mut tree = Tree::of(image)?;
        let geometry = Geometry::for_tree(&tree, size)?;
        let layout = Layout::of(image, &mut tree, &geometry)?;
        Ok(Plan {
            geometry,
            tree,
            layout,
            identity,
            seed: crc32c::update(!0, &identity.uuid),
        })
    }

    /// Bytes of the file system.
    pub fn bytes(&self) -> u64 {
        self.geometry.blocks * BLOCK
    }

    /// Where there is anything: ascending, disjoint, whole blocks. The rest are holes.
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for piece in self.pieces() {
            let (offset, length) = (piece.block * BLOCK, piece.blocks * BLOCK);
            match segments.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ => segments.push(Segment { offset, length }),
            }
        }
        segments
    }
}

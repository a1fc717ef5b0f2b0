//! ext4 without a mount: reading what a guest has written to its disk, and writing a disk from an image's tree.
//!
//! The reader takes a disk for hostile: a guest's root can write any byte to it. What it gives is bounded by the disk's own size,
//! every number is checked before it is used, and checksums (`metadata_csum`) are verified where the disk has them. A disk that
//! was not unmounted is read as after the replay of its journal; nothing is ever written to it.
//!
//! No crate serves here: those that read ext4 leave out extended attributes, times, device numbers and inode numbers, which are
//! what tells a whiteout from a device and a hard link from a copy.

mod format;
mod reader;
mod writer;

pub use reader::{Ext4, Ext4Error, Inode, Segment, Source, Xattrs};
pub use writer::{Identity, Plan, WriteError};

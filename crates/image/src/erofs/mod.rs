//! A writer for the EROFS on-disk format, made for one streaming pass, and a reader of what it writes.
//!
//! The writer owns the bytes of the image. File data is appended as it arrives, inodes (with their xattrs and inline
//! tails) are packed into small clusters between the data, directories follow when the tree is final, and the
//! superblock goes in last, so that a torn image never has a valid one. Nothing is read back while it writes.
//!
//! Must never: look at names of the host's file system, at the clock, or at anything else that would make two
//! runs over the same layers differ in a byte.
//!
//! The writer is called by `merge`, which decides what exists; this module only says how it is laid out. The reader
//! (`reader/`) trusts nothing in an image.
//!
//! Format source: the kernel's `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`; field names
//! here are the ones used there.
//!
//! ```text
//! block 0        1024: erofs_super_block, 1152: root inode (root_nid is 16 bits wide, so it must be here)
//! block 1..      file data and inode clusters, in order of arrival (meta_blkaddr is 0: any slot has a nid)
//! then           directory inodes, then directory blocks, breadth first
//! ```

mod dedup;
mod directory;
mod format;
mod metadata;
mod output;
mod reader;
mod writer;
mod xattr;

pub use format::FileType;
pub use reader::{Attribute, Data, DirectoryEntry, Entries, Found, Node, ReadError, Reader, Walk};
pub use warren_tar::{Segment, Timestamp};
pub use writer::{Attributes, Content, ErofsError, FileData, Inode, Summary, Writer};
pub use xattr::{Insert, Xattrs, XattrsBuilder};

pub(crate) use directory::DirectoryTree;

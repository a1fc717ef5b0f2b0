//! Trees as tar streams: POSIX pax (IEEE 1003.1-2017, "pax Interchange Format") with what GNU tar and libarchive add to it for
//! extended attributes (`SCHILY.xattr.`) and sparse files (GNU sparse 1.0). Streams of GNU tar's own format are read too.
//!
//! Everything that is read is hostile: lengths are bounded before anything is kept, and nothing is believed that can be
//! checked.

mod pax;
mod reader;
mod sparse;
mod writer;

pub use reader::ArchiveReader;
pub use writer::ArchiveWriter;

/// What everything in a tar stream is a multiple of.
const BLOCK: usize = 512;
/// Pieces of a sparse file that are told apart: what lies between more of them counts as written.
pub const EXTENTS: usize = 16 * 1024;
/// Longest path or link target, as long as no kernel takes a longer one (PATH_MAX).
pub const PATH_LIMIT: usize = 4096;
/// Extended attributes of one file, in bytes: twice what Linux takes for one of them.
const PAX_LIMIT: u64 = 256 * 1024;

/// A file's place in an archive and all there is to know of it but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it is written in the archive: unchecked.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When its content changed last.
    pub modified: Modified,
    /// Names and values of its extended attributes: unchecked.
    pub attributes: Vec<Attribute>,
}

/// Name and value of an extended attribute.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// A time since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modified {
    /// Seconds, before 1970 less than none.
    pub seconds: i64,
    /// And so many nanoseconds, always less than a second.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// What of it is stored, in order; all of it when absent.
        extents: Option<Vec<Extent>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it leads: unchecked.
        target: Vec<u8>,
    },
    /// Another name for an earlier entry.
    HardLink {
        /// That entry's path: unchecked.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A device.
    Device {
        /// Of which kind.
        class: DeviceClass,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

impl Kind {
    /// Bytes of content that are stored.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match self {
            Kind::File {
                extents: Some(extents),
                ..
            } => extents.iter().map(|extent| extent.length).sum(),
            Kind::File { size, .. } => *size,
            _ => 0,
        }
    }
}

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceClass {
    /// Blocks.
    Block,
    /// Characters.
    Character,
}

/// A piece of a file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream it comes from or goes to.
    #[error("the archive's stream failed")]
    Io(#[from] std::io::Error),
    /// It ended too early.
    #[error("the archive ends in the middle")]
    Truncated,
    /// It is not what it should be.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// Something in it is larger than anything sensible.
    #[error("the archive has too long a {0}")]
    TooLong(&'static str),
}

#[cfg(test)]
mod tests;

//! Tar archives as streams. Read are ustar, GNU, PAX (POSIX.1-2001), all three PAX sparse forms and the old GNU one;
//! written is PAX, and no more of it than an entry needs. Names and values are bytes.
//!
//! Layers of images come and go through it, and so do trees of files between a guest and its host. What is read may be
//! hostile: lengths are bounded before anything is kept. Must never: decide what a name means on a file system, or hold
//! more of an entry's data than its headers.
//!
//! Sources: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar
//! Format" and "Storing Sparse Files"; where they leave a choice, what Go's `archive/tar` does is done, because that
//! is what images are made and unpacked with.

mod acl;
mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use reader::Reader;
pub use writer::{END, Writer, header, padding};

/// Seconds since the epoch (may be negative) and nanoseconds (0..1,000,000,000, counted forwards).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// The part below a second.
    pub nanoseconds: u32,
}

/// A piece of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// One entry, names as they are in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// Its kind, with what only that kind has.
    pub kind: EntryKind,
    /// Permission bits (`07777`).
    pub mode: u16,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes by their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file; its data is read from the [`Reader`].
    File {
        /// The file's size.
        size: u64,
        /// Where its data lies, for a sparse file.
        segments: Option<Vec<Segment>>,
    },
    /// Another name of a file that is there already.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Entry {
    /// Root's, from 1970, for everybody to read.
    #[must_use]
    pub fn plain(path: impl Into<Vec<u8>>, kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            _ => 0o644,
        };
        Entry {
            path: path.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }
}

impl EntryKind {
    /// Bytes of data behind the entry's headers: of a sparse file only those of its segments.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match self {
            EntryKind::File {
                segments: Some(segments),
                ..
            } => segments.iter().map(|segment| segment.length).sum(),
            EntryKind::File { size, .. } => *size,
            _ => 0,
        }
    }
}
/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed, or ended early (`UnexpectedEof`).
    #[error("the archive ends early or cannot be read")]
    Read(#[from] std::io::Error),
    /// The sum over a header is wrong: this is not a tar archive, or it is damaged.
    #[error("a header's checksum is wrong")]
    Checksum,
    /// One block of zeros, which ends an archive only together with a second one.
    #[error("a single block of zeros is between two entries")]
    LoneZeroBlock,
    /// A field of a header is not what it must be.
    #[error("the header field {0} is not valid")]
    Field(&'static str),
    /// A PAX record is malformed or its value is out of range.
    #[error("the PAX record {0} is not valid")]
    Pax(String),
    /// A sparse map contradicts itself or the file's size.
    #[error("a sparse file's map is not valid")]
    SparseMap,
    /// An entry of a type that nobody writes.
    #[error("entries of type {0:?} are not known")]
    Type(char),
    /// Headers (long names, PAX records, sparse maps) above what is sane.
    #[error("an entry's headers are larger than {limit} bytes")]
    HeaderTooLarge {
        /// The limit.
        limit: u64,
    },
}

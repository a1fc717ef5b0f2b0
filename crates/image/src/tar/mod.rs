//! A streaming reader and writer of tar archives as layers are: ustar, GNU, PAX (POSIX.1-2001), all three PAX sparse forms
//! and the old GNU one, names and values as bytes.
//!
//! Owns: the bytes between the decompressor and the merge. Must never: decide what a name means on a file
//! system, or hold more of an entry's data than its headers.
//!
//! Sources: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar
//! Format" and "Storing Sparse Files"; where they leave a choice, what Go's `archive/tar` does is done, because that
//! is what images are made and unpacked with.

mod acl;
mod header;
mod layer;
mod pax;
mod reader;
mod sparse;
pub(crate) mod writer;

pub use layer::Writer;
pub use reader::{Entry, EntryKind, Reader};

/// Why a layer's archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed or ended early.
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
    /// An entry of a type that no layer has.
    #[error("entries of type {0:?} do not belong into an image layer")]
    Type(char),
    /// Headers (long names, PAX records, sparse maps) above what is sane.
    #[error("an entry's headers are larger than {limit} bytes")]
    HeaderTooLarge {
        /// The limit.
        limit: u64,
    },
}

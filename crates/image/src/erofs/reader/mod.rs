//! A reader of EROFS images: the other direction of the writer, sharing no code path with it but the names of constants.
//!
//! Owns: the way from an image's file to names, metadata, extended attributes and contents. Every byte of an image
//! is taken for hostile: offsets are checked before they are followed, nothing is allocated by a number that the image
//! gives, a walk ends whatever directories say of each other, and nothing panics.
//!
//! Called by whoever looks into a converted image: its verification, its export, the tests. Blocking; reading needs no
//! lock, so one reader can serve several threads.
//!
//! It reads what the kernel reads of an uncompressed image without further devices: compact and extended inodes; flat,
//! inline and chunk-based data; inline and shared extended attributes.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reader = warren_image::erofs::Reader::open(std::fs::File::open("disk.erofs")?)?;
//! for found in reader.walk() {
//!     let found = found?;
//!     println!("{} {} bytes", found.path.escape_ascii(), found.node.size);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Format source: the kernel's `fs/erofs/erofs_fs.h`, `inode.c`, `dir.c`, `data.c` and `xattr.c`.

mod data;
mod directory;
mod inode;
mod xattrs;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, BLOCK_BITS, SLOT, SUPER_MAGIC, SUPER_OFFSET, SUPER_SIZE, crc32c};
use crate::erofs::Timestamp;

pub use data::Data;
pub use directory::{DirectoryEntry, Entries, Found, Walk};
pub use inode::Node;
pub use xattrs::Attribute;

const FEATURE_COMPAT_SB_CHKSUM: u32 = 0x1;
/// How lz4 pads its clusters: set by mkfs.erofs whether anything is compressed or not.
const FEATURE_INCOMPAT_ZERO_PADDING: u32 = 0x1;
const FEATURE_INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The image's file.
    #[error("the image cannot be read")]
    Read(#[source] io::Error),
    /// Something else.
    #[error("this is not an EROFS image")]
    NotErofs,
    /// Its first block is not what its checksum says, or contradicts itself.
    #[error("the image's superblock is damaged")]
    Superblock,
    /// The file is shorter than the image.
    #[error("the image has {actual} bytes instead of {expected}: it is cut off")]
    CutOff {
        /// As the superblock says.
        expected: u64,
        /// As the file has.
        actual: u64,
    },
    /// A feature of the format that Warren's own images never have.
    #[error("the image uses {0}, which cannot be read here")]
    Unsupported(&'static str),
    /// An inode, or what belongs to it.
    #[error("inode {nid} of the image is damaged: {what}")]
    Inode {
        /// Its node number.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The entries of a directory.
    #[error("directory {nid} of the image is damaged: {what}")]
    Directory {
        /// Its node number.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Read(source) => source,
            damaged => io::Error::new(io::ErrorKind::InvalidData, damaged),
        }
    }
}

/// An image that is read.
#[derive(Debug)]
pub struct Reader {
    file: File,
    /// Bytes of the image; the file may be longer.
    end: u64,
    root: u64,
    inodes: u64,
    uuid: [u8; 16],
    /// What compact inodes have for a time.
    built: Timestamp,
    /// Offset of the slot with number 0.
    metadata: u64,
    /// Offset of the shared extended attributes.
    shared_xattrs: u64,
}

impl Reader {
    /// Checks the superblock.
    ///
    /// # Errors
    /// What is no image, a damaged, cut-off or unsupported one.
    pub fn open(file: File) -> Result<Self, ReadError> {
        let mut block = [0u8; BLOCK as usize];
        file.read_exact_at(&mut block, 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::NotErofs,
                _ => ReadError::Read(error),
            })?;
        let super_block = &block[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE];
        if u32_at(super_block, 0) != SUPER_MAGIC {
            return Err(ReadError::NotErofs);
        }
        if super_block[12] != BLOCK_BITS || super_block[90] != 0 {
            return Err(ReadError::Unsupported(
                "blocks of another size than 4096 bytes",
            ));
        }
        let supported = FEATURE_INCOMPAT_ZERO_PADDING | FEATURE_INCOMPAT_CHUNKED_FILE;
        if u32_at(super_block, 80) & !supported != 0 || u16_at(super_block, 86) != 0 {
            return Err(ReadError::Unsupported(
                "features of later versions, or further devices",
            ));
        }
        let reader = Reader {
            end: u64::from(u32_at(super_block, 36)) * BLOCK,
            root: u64::from(u16_at(super_block, 14)),
            inodes: u64_at(super_block, 16),
            uuid: bytes_at(super_block, 48),
            built: Timestamp {
                seconds: u64_at(super_block, 24).cast_signed(),
                nanoseconds: u32_at(super_block, 32),
            },
            metadata: u64::from(u32_at(super_block, 40)) * BLOCK,
            shared_xattrs: u64::from(u32_at(super_block, 44)) * BLOCK,
            file,
        };
        if u32_at(super_block, 8) & FEATURE_COMPAT_SB_CHKSUM != 0 {
            let expected = u32_at(super_block, 4);
            block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].fill(0);
            if crc32c(&block[SUPER_OFFSET..]) != expected {
                return Err(ReadError::Superblock);
            }
        }
        // More inodes than slots is the one contradiction that can be seen from here.
        if reader.end < BLOCK || reader.inodes > reader.end / SLOT {
            return Err(ReadError::Superblock);
        }
        let actual = reader.file.metadata().map_err(ReadError::Read)?.len();
        if actual < reader.end {
            return Err(ReadError::CutOff {
                expected: reader.end,
                actual,
            });
        }
        Ok(reader)
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Inodes, as the superblock counts them.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// What a mounted image is known by.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// The root directory.
    ///
    /// # Errors
    /// A damaged image.
    pub fn root(&self) -> Result<Node, ReadError> {
        let root = self.node(self.root)?;
        match root.file_type {
            super::FileType::Directory => Ok(root),
            _ => Err(damaged(&root, "the root is no directory")),
        }
    }

    /// An inode by its node number.
    ///
    /// # Errors
    /// A damaged image, or data that is compressed.
    pub fn node(&self, nid: u64) -> Result<Node, ReadError> {
        inode::read(self, nid)
    }

    /// The entries of a directory but for `.` and `..`, sorted by their bytes.
    ///
    /// # Errors
    /// What is no directory.
    pub fn entries(&self, directory: &Node) -> Result<Entries<'_>, ReadError> {
        Entries::new(self, directory, None)
    }

    /// Everything in the image, a directory before what is in it, the root first.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    /// All extended attributes of an inode by their full names, in the image's order.
    ///
    /// # Errors
    /// A damaged image.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Attribute>, ReadError> {
        xattrs::read(self, node)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// What is none, or a damaged one.
    pub fn target(&self, node: &Node) -> Result<Vec<u8>, ReadError> {
        // The kernel reads links of less than a page only.
        if node.file_type != super::FileType::Symlink || node.size == 0 || node.size >= BLOCK {
            return Err(damaged(node, "it is no symbolic link of a possible length"));
        }
        let mut target = vec![0; node.size as usize];
        Data::new(self, node).fill(0, &mut target)?;
        Ok(target)
    }

    /// The contents of a regular file.
    ///
    /// # Errors
    /// What is no regular file.
    pub fn data(&self, node: &Node) -> Result<Data<'_>, ReadError> {
        match node.file_type {
            super::FileType::Regular => Ok(Data::new(self, node)),
            _ => Err(damaged(node, "it is no regular file")),
        }
    }

    /// Bytes of the image, all of which must be inside it.
    fn read_at(&self, nid: u64, at: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.end) {
            return Err(ReadError::Inode {
                nid,
                what: "it reaches beyond the image's end",
            });
        }
        self.file.read_exact_at(into, at).map_err(ReadError::Read)
    }
}

fn damaged(node: &Node, what: &'static str) -> ReadError {
    ReadError::Inode {
        nid: node.nid,
        what,
    }
}

fn bytes_at<const COUNT: usize>(from: &[u8], at: usize) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    bytes.copy_from_slice(&from[at..at + COUNT]);
    bytes
}

fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(from, at))
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(from, at))
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(from, at))
}

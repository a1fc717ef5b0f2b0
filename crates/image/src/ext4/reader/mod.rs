//! Reading: superblock, groups, and the blocks behind them, as they are after the journal's replay.

mod directory;
mod extent;
mod inode;
mod journal;
mod xattr;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{
    MAGIC, ROOT_INODE, SUPERBLOCK_AT, SUPERBLOCK_BYTES, incompat, ro_compat, u16_at, u32_at,
};
use crate::crc32c;
use journal::Replay;

pub use extent::Segment;
pub use inode::Inode;
pub use xattr::Xattrs;

/// Why a disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The file below.
    #[error("the disk cannot be read")]
    Read(#[source] io::Error),
    /// Another file system, or none.
    #[error("there is no ext4 on the disk")]
    NotExt4,
    /// What only other programs understand.
    #[error("the disk's file system uses {0}, which is not understood here")]
    Unsupported(String),
    /// What no intact disk has.
    #[error("the disk's file system is damaged: {0}")]
    Damaged(&'static str),
}

/// Where the bytes of a disk are.
pub trait Source {
    /// Fills `into` from `at` on.
    ///
    /// # Errors
    /// Where the bytes are not there, or cannot be read.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// How many there are.
    ///
    /// # Errors
    /// Where this cannot be told.
    fn size(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(into, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for &File {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(into, at)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for &[u8] {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let end = usize::try_from(at)
            .ok()
            .and_then(|at| Some((at, at.checked_add(into.len())?)));
        let from = end.and_then(|(at, end)| self.get(at..end));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// What the superblock says, checked.
#[derive(Debug, Clone)]
struct Geometry {
    block_bytes: u64,
    blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: usize,
    descriptor_bytes: u64,
    incompat: u32,
    /// Where metadata has checksums: what they begin with.
    seed: Option<u32>,
    journal_inode: u32,
}

impl Geometry {
    fn read(superblock: &[u8], disk: u64) -> Result<Self, Ext4Error> {
        let number = |at| u32_at(superblock, at);
        if u16_at(superblock, 0x38) != MAGIC {
            return Err(Ext4Error::NotExt4);
        }
        let damaged = |what| Err(Ext4Error::Damaged(what));
        let unsupported = |what: String| Err(Ext4Error::Unsupported(what));
        let (incompat, ro_compat) = (number(0x60), number(0x64));
        if number(0x4c) < 1 || incompat & !incompat::KNOWN != 0 {
            return unsupported(format!(
                "features {:#x} (revision {})",
                incompat & !incompat::KNOWN,
                number(0x4c)
            ));
        }
        if ro_compat & ro_compat::BIGALLOC != 0 {
            return unsupported("clusters of blocks".to_owned());
        }
        let seed = (ro_compat & ro_compat::METADATA_CSUM != 0).then(|| {
            if superblock[0x175] != 1 {
                return None;
            }
            Some(if incompat & incompat::CSUM_SEED != 0 {
                number(0x270)
            } else {
                crc32c::update(!0, &superblock[0x68..0x78])
            })
        });
        let seed = match seed {
            Some(None) => return unsupported("another kind of checksum".to_owned()),
            Some(Some(seed)) => Some(seed),
            None => None,
        };
        if seed.is_some() && crc32c::update(!0, &superblock[..0x3fc]) != number(0x3fc) {
            return damaged("the superblock's checksum is wrong");
        }
        let block_bytes = match number(0x18) {
            log @ 0..=6 => 1024u64 << log,
            _ => return damaged("the size of a block is none"),
        };
        let high = if incompat & incompat::BITS_64 != 0 {
            u64::from(number(0x150))
        } else {
            0
        };
        let blocks = high << 32 | u64::from(number(0x04));
        let fits = blocks
            .checked_mul(block_bytes)
            .is_some_and(|bytes| bytes <= disk);
        if blocks == 0 || !fits {
            return damaged("it is larger than the disk");
        }
        let descriptor_bytes = if incompat & incompat::BITS_64 != 0 {
            u64::from(u16_at(superblock, 0xfe))
        } else {
            32
        };
        let geometry = Geometry {
            block_bytes,
            blocks,
            first_data_block: u64::from(number(0x14)),
            blocks_per_group: u64::from(number(0x20)),
            inodes: number(0x00),
            inodes_per_group: number(0x28),
            inode_bytes: usize::from(u16_at(superblock, 0x58)),
            descriptor_bytes,
            incompat,
            seed,
            journal_inode: number(0xe0),
        };
        let inode_fits = (128..=1024).contains(&geometry.inode_bytes)
            && geometry.inode_bytes.is_power_of_two()
            && geometry.inode_bytes as u64 <= block_bytes;
        if !inode_fits {
            return damaged("the size of an inode is none");
        }
        if geometry.blocks_per_group == 0
            || geometry.blocks_per_group > 8 * block_bytes
            || geometry.inodes_per_group == 0
            || !(32..=1024).contains(&descriptor_bytes)
            || geometry.first_data_block != u64::from(block_bytes == 1024)
        {
            return damaged("its groups have no size");
        }
        Ok(geometry)
    }
}

/// An ext4 on a disk, for reading. Not for several threads at a time.
pub struct Ext4<S> {
    disk: S,
    geometry: Geometry,
    replay: Replay,
    /// Blocks of metadata that may still be read: an intact disk has no more of them than blocks, and asks for each a few times
    /// at most, and for those of its inodes a few times for each.
    metadata_left: Cell<u64>,
    /// Blocks of data that files may still claim: on an intact disk no two files share one.
    data_left: Cell<u64>,
}

impl<S: Source> Ext4<S> {
    /// Opens a disk, and reads its journal where it was not unmounted.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn open(disk: S) -> Result<Self, Ext4Error> {
        let size = disk.size().map_err(Ext4Error::Read)?;
        if size < SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64 {
            return Err(Ext4Error::NotExt4);
        }
        let mut superblock = vec![0; SUPERBLOCK_BYTES];
        disk.read_at(&mut superblock, SUPERBLOCK_AT)
            .map_err(Ext4Error::Read)?;
        let geometry = Geometry::read(&superblock, size)?;
        let blocks = geometry.blocks;
        let places = blocks.saturating_mul(geometry.block_bytes / geometry.inode_bytes as u64);
        let inodes = places.min(u64::from(geometry.inodes));
        let mut ext4 = Ext4 {
            disk,
            geometry,
            replay: Replay::default(),
            metadata_left: Cell::new((blocks + inodes).saturating_mul(4).saturating_add(1024)),
            data_left: Cell::new(blocks),
        };
        if ext4.geometry.incompat & incompat::RECOVER != 0 {
            ext4.replay = journal::read(&ext4)?;
            // The superblock itself may be in the journal.
            let block = ext4.block(SUPERBLOCK_AT / ext4.geometry.block_bytes)?;
            let at = (SUPERBLOCK_AT % ext4.geometry.block_bytes) as usize;
            ext4.geometry = Geometry::read(&block[at..at + SUPERBLOCK_BYTES], size)?;
        }
        Ok(ext4)
    }

    /// The directory that everything is in.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn root(&self) -> Result<Inode, Ext4Error> {
        self.inode(ROOT_INODE)
    }

    /// Bytes of the file system.
    pub fn bytes(&self) -> u64 {
        self.geometry.blocks * self.geometry.block_bytes
    }

    /// One block of metadata.
    fn block(&self, number: u64) -> Result<Vec<u8>, Ext4Error> {
        let left = self.metadata_left.get();
        if left == 0 {
            return Err(Ext4Error::Damaged("its metadata has no end"));
        }
        self.metadata_left.set(left - 1);
        let mut block = vec![0; self.geometry.block_bytes as usize];
        self.read_block(number, &mut block)?;
        Ok(block)
    }

    /// A block, from the journal where that has a newer one.
    fn read_block(&self, number: u64, into: &mut [u8]) -> Result<(), Ext4Error> {
        if number >= self.geometry.blocks {
            return Err(Ext4Error::Damaged("it refers to a block behind its end"));
        }
        let newer = self.replay.get(number);
        let place = newer.map_or(number, |newer| newer.place);
        self.disk
            .read_at(into, place * self.geometry.block_bytes)
            .map_err(Ext4Error::Read)?;
        if newer.is_some_and(|newer| newer.escaped) && into.len() >= 4 {
            into[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
        }
        Ok(())
    }

    /// The raw inode.
    fn inode_bytes(&self, number: u32) -> Result<Vec<u8>, Ext4Error> {
        let geometry = &self.geometry;
        if number == 0 || number > geometry.inodes {
            return Err(Ext4Error::Damaged("it refers to an inode behind the last"));
        }
        let (group, index) = (
            u64::from((number - 1) / geometry.inodes_per_group),
            u64::from((number - 1) % geometry.inodes_per_group),
        );
        let at = group * geometry.descriptor_bytes;
        let table = geometry.first_data_block + 1 + at / geometry.block_bytes;
        let descriptors = self.block(table)?;
        let at = (at % geometry.block_bytes) as usize;
        let end = at + geometry.descriptor_bytes as usize;
        let descriptor = descriptors
            .get(at..end)
            .ok_or(Ext4Error::Damaged("a group's description is cut"))?;
        let high = if descriptor.len() >= 64 {
            u64::from(u32_at(descriptor, 0x28))
        } else {
            0
        };
        let inodes = high << 32 | u64::from(u32_at(descriptor, 0x08));
        let at = index * geometry.inode_bytes as u64;
        let block = self.block(
            inodes
                .checked_add(at / geometry.block_bytes)
                .ok_or(Ext4Error::Damaged("it refers to a block behind its end"))?,
        )?;
        let at = (at % geometry.block_bytes) as usize;
        Ok(block[at..at + geometry.inode_bytes].to_vec())
    }
}

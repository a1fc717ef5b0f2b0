//! Inodes: what a file is, whose, and from when.

use super::{Ext4, Ext4Error, Source};
use crate::crc32c;
use crate::erofs::{FileType, Timestamp};
use crate::ext4::format::{flag, u16_at, u32_at};

/// An inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub file_type: FileType,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Names it has.
    pub links: u16,
    /// Modification time.
    pub mtime: Timestamp,
    pub(super) flags: u32,
    pub(super) raw: Vec<u8>,
    /// What checksums of its blocks begin with.
    pub(super) seed: Option<u32>,
}

impl<S: Source> Ext4<S> {
    /// The inode that a directory's entry leads to.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        let raw = self.inode_bytes(number)?;
        let seed = self.geometry.seed.map(|seed| {
            let seed = crc32c::update(seed, &number.to_le_bytes());
            crc32c::update(seed, &raw[0x64..0x68])
        });
        check(&raw, seed)?;
        let flags = u32_at(&raw, 0x20);
        let unsupported = [
            (flag::INLINE_DATA, "data within inodes"),
            (flag::ENCRYPTED, "encryption"),
            (flag::EA_INODE, "attributes in inodes of their own"),
        ];
        if let Some((_, what)) = unsupported.iter().find(|(bit, _)| flags & bit != 0) {
            return Err(Ext4Error::Unsupported((*what).to_owned()));
        }
        let mode = u16_at(&raw, 0x00);
        let pair = |low: usize, high: usize| {
            u32::from(u16_at(&raw, high)) << 16 | u32::from(u16_at(&raw, low))
        };
        let file_type =
            FileType::from_mode(mode).ok_or(Ext4Error::Damaged("a file is of no kind"))?;
        if u16_at(&raw, 0x1a) == 0 {
            return Err(Ext4Error::Damaged("a name leads to a deleted file"));
        }
        Ok(Inode {
            number,
            file_type,
            device: matches!(file_type, FileType::Character | FileType::Block)
                .then(|| device(&raw)),
            permissions: mode & 0o7777,
            uid: pair(0x02, 0x78),
            gid: pair(0x18, 0x7a),
            size: u64::from(u32_at(&raw, 0x6c)) << 32 | u64::from(u32_at(&raw, 0x04)),
            links: u16_at(&raw, 0x1a),
            mtime: mtime(&raw),
            flags,
            raw,
            seed,
        })
    }
}

/// How much of an inode's second part is used, 0 where it has none.
pub(super) fn extra_bytes(raw: &[u8]) -> usize {
    if raw.len() > 128 {
        usize::from(u16_at(raw, 0x80))
    } else {
        0
    }
}

fn check(raw: &[u8], seed: Option<u32>) -> Result<(), Ext4Error> {
    let extra = extra_bytes(raw);
    if !extra.is_multiple_of(4) || 128 + extra > raw.len() {
        return Err(Ext4Error::Damaged("an inode is longer than its place"));
    }
    let Some(seed) = seed else { return Ok(()) };
    let mut plain = raw.to_vec();
    plain[0x7c..0x7e].fill(0);
    let mut stored = u32::from(u16_at(raw, 0x7c));
    let mut mask = 0xffff;
    if extra >= 4 {
        plain[0x82..0x84].fill(0);
        stored |= u32::from(u16_at(raw, 0x82)) << 16;
        mask = !0;
    }
    if crc32c::update(seed, &plain) & mask == stored {
        Ok(())
    } else {
        Err(Ext4Error::Damaged("an inode's checksum is wrong"))
    }
}

/// Small numbers are in the first word, in the old form; others in the second.
fn device(raw: &[u8]) -> (u32, u32) {
    let (old, new) = (u32_at(raw, 0x28), u32_at(raw, 0x2c));
    if old != 0 {
        ((old >> 8) & 0xff, old & 0xff)
    } else {
        ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00))
    }
}

fn mtime(raw: &[u8]) -> Timestamp {
    let seconds = i64::from(u32_at(raw, 0x10).cast_signed());
    if extra_bytes(raw) < 12 {
        return Timestamp {
            seconds,
            nanoseconds: 0,
        };
    }
    // Two bits of epoch, thirty of nanoseconds.
    let extra = u32_at(raw, 0x88);
    Timestamp {
        seconds: seconds + (i64::from(extra & 3) << 32),
        nanoseconds: (extra >> 2).min(999_999_999),
    }
}

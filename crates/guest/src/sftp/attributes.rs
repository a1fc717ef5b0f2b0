//! What is known of a file, or is to be set: section 5 of the draft.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use super::wire::{Fields, Malformed, Packet};

const SIZE: u32 = 0x1;
const OWNER: u32 = 0x2;
const PERMISSIONS: u32 = 0x4;
const TIMES: u32 = 0x8;
const EXTENDED: u32 = 0x8000_0000;

/// Attributes of a file; those that are absent are not known, or stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes.
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// `st_mode`, with the type of the file.
    pub mode: Option<u32>,
    /// Last access and last change, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let flags = fields.u32()?;
        let mut read = Self::default();
        if flags & SIZE != 0 {
            read.size = Some(fields.u64()?);
        }
        if flags & OWNER != 0 {
            read.owner = Some((fields.u32()?, fields.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            read.mode = Some(fields.u32()?);
        }
        if flags & TIMES != 0 {
            read.times = Some((fields.u32()?, fields.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..fields.u32()? {
                fields.string()?;
                fields.string()?;
            }
        }
        Ok(read)
    }

    pub(super) fn write(self, packet: Packet) -> Packet {
        let flag = |present: bool, flag| if present { flag } else { 0 };
        let mut packet = packet.u32(
            flag(self.size.is_some(), SIZE)
                | flag(self.owner.is_some(), OWNER)
                | flag(self.mode.is_some(), PERMISSIONS)
                | flag(self.times.is_some(), TIMES),
        );
        if let Some(size) = self.size {
            packet = packet.u64(size);
        }
        if let Some((user, group)) = self.owner {
            packet = packet.u32(user).u32(group);
        }
        if let Some(mode) = self.mode {
            packet = packet.u32(mode);
        }
        if let Some((accessed, changed)) = self.times {
            packet = packet.u32(accessed).u32(changed);
        }
        packet
    }
}

impl From<&Metadata> for Attributes {
    fn from(metadata: &Metadata) -> Self {
        // The protocol counts seconds in 32 bits: what is outside is shown at the end that is nearer.
        let seconds = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
        Self {
            size: Some(metadata.size()),
            owner: Some((metadata.uid(), metadata.gid())),
            mode: Some(metadata.mode()),
            times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
        }
    }
}

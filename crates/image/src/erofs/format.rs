//! Encoders of the fixed structures: superblock, extended inode, directory entry, device number, checksum.

use warren_tar::Timestamp;

/// Bytes in a block (`blkszbits` = 12): the only size that every kernel with 4 KiB pages can mount.
pub(crate) const BLOCK: u64 = 4096;
/// log2 of [`BLOCK`].
pub(crate) const BLOCK_BITS: u8 = 12;
/// Inodes start on multiples of this; a nid counts them.
pub(crate) const SLOT: u64 = 32;
/// `sizeof(struct erofs_inode_extended)`.
pub(crate) const INODE_SIZE: usize = 64;
/// `sizeof(struct erofs_dirent)`.
pub(crate) const DIRENT_SIZE: usize = 12;
/// `EROFS_SUPER_OFFSET`.
pub(crate) const SUPER_OFFSET: usize = 1024;
/// `sizeof(struct erofs_super_block)`.
pub(crate) const SUPER_SIZE: usize = 128;
/// Where the root inode lives, right behind the superblock.
pub(crate) const ROOT_OFFSET: usize = SUPER_OFFSET + SUPER_SIZE;
/// The root's node number, with `meta_blkaddr` 0.
pub(crate) const ROOT_NID: u16 = (ROOT_OFFSET / SLOT as usize) as u16;
/// Offset of `i_nlink` in `struct erofs_inode_extended`.
pub(crate) const NLINK_OFFSET: u64 = 44;
/// `EROFS_NULL_ADDR` in a block map: a hole.
pub(crate) const NULL_ADDR: u32 = u32::MAX;

/// `EROFS_SUPER_MAGIC_V1`.
pub(crate) const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
const FEATURE_COMPAT_SB_CHKSUM: u32 = 0x1;
const FEATURE_COMPAT_MTIME: u32 = 0x2;
const FEATURE_INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// What an inode is; the discriminants are the `file_type` of `struct erofs_dirent` (generic `FT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A character device.
    Character = 3,
    /// A block device.
    Block = 4,
    /// A named pipe.
    Fifo = 5,
    /// A Unix socket.
    Socket = 6,
    /// A symbolic link.
    Symlink = 7,
}

impl FileType {
    const ALL: [FileType; 7] = [
        FileType::Regular,
        FileType::Directory,
        FileType::Character,
        FileType::Block,
        FileType::Fifo,
        FileType::Socket,
        FileType::Symlink,
    ];

    /// By the `file_type` of a directory entry.
    pub(crate) fn from_entry(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == number)
    }

    /// By the `S_IFMT` bits of `i_mode`.
    pub(crate) fn from_mode(mode: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.mode_bits() == mode & 0o170_000)
    }

    /// The `S_IFMT` bits of `i_mode`.
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            FileType::Regular => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::Character => 0o020_000,
            FileType::Block => 0o060_000,
            FileType::Fifo => 0o010_000,
            FileType::Socket => 0o140_000,
            FileType::Symlink => 0o120_000,
        }
    }
}

/// `EROFS_INODE_*` data layouts this writer uses, with their `i_u`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `EROFS_INODE_FLAT_PLAIN` at this block.
    Plain { raw_blkaddr: u32 },
    /// `EROFS_INODE_FLAT_INLINE`: full blocks from here, the tail behind the inode.
    Inline { raw_blkaddr: u32 },
    /// `EROFS_INODE_CHUNK_BASED` with a 4-byte block map of chunks of `BLOCK << bits`.
    Chunked { bits: u8 },
    /// A device, encoded.
    Device { rdev: u32 },
    /// Pipes and sockets: nothing.
    Empty,
}

/// Everything in `struct erofs_inode_extended`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InodeFields {
    pub(crate) file_type: FileType,
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) size: u64,
    pub(crate) links: u32,
    pub(crate) ino: u32,
    /// Bytes of the xattr body that follows, 0 or at least 12.
    pub(crate) xattr_bytes: usize,
    pub(crate) layout: Layout,
}

impl InodeFields {
    pub(crate) fn encode(&self) -> [u8; INODE_SIZE] {
        let (layout, union): (u16, u32) = match self.layout {
            Layout::Plain { raw_blkaddr } => (0, raw_blkaddr),
            Layout::Inline { raw_blkaddr } => (2, raw_blkaddr),
            Layout::Chunked { bits } => (4, u32::from(bits)),
            Layout::Device { rdev } => (0, rdev),
            Layout::Empty => (0, 0),
        };
        let icount = match self.xattr_bytes {
            0 => 0,
            bytes => ((bytes - 12) / 4 + 1) as u16,
        };
        let mut raw = [0u8; INODE_SIZE];
        raw[0..2].copy_from_slice(&(1 | layout << 1).to_le_bytes());
        raw[2..4].copy_from_slice(&icount.to_le_bytes());
        let mode = self.file_type.mode_bits() | (self.permissions & 0o7777);
        raw[4..6].copy_from_slice(&mode.to_le_bytes());
        raw[8..16].copy_from_slice(&self.size.to_le_bytes());
        raw[16..20].copy_from_slice(&union.to_le_bytes());
        raw[20..24].copy_from_slice(&self.ino.to_le_bytes());
        raw[24..28].copy_from_slice(&self.uid.to_le_bytes());
        raw[28..32].copy_from_slice(&self.gid.to_le_bytes());
        raw[32..40].copy_from_slice(&self.mtime.seconds.to_le_bytes());
        raw[40..44].copy_from_slice(&self.mtime.nanoseconds.to_le_bytes());
        raw[44..48].copy_from_slice(&self.links.to_le_bytes());
        raw
    }
}

/// Everything variable in `struct erofs_super_block`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Superblock {
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) chunked: Chunked,
}

/// Whether any inode is chunk-based: an incompatible feature that must be declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    No,
    Yes,
}

impl Superblock {
    /// Writes the superblock into block 0, which already holds the root inode, and seals it: the checksum
    /// covers the block from the superblock to its end.
    pub(crate) fn seal(&self, block: &mut [u8]) {
        let sb = &mut block[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE];
        sb.fill(0);
        sb[0..4].copy_from_slice(&SUPER_MAGIC.to_le_bytes());
        sb[8..12].copy_from_slice(&(FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME).to_le_bytes());
        sb[12] = BLOCK_BITS;
        sb[14..16].copy_from_slice(&ROOT_NID.to_le_bytes());
        sb[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        sb[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        sb[48..64].copy_from_slice(&self.uuid);
        let incompat = match self.chunked {
            Chunked::No => 0,
            Chunked::Yes => FEATURE_INCOMPAT_CHUNKED_FILE,
        };
        sb[80..84].copy_from_slice(&incompat.to_le_bytes());
        let checksum = crc32c(&block[SUPER_OFFSET..BLOCK as usize]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// The kernel's `new_encode_dev`; `None` where major or minor is wider than Linux has.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// CRC-32C as the kernel's `crc32c(~0, …)`: no final inversion. Bitwise: it runs over 3 KiB per image.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let lowest = crc & 1;
            crc >>= 1;
            if lowest == 1 {
                crc ^= 0x82F6_3B78;
            }
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        // RFC 3720 B.4 gives the inverted form of the same polynomial.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        assert_eq!(encode_device(8, 1), Some(0x801));
        assert_eq!(encode_device(4095, 0xfffff), Some(0xffff_ffff));
        assert_eq!(encode_device(259, 300), Some(0x0011_032c));
        assert_eq!(encode_device(4096, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
    }
}

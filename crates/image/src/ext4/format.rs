//! Numbers of the format. Sources: Linux, `Documentation/filesystems/ext4/` and `fs/ext4/ext4.h`; e2fsprogs, `ext2_fs.h`.

/// Where the superblock is, whatever the block size.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
/// How long it is.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;
pub(super) const MAGIC: u16 = 0xef53;

pub(super) const ROOT_INODE: u32 = 2;

/// Features without which the disk cannot be read.
pub(super) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const BITS_64: u32 = 0x80;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGE_DIR: u32 = 0x4000;
    /// What is understood here.
    pub(crate) const KNOWN: u32 =
        FILETYPE | RECOVER | EXTENTS | BITS_64 | FLEX_BG | CSUM_SEED | LARGE_DIR;
}

/// Features that matter to writers only, but for the ones here.
pub(super) mod ro_compat {
    /// Blocks in clusters: extents mean something else then.
    pub(crate) const BIGALLOC: u32 = 0x200;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
}

/// Flags of inodes.
pub(super) mod flag {
    pub(crate) const ENCRYPTED: u32 = 0x800;
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    pub(crate) const EA_INODE: u32 = 0x20_0000;
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
}

pub(super) const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents longer than this are allocated and not written: they read as zeros, and are this much shorter.
pub(super) const WRITTEN_MOST: u16 = 32768;
/// Deeper trees than any disk needs.
pub(super) const EXTENT_DEPTH: u16 = 5;

pub(super) const XATTR_MAGIC: u32 = 0xea02_0000;

/// The prefix that stands for a number in an attribute's entry.
pub(super) fn xattr_prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        0 => b"",
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        8 => b"system.richacl",
        _ => return None,
    })
}

/// Little-endian numbers at fixed places. Callers have checked that the place is there.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

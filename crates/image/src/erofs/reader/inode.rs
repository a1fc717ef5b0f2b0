//! `struct erofs_inode_compact` and `struct erofs_inode_extended`.

use super::{ReadError, Reader, u16_at, u32_at, u64_at};
use crate::erofs::Timestamp;
use crate::erofs::format::{BLOCK, FileType, INODE_SIZE, SLOT};

const COMPACT_SIZE: usize = 32;
/// `EROFS_CHUNK_FORMAT_BLKBITS_MASK` and `EROFS_CHUNK_FORMAT_INDEXES`.
const CHUNK_BITS: u32 = 0x1f;
const CHUNK_INDEXES: u32 = 0x20;

/// What an image knows of one inode.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its number: the same for all names of one file.
    pub nid: u64,
    /// What it is.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Bytes of a file or of a symbolic link's target.
    pub size: u64,
    /// How many names it has.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Offset of the extended attributes in the image, and their bytes.
    pub(super) xattrs: (u64, usize),
    pub(super) layout: Layout,
}

/// Where data lies; offsets are the image's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// Nowhere: it has none.
    None,
    /// In one piece.
    Plain { at: u64 },
    /// All whole blocks but the last in one piece, the rest behind the inode.
    Inline { at: u64, tail_at: u64 },
    /// In chunks of `1 << bits` bytes, whose places are in a map.
    Chunked {
        map: u64,
        entry: MapEntry,
        bits: u32,
    },
}

/// An entry of a chunk map.
#[derive(Debug, Clone, Copy)]
pub(super) enum MapEntry {
    /// A block number.
    Block,
    /// `struct erofs_inode_chunk_index`: device and block number.
    Index,
}

impl MapEntry {
    pub(super) fn size(self) -> u64 {
        match self {
            MapEntry::Block => 4,
            MapEntry::Index => 8,
        }
    }
}

pub(super) fn read(reader: &Reader, nid: u64) -> Result<Node, ReadError> {
    let wrong = |what| ReadError::Inode { nid, what };
    let at = nid
        .checked_mul(SLOT)
        .and_then(|offset| offset.checked_add(reader.metadata))
        .ok_or_else(|| wrong("its number is too large"))?;
    let mut raw = [0u8; INODE_SIZE];
    reader.read_at(nid, at, &mut raw[..COMPACT_SIZE])?;
    let format = u16_at(&raw, 0);
    let extended = format & 1 == 1;
    if format & !0xf != 0 {
        return Err(wrong("it is of an unknown format"));
    }
    let length = if extended {
        reader.read_at(nid, at, &mut raw)?;
        INODE_SIZE
    } else {
        COMPACT_SIZE
    };
    let xattr_bytes = match u16_at(&raw, 2) {
        0 => 0,
        count => 12 + 4 * (usize::from(count) - 1),
    };
    let behind = at + (length + xattr_bytes) as u64;
    if behind > reader.end {
        return Err(wrong("it reaches beyond the image's end"));
    }
    let mode = u16_at(&raw, 4);
    let file_type = FileType::from_mode(mode).ok_or_else(|| wrong("its type is unknown"))?;
    let mut node = Node {
        nid,
        file_type,
        permissions: mode & 0o7777,
        uid: u16_at(&raw, 24).into(),
        gid: u16_at(&raw, 26).into(),
        mtime: reader.built,
        size: u32_at(&raw, 8).into(),
        links: u16_at(&raw, 6).into(),
        device: None,
        xattrs: (at + length as u64, xattr_bytes),
        layout: Layout::None,
    };
    if extended {
        node.size = u64_at(&raw, 8);
        node.uid = u32_at(&raw, 24);
        node.gid = u32_at(&raw, 28);
        node.mtime = Timestamp {
            seconds: u64_at(&raw, 32).cast_signed(),
            nanoseconds: u32_at(&raw, 40),
        };
        node.links = u32_at(&raw, 44);
    }
    if node.mtime.nanoseconds >= 1_000_000_000 || i64::try_from(node.size).is_err() {
        return Err(wrong("its time or its size is out of range"));
    }
    let union = u32_at(&raw, 16);
    match file_type {
        FileType::Regular | FileType::Directory | FileType::Symlink => {
            node.layout = layout(reader, &node, format >> 1, union, behind)?;
        }
        FileType::Character | FileType::Block => node.device = Some(decode_device(union)),
        FileType::Fifo | FileType::Socket => {}
    }
    Ok(node)
}

fn layout(
    reader: &Reader,
    node: &Node,
    layout: u16,
    union: u32,
    behind: u64,
) -> Result<Layout, ReadError> {
    let wrong = |what| super::damaged(node, what);
    let at = u64::from(union) * BLOCK;
    // In one piece from `at`.
    let inside = |length: u64| match at.checked_add(length) {
        Some(end) if end <= reader.end => Ok(()),
        _ => Err(wrong("its data reaches beyond the image's end")),
    };
    match layout {
        _ if node.size == 0 => Ok(Layout::None),
        0 => {
            inside(node.size)?;
            Ok(Layout::Plain { at })
        }
        2 => {
            let whole = (node.size - 1) / BLOCK * BLOCK;
            let tail = node.size - whole;
            if whole > 0 {
                inside(whole)?;
            }
            if behind + tail > reader.end || behind % BLOCK + tail > BLOCK {
                return Err(wrong("its tail crosses a block"));
            }
            Ok(Layout::Inline {
                at,
                tail_at: behind,
            })
        }
        4 => {
            if union & !(CHUNK_BITS | CHUNK_INDEXES) != 0 {
                return Err(wrong("its chunks are of an unknown format"));
            }
            if node.file_type != FileType::Regular {
                return Err(ReadError::Unsupported("directories or links in chunks"));
            }
            let entry = match union & CHUNK_INDEXES {
                0 => MapEntry::Block,
                _ => MapEntry::Index,
            };
            let bits = (union & CHUNK_BITS) + BLOCK.trailing_zeros();
            let map = behind.next_multiple_of(entry.size());
            // Chunks are of 4096 bytes at least, so this cannot overflow.
            let length = node.size.div_ceil(1 << bits) * entry.size();
            if map + length > reader.end {
                return Err(wrong("its map reaches beyond the image's end"));
            }
            Ok(Layout::Chunked { map, entry, bits })
        }
        _ => Err(ReadError::Unsupported("compressed data")),
    }
}

/// The kernel's `new_decode_dev`.
fn decode_device(device: u32) -> (u32, u32) {
    let major = (device & 0xf_ff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::decode_device;
    use crate::erofs::format::encode_device;

    #[test]
    fn device_numbers_are_decoded_as_they_are_encoded() {
        for (major, minor) in [(8, 1), (1, 3), (4095, 0xf_ffff), (259, 300), (0, 0)] {
            let encoded = encode_device(major, minor);
            assert_eq!(encoded.map(decode_device), Some((major, minor)));
        }
    }
}

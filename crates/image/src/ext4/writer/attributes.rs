//! Extended attributes: in the inode while there is room, the others in one block (`fs/ext4/xattr.h`).

use super::bytes::{put16, put32};
use super::geometry::BLOCK;
use crate::crc32c;
use crate::erofs::Attribute;
use crate::ext4::format::{XATTR_MAGIC, xattr_prefix};

/// Behind an inode of 256 bytes whose second part is 32 long, with the magic number.
pub(super) const IN_INODE: usize = 96;
/// `struct ext4_xattr_header`.
const HEADER: usize = 32;
/// `struct ext4_xattr_entry`.
const ENTRY: usize = 16;
const LISTS: [u8; 2] = [2, 3];

/// The attributes of one inode.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// What follows the inode; empty without any.
    pub(super) inode: Vec<u8>,
    /// A block but for its checksum.
    pub(super) block: Option<Vec<u8>>,
}

struct Entry {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Entry {
    fn room(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`, with names of unsigned bytes.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0u32, |hash, byte| {
            (hash << 5) ^ (hash >> 27) ^ u32::from(*byte)
        });
        self.value.chunks(4).fold(name, |hash, word| {
            let mut padded = [0; 4];
            padded[..word.len()].copy_from_slice(word);
            hash.rotate_left(16) ^ u32::from_le_bytes(padded)
        })
    }
}

impl Encoded {
    /// Puts them where they fit.
    pub(super) fn of(attributes: Vec<Attribute>) -> Result<Self, &'static str> {
        let mut entries = Vec::new();
        for (name, value) in attributes {
            entries.push(entry(&name, value)?);
        }
        // The kernel looks them up in a block in this order.
        entries.sort_by(|a, b| {
            (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name))
        });
        // Four zero bytes end a list.
        let mut left = IN_INODE - 4 - 4;
        let (inside, outside): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| {
            let fits = entry.room() <= left;
            if fits {
                left -= entry.room();
            }
            fits
        });
        let mut encoded = Encoded::default();
        if !inside.is_empty() {
            let mut area = vec![0; IN_INODE];
            put32(&mut area, 0, XATTR_MAGIC);
            // Offsets are counted from behind the magic number here.
            fill(&mut area[4..], 0, &inside);
            encoded.inode = area;
        }
        if !outside.is_empty() {
            let room: usize = outside.iter().map(Entry::room).sum();
            if HEADER + room + 4 > BLOCK as usize {
                return Err("its extended attributes are longer than a block of 4096 bytes");
            }
            let mut block = vec![0; BLOCK as usize];
            put32(&mut block, 0, XATTR_MAGIC);
            put32(&mut block, 4, 1);
            put32(&mut block, 8, 1);
            let hash = outside
                .iter()
                .fold(0u32, |hash, entry| hash.rotate_left(16) ^ entry.hash());
            put32(&mut block, 12, hash);
            fill(&mut block, HEADER, &outside);
            encoded.block = Some(block);
        }
        Ok(encoded)
    }
}

/// Gives a block the checksum that it has at its place.
pub(super) fn seal(block: &mut [u8], number: u64, seed: u32) {
    let checksum = crc32c::update(crc32c::update(seed, &number.to_le_bytes()), block);
    put32(block, 16, checksum);
}

/// Entries from `at` on, values from the end of the area downwards.
fn fill(area: &mut [u8], mut at: usize, entries: &[Entry]) {
    let mut end = area.len();
    for entry in entries {
        end -= entry.value.len().next_multiple_of(4);
        area[end..end + entry.value.len()].copy_from_slice(&entry.value);
        area[at] = entry.name.len() as u8;
        area[at + 1] = entry.index;
        // An empty value has no place.
        put16(
            area,
            at + 2,
            if entry.value.is_empty() {
                0
            } else {
                end as u16
            },
        );
        put32(area, at + 8, entry.value.len() as u32);
        put32(area, at + 12, entry.hash());
        let name = at + ENTRY;
        area[name..name + entry.name.len()].copy_from_slice(&entry.name);
        at = name + entry.name.len().next_multiple_of(4);
    }
}

fn entry(name: &[u8], value: Vec<u8>) -> Result<Entry, &'static str> {
    // Whole names before prefixes: an access control list has nothing behind its own.
    let known = [2, 3, 1, 4, 6].into_iter().find_map(|index| {
        let rest = name.strip_prefix(xattr_prefix(index)?)?;
        (!LISTS.contains(&index) || rest.is_empty()).then_some((index, rest))
    });
    let (index, rest) = known.ok_or("it has an extended attribute of an unknown kind")?;
    if rest.len() > 255 {
        return Err("the name of an extended attribute is longer than 255 bytes");
    }
    let value = match LISTS.contains(&index) {
        true => list(&value).ok_or("its access control list is none")?,
        false => value,
    };
    Ok(Entry {
        index,
        name: rest.to_vec(),
        value,
    })
}

/// An access control list as it is stored: without the ids that its entries do not need.
fn list(shown: &[u8]) -> Option<Vec<u8>> {
    const VERSION: u32 = 2;
    const STORED_VERSION: u32 = 1;
    let (version, entries) = shown.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
        return None;
    }
    let mut list = STORED_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            // A user or a group by id.
            0x02 | 0x08 => list.extend(entry),
            // The owner, the group, the mask, others.
            0x01 | 0x04 | 0x10 | 0x20 => list.extend(&entry[..4]),
            _ => return None,
        }
    }
    Some(list)
}

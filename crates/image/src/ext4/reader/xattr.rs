//! Extended attributes: behind the inode, and in a block of their own. Access control lists are stored in a shorter form
//! than programs see (`fs/ext4/acl.h` against `linux/posix_acl_xattr.h`).

use std::collections::BTreeMap;

use super::inode::extra_bytes;
use super::{Ext4, Ext4Error, Inode, Source};
use crate::crc32c;
use crate::ext4::format::{XATTR_MAGIC, u16_at, u32_at, xattr_prefix};

/// By whole name, as programs see them.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

impl<S: Source> Ext4<S> {
    /// All attributes of a file.
    ///
    /// # Errors
    /// See [`Ext4Error`].
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs, Ext4Error> {
        let mut found = Xattrs::new();
        let raw = &inode.raw;
        let behind = 128 + extra_bytes(raw);
        if raw.len() > 128 && behind + 4 <= raw.len() && u32_at(raw, behind) == XATTR_MAGIC {
            let entries = &raw[behind + 4..];
            read(entries, entries, &mut found)?;
        }
        let block = u64::from(u16_at(raw, 0x76)) << 32 | u64::from(u32_at(raw, 0x68));
        if block != 0 {
            let bytes = self.block(block)?;
            if u32_at(&bytes, 0) != XATTR_MAGIC || u32_at(&bytes, 8) != 1 {
                return Err(damaged());
            }
            if let Some(seed) = self.geometry.seed {
                let mut plain = bytes.clone();
                plain[0x10..0x14].fill(0);
                let seed = crc32c::update(seed, &block.to_le_bytes());
                if crc32c::update(seed, &plain) != u32_at(&bytes, 0x10) {
                    return Err(Ext4Error::Damaged("attributes have a wrong checksum"));
                }
            }
            read(&bytes[0x20..], &bytes, &mut found)?;
        }
        Ok(found)
    }
}

fn damaged() -> Ext4Error {
    Ext4Error::Damaged("a file's attributes are none")
}

/// Entries up to one that begins with four zeros; their values are in `values`.
fn read(entries: &[u8], values: &[u8], found: &mut Xattrs) -> Result<(), Ext4Error> {
    let mut rest = entries;
    while rest.len() >= 4 && u32_at(rest, 0) != 0 {
        if rest.len() < 16 {
            return Err(damaged());
        }
        let (name, index) = (usize::from(rest[0]), rest[1]);
        let (offset, size) = (usize::from(u16_at(rest, 2)), u32_at(rest, 8) as usize);
        let length = 16 + name.div_ceil(4) * 4;
        if u32_at(rest, 4) != 0 {
            return Err(Ext4Error::Unsupported(
                "attributes in inodes of their own".to_owned(),
            ));
        }
        let prefix = xattr_prefix(index).ok_or_else(damaged)?;
        let end = offset.checked_add(size).ok_or_else(damaged)?;
        let value = values.get(offset..end).ok_or_else(damaged)?;
        let name = rest.get(16..16 + name).ok_or_else(damaged)?;
        let name = [prefix, name].concat();
        if name.contains(&0) || name.is_empty() {
            return Err(damaged());
        }
        let value = if ACLS.contains(&name.as_slice()) {
            list(value)?
        } else {
            value.to_vec()
        };
        found.insert(name, value);
        rest = rest.get(length..).ok_or_else(damaged)?;
    }
    Ok(())
}

/// An access control list as programs see it: every entry with an id.
fn list(stored: &[u8]) -> Result<Vec<u8>, Ext4Error> {
    const STORED_VERSION: u32 = 1;
    const VERSION: u32 = 2;
    let wrong = || Ext4Error::Damaged("an access control list is none");
    if stored.len() < 4 || u32_at(stored, 0) != STORED_VERSION {
        return Err(wrong());
    }
    let mut list = VERSION.to_le_bytes().to_vec();
    let mut rest = &stored[4..];
    while !rest.is_empty() {
        if rest.len() < 4 {
            return Err(wrong());
        }
        let (entry, length) = match u16_at(rest, 0) {
            // A user or a group by id.
            0x02 | 0x08 if rest.len() >= 8 => (&rest[..8], 8),
            // The owner, the group, the mask, others.
            0x01 | 0x04 | 0x10 | 0x20 => (&rest[..4], 4),
            _ => return Err(wrong()),
        };
        list.extend_from_slice(entry);
        if length == 4 {
            list.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        rest = &rest[length..];
    }
    Ok(list)
}

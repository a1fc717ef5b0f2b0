//! `erofs_xattr_ibody_header`, the entries behind it, and the shared ones that it names.

use super::{Node, ReadError, Reader, damaged, u16_at};
use crate::erofs::xattr::{ENTRY_HEADER, IBODY_HEADER, PREFIXES};

/// The full name of an extended attribute, and its value.
pub type Attribute = (Vec<u8>, Vec<u8>);

pub(super) fn read(reader: &Reader, node: &Node) -> Result<Vec<Attribute>, ReadError> {
    let (at, length) = node.xattrs;
    let mut attributes = Vec::new();
    if length == 0 {
        return Ok(attributes);
    }
    // At most 256 KiB: the count has 16 bits.
    let mut body = vec![0; length];
    reader.read_at(node.nid, at, &mut body)?;
    let shared = usize::from(body[4]);
    let (ids, mut entries) = body[IBODY_HEADER..]
        .split_at_checked(4 * shared)
        .ok_or_else(|| damaged(node, "it has more shared attributes than room for them"))?;
    while !entries.is_empty() {
        let (attribute, used) =
            entry(entries).ok_or_else(|| damaged(node, "an extended attribute is malformed"))?;
        attributes.push(attribute);
        entries = entries.get(used..).unwrap_or_default();
    }
    for id in ids.as_chunks::<4>().0 {
        let id = u64::from(u32::from_le_bytes(*id));
        attributes.push(shared_entry(reader, node, reader.shared_xattrs + id * 4)?);
    }
    Ok(attributes)
}

fn shared_entry(reader: &Reader, node: &Node, at: u64) -> Result<Attribute, ReadError> {
    let mut header = [0; ENTRY_HEADER];
    reader.read_at(node.nid, at, &mut header)?;
    let length = ENTRY_HEADER + usize::from(header[0]) + usize::from(u16_at(&header, 2));
    let mut bytes = vec![0; length];
    reader.read_at(node.nid, at, &mut bytes)?;
    entry(&bytes)
        .map(|(attribute, _)| attribute)
        .ok_or_else(|| damaged(node, "a shared attribute is malformed"))
}

/// The first entry, and its bytes with the padding behind it.
fn entry(bytes: &[u8]) -> Option<(Attribute, usize)> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER)?;
    let (name, rest) = rest.split_at_checked(header[0].into())?;
    let value = rest.get(..u16_at(header, 2).into())?;
    let (_, prefix) = PREFIXES.iter().find(|(index, _)| *index == header[1])?;
    let length = ENTRY_HEADER + name.len() + value.len();
    let attribute = ([prefix, name].concat(), value.to_vec());
    Some((attribute, length.next_multiple_of(4)))
}

//! Extended attributes in their inline form: `erofs_xattr_ibody_header` and `erofs_xattr_entry`s.

use std::collections::BTreeMap;

/// `EROFS_XATTR_INDEX_*` with the prefix it stands for. ACLs have the whole name as their prefix.
pub(super) const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// `sizeof(struct erofs_xattr_ibody_header)`.
pub(super) const IBODY_HEADER: usize = 12;
/// `sizeof(struct erofs_xattr_entry)`.
pub(super) const ENTRY_HEADER: usize = 4;

/// The encoded xattrs of one inode, ready to be put behind it. Empty when there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(Box<[u8]>);

impl Xattrs {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Collects the xattrs of one inode. Order of insertion does not matter; a later value replaces an earlier.
#[derive(Debug, Default)]
pub struct XattrsBuilder {
    entries: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    bytes: usize,
}

/// What became of an attribute that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// It is in.
    Taken,
    /// EROFS has no index for its namespace (`user.`, `trusted.`, `security.` and POSIX ACLs exist).
    UnknownNamespace,
    /// Its name or value is longer than the format holds.
    TooLong,
}

impl XattrsBuilder {
    /// Adds an attribute by its full name, `user.mime` for example.
    pub fn insert(&mut self, name: &[u8], value: &[u8]) -> Insert {
        let found = PREFIXES.iter().find_map(|(index, prefix)| {
            let rest = name.strip_prefix(*prefix)?;
            // ACL names are whole, all others need something behind the dot.
            (matches!(index, 2 | 3) == rest.is_empty()).then_some((*index, rest))
        });
        let Some((index, rest)) = found else {
            return Insert::UnknownNamespace;
        };
        if rest.len() > 255 || value.len() > usize::from(u16::MAX) {
            return Insert::TooLong;
        }
        self.bytes += rest.len() + value.len() + 8;
        if let Some(old) = self.entries.insert((index, rest.to_vec()), value.to_vec()) {
            self.bytes -= rest.len() + old.len() + 8;
        }
        Insert::Taken
    }

    /// An upper bound of the encoded size so far, without the header.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was taken.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Encodes what was collected, sorted, so that equal sets give equal bytes.
    pub fn build(self) -> Xattrs {
        if self.entries.is_empty() {
            return Xattrs::default();
        }
        let mut body = vec![0u8; IBODY_HEADER];
        for ((index, name), value) in self.entries {
            body.push(name.len() as u8);
            body.push(index);
            body.extend_from_slice(&(value.len() as u16).to_le_bytes());
            body.extend_from_slice(&name);
            body.extend_from_slice(&value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        Xattrs(body.into_boxed_slice())
    }
}

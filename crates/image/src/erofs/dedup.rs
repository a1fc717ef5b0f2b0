//! Which contents are in the image already: identical files share their blocks.
//!
//! Contents are known by the first half of their SHA-256 (with the length mixed in). An extent whose last user
//! went away stays findable, so that a file which comes back costs nothing; what is dead at the end is discarded.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// A content's name within one image.
pub(crate) type Key = [u8; 16];

/// A run of blocks with file data. `start` 0 (the superblock's block) means: seen once, stored inline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    key: Key,
    pub(crate) start: u32,
    pub(crate) blocks: u32,
    pub(crate) users: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Extents {
    all: Vec<Extent>,
    by_key: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// What is known of a content.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Known {
    /// Nothing, or too few blocks for this use.
    No,
    /// It was inlined once; the second copy gets blocks of its own and is shared from then on.
    Inlined(u32),
    /// In blocks.
    Stored(u32),
}

impl Extents {
    pub(crate) fn find(&self, key: &Key, blocks: u64) -> Known {
        let hash = self.hasher.hash_one(key);
        match self
            .by_key
            .find(hash, |i| self.all[*i as usize].key == *key)
        {
            None => Known::No,
            Some(&index) => {
                let extent = &self.all[index as usize];
                if extent.start == 0 {
                    Known::Inlined(index)
                } else if u64::from(extent.blocks) == blocks {
                    Known::Stored(index)
                } else {
                    Known::No
                }
            }
        }
    }

    /// Adds an extent with one user; with a key it can be found, unless the key is taken.
    pub(crate) fn add(&mut self, key: Option<Key>, start: u32, blocks: u32) -> u32 {
        let index = self.all.len() as u32;
        self.all.push(Extent {
            key: key.unwrap_or_default(),
            start,
            blocks,
            users: 1,
        });
        if let Some(key) = key {
            let hash = self.hasher.hash_one(key);
            let Extents {
                all,
                by_key,
                hasher,
            } = self;
            by_key
                .entry(
                    hash,
                    |i| all[*i as usize].key == key,
                    |i| hasher.hash_one(all[*i as usize].key),
                )
                .or_insert(index);
        }
        index
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Extent {
        &mut self.all[index as usize]
    }

    /// Extents nobody uses, in order of their place, neighbours joined: (first block, blocks).
    pub(crate) fn dead(&self) -> Vec<(u32, u32)> {
        let mut dead: Vec<(u32, u32)> = self
            .all
            .iter()
            .filter(|e| e.users == 0 && e.start != 0 && e.blocks != 0)
            .map(|e| (e.start, e.blocks))
            .collect();
        dead.sort_unstable();
        dead.dedup_by(|next, previous| {
            let touching = previous.0 + previous.1 == next.0;
            if touching {
                previous.1 += next.1;
            }
            touching
        });
        dead
    }

    /// Memory held, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        (self.all.len() * size_of::<Extent>() + self.by_key.len() * 8) as u64
    }
}

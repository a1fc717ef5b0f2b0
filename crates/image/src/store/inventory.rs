//! What is in the store, and what of it images need.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::content::Content;
use super::disks::{self, Disks};
use super::records::Stored;
use crate::digest::Digest;

/// What can be needed, and collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Blob,
    /// By the digest of its manifest.
    Disk,
}

/// A blob or a disk.
pub(super) type Key = (Kind, Digest);

/// One that is here.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) path: PathBuf,
    /// That it takes on the file system.
    pub(super) bytes: u64,
    pub(super) changed: SystemTime,
}

/// Everything that is here.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) items: BTreeMap<Key, Item>,
    /// What is being written, and what is kept about disks.
    other: u64,
}

impl Inventory {
    pub(super) fn read(content: &Content, disks: &Disks) -> io::Result<Self> {
        let mut inventory = Inventory::default();
        for algorithm in ["sha256", "sha512"] {
            let parse = |name: &str| format!("{algorithm}:{name}").parse().ok();
            inventory.add(&content.directory().join(algorithm), Kind::Blob, parse)?;
        }
        inventory.add(disks.directory(), Kind::Disk, disks::manifest_of)?;
        Ok(inventory)
    }

    fn add(
        &mut self,
        directory: &Path,
        kind: Kind,
        parse: impl Fn(&str) -> Option<Digest>,
    ) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // Another one may have removed it meanwhile.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            // st_blocks counts 512 bytes whatever the file system's blocks are.
            let bytes = metadata.blocks() * 512;
            let Some(digest) = entry.file_name().to_str().and_then(&parse) else {
                self.other += bytes;
                continue;
            };
            let item = Item {
                path: entry.path(),
                bytes,
                changed: metadata.modified()?,
            };
            self.items.insert((kind, digest), item);
        }
        Ok(())
    }

    /// Bytes of everything.
    pub(super) fn total(&self) -> u64 {
        self.items.values().map(|item| item.bytes).sum::<u64>() + self.other
    }

    pub(super) fn bytes(&self, key: &Key) -> u64 {
        self.items.get(key).map_or(0, |item| item.bytes)
    }

    /// What is in none of `roots`.
    pub(super) fn unreferenced<'a>(
        &'a self,
        roots: &'a HashSet<Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Item)> {
        self.items.iter().filter(|(key, _)| !roots.contains(*key))
    }
}

/// What a record's image needs.
pub(super) fn needed_by(stored: &Stored, content: &Content) -> HashSet<Key> {
    let mut needed = match stored.record.digest.parse() {
        Ok(manifest) => needed_by_manifest(manifest, content),
        Err(_) => HashSet::new(),
    };
    let blobs = stored.configuration.iter().chain(&stored.layers);
    needed.extend(blobs.map(|digest| (Kind::Blob, digest.clone())));
    needed
}

/// What an image needs of which nothing is known but its manifest, which may not be here.
pub(super) fn needed_by_manifest(manifest: Digest, content: &Content) -> HashSet<Key> {
    #[derive(Deserialize)]
    struct Manifest {
        config: Option<Named>,
        #[serde(default)]
        layers: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        digest: Digest,
    }
    let read = content.document(&manifest).ok().flatten();
    let read = read.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
    let named = read
        .into_iter()
        .flat_map(|read| read.config.into_iter().chain(read.layers))
        .map(|named| (Kind::Blob, named.digest));
    named
        .chain([(Kind::Blob, manifest.clone()), (Kind::Disk, manifest)])
        .collect()
}

/// Everything that records need, and the images that instances run from.
pub(super) fn roots<'a>(
    records: impl IntoIterator<Item = &'a Stored>,
    in_use: &[String],
    content: &Content,
) -> HashSet<Key> {
    let mut roots: HashSet<Key> = records
        .into_iter()
        .flat_map(|stored| needed_by(stored, content))
        .collect();
    let running: HashSet<Digest> = in_use.iter().filter_map(|it| it.parse().ok()).collect();
    for manifest in running {
        roots.extend(needed_by_manifest(manifest, content));
    }
    roots
}

//! What may go: mark what records and instances reach, sweep the rest.
//!
//! A blob or a disk goes when no record reaches it, no instance runs from it, and no operation has a lease on it. One that
//! goes is first given the name of a temporary file, while nobody can begin to need it; then it is removed. Must never:
//! sweep while a record cannot be read, because nobody knows what that one reaches.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use warren_crashpoint::reached;

use super::content::{Collection, Content};
use super::records::{Listing, Stored};
use super::{ImageStore, StoreError, disks, publish, records};
use crate::digest::Digest;

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Roots {
    blobs: HashSet<Digest>,
    /// By their manifests.
    disks: HashSet<Digest>,
}

impl Roots {
    /// Everything that records reach, and what instances run from, by the digests of their images.
    fn of(records: &[Stored], in_use: &[String], content: &Content) -> Self {
        let mut roots = Roots::default();
        for stored in records {
            roots.add_image(stored.record.digest.parse().ok(), content);
            roots.blobs.extend(stored.configuration.iter().cloned());
            roots.blobs.extend(stored.layers.iter().cloned());
        }
        for digest in in_use {
            roots.add_image(digest.parse().ok(), content);
        }
        roots
    }

    fn add_image(&mut self, manifest: Option<Digest>, content: &Content) {
        let Some(manifest) = manifest else {
            return;
        };
        if !self.disks.insert(manifest.clone()) {
            return;
        }
        self.blobs.extend(named_by(&manifest, content));
        self.blobs.insert(manifest);
    }
}

/// The blobs that a manifest names; none when it is not here.
fn named_by(manifest: &Digest, content: &Content) -> Vec<Digest> {
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
    let Ok(Some(bytes)) = content.document(manifest) else {
        return Vec::new();
    };
    match serde_json::from_slice::<Manifest>(&bytes) {
        Ok(read) => read
            .config
            .into_iter()
            .chain(read.layers)
            .map(|named| named.digest)
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// What can be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Blob,
    Disk,
}

/// Something that nothing reaches.
#[derive(Debug, Clone)]
pub(super) struct Garbage {
    pub(super) kind: Kind,
    pub(super) digest: Digest,
    path: PathBuf,
    /// That it takes on the file system.
    pub(super) bytes: u64,
}

impl ImageStore {
    /// Removes what nothing reaches, as far as it is `wanted`. Gives what it removed.
    pub(super) async fn collect(
        &self,
        in_use: &[String],
        wanted: impl Fn(&Garbage) -> bool + Send + 'static,
    ) -> Result<Vec<Garbage>, StoreError> {
        let _one_at_a_time = self.collecting.lock().await;
        // Before the records are read: what is recorded later is leased now, or leased later.
        let collection = self.content.collect();
        let Listing { readable, damaged } = self.records.list()?;
        if let Some(path) = damaged.into_iter().next() {
            return Err(StoreError::RecordDamaged(path));
        }
        let roots = Roots::of(&readable, in_use, &self.content);
        let places = Places {
            blobs: self.content.directory().to_owned(),
            disks: self.disks.directory().to_owned(),
        };
        records::blocking("collecting what no image uses", move || {
            let mut found = places.garbage(&roots)?;
            found.retain(|garbage| wanted(garbage));
            found
                .into_iter()
                .filter_map(|garbage| sweep(garbage, &collection).transpose())
                .collect()
        })
        .await
    }

    /// Collects what a removed record reached, and no more: a pull that was interrupted keeps its layers.
    pub(super) async fn collect_removed(
        &self,
        removed: &Stored,
        in_use: &[String],
    ) -> Result<(), StoreError> {
        let disk: Option<Digest> = removed.record.digest.parse().ok();
        let mut blobs: HashSet<Digest> = removed.layers.iter().cloned().collect();
        blobs.extend(removed.configuration.iter().cloned());
        blobs.extend(disk.clone());
        let wanted = move |garbage: &Garbage| match garbage.kind {
            Kind::Blob => blobs.contains(&garbage.digest),
            Kind::Disk => Some(&garbage.digest) == disk.as_ref(),
        };
        match self.collect(in_use, wanted).await {
            Ok(gone) => {
                let bytes: u64 = gone.iter().map(|garbage| garbage.bytes).sum();
                tracing::debug!(
                    files = gone.len(),
                    bytes,
                    "removed what the image had for itself"
                );
                Ok(())
            }
            Err(error @ StoreError::RecordDamaged(_)) => {
                // The record is gone, as was asked. Its content goes when that one is dealt with.
                tracing::warn!(%error, "an image's content is left where it is");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Where everything is.
struct Places {
    blobs: PathBuf,
    disks: PathBuf,
}

impl Places {
    fn garbage(&self, roots: &Roots) -> io::Result<Vec<Garbage>> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let parse = |name: &str| format!("{algorithm}:{name}").parse().ok();
            let directory = self.blobs.join(algorithm);
            found.extend(all_in(&directory, Kind::Blob, parse, &roots.blobs)?);
        }
        found.extend(all_in(
            &self.disks,
            Kind::Disk,
            disks::manifest_of,
            &roots.disks,
        )?);
        Ok(found)
    }
}

/// The files of a directory whose names are digests that `roots` does not have.
fn all_in(
    directory: &Path,
    kind: Kind,
    parse: impl Fn(&str) -> Option<Digest>,
    roots: &HashSet<Digest>,
) -> io::Result<Vec<Garbage>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let digest = entry.file_name().to_str().and_then(&parse);
        // Another one may have removed it meanwhile.
        let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) else {
            continue;
        };
        if !roots.contains(&digest) {
            found.push(Garbage {
                kind,
                digest,
                path: entry.path(),
                // st_blocks counts 512 bytes whatever the file system's blocks are.
                bytes: metadata.blocks() * 512,
            });
        }
    }
    Ok(found)
}

/// Removes something unless it is needed after all; `None` then.
fn sweep(garbage: Garbage, collection: &Collection) -> io::Result<Option<Garbage>> {
    let set_aside = collection.unless_leased(&garbage.digest, || publish::set_aside(&garbage.path));
    let Some(doomed) = set_aside.transpose()?.flatten() else {
        return Ok(None);
    };
    reached("collect.set-aside");
    publish::remove(&doomed)?;
    reached("collect.removed");
    Ok(Some(garbage))
}

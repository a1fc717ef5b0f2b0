//! Reads everything again that an image is made of.
//!
//! Blobs go by their own digests. A disk has a seal; where it has none, or is damaged, it is made again from its layers,
//! which give the same bytes every time.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use warren_core::storage::{ImagePart, PartCheck, PartState, Repair, Verification};
use warren_crashpoint::reached;

use super::content::Content;
use super::convert::{Copies, Job, Listeners};
use super::disks;
use super::publish::{self, Temporary};
use super::records::Stored;
use super::{ImageStore, StoreError, records};
use crate::digest::Digest;
use crate::pipeline;
use crate::source::layout::Known;
use crate::source::manifest::{self, Image, Platform, Wanted};

impl ImageStore {
    pub(super) async fn verify_image(
        &self,
        id: &str,
        repair: Repair,
    ) -> Result<Verification, StoreError> {
        let stop = CancellationToken::new();
        let _stop_on_drop = stop.clone().drop_guard();
        let mut lease = self.content.lease([]);
        let (stored, manifest, blobs) = loop {
            let stored = self.stored(id)?;
            let manifest: Digest = (stored.record.digest.parse())
                .map_err(|_| StoreError::NotHere(stored.record.digest.clone()))?;
            let blobs = blobs_of(&stored, &manifest);
            lease.extend(blobs.iter().map(|(_, digest)| digest).chain([&manifest]));
            // It may have been removed, with what it needs, before the lease was taken.
            if self.stored(id)?.record == stored.record {
                break (stored, manifest, blobs);
            }
        };
        let mut parts = self.check_blobs(blobs, repair, &stop).await?;
        let blobs_are_sound =
            stored.configuration.is_some() && parts.iter().all(|it| it.state == PartState::Sound);
        let state = match self.check_disk(&manifest, blobs_are_sound, &stop).await? {
            bad @ (PartState::Damaged | PartState::Missing) if repair == Repair::Yes => {
                self.repair_disk(&manifest, bad, blobs_are_sound).await?
            }
            state => state,
        };
        parts.push(PartCheck {
            part: ImagePart::Disk,
            digest: manifest.to_string(),
            state,
        });
        let mut verification = Verification {
            id: stored.record.id,
            name: stored.record.name,
            digest: stored.record.digest,
            parts,
            advice: None,
        };
        verification.advice = advice(&verification, repair, blobs_are_sound);
        Ok(verification)
    }

    fn stored(&self, id: &str) -> Result<Stored, StoreError> {
        let all = self.records.list()?.readable;
        let found = all.into_iter().find(|stored| stored.record.id == id);
        found.ok_or_else(|| StoreError::NotHere(id.to_owned()))
    }

    async fn check_blobs(
        &self,
        blobs: Vec<(ImagePart, Digest)>,
        repair: Repair,
        stop: &CancellationToken,
    ) -> Result<Vec<PartCheck>, StoreError> {
        let (content, stop) = (Arc::clone(&self.content), stop.clone());
        records::blocking("reading the image again", move || {
            let mut checks = Vec::new();
            for (part, digest) in blobs {
                let state = check_blob(&content, &digest, &stop)?;
                if state == PartState::Damaged && repair == Repair::Yes {
                    // The next pull or load brings it whole.
                    content.remove(&digest)?;
                    reached("verify.blob-removed");
                }
                checks.push(PartCheck {
                    part,
                    digest: digest.to_string(),
                    state,
                });
            }
            Ok(checks)
        })
        .await
    }

    async fn check_disk(
        &self,
        manifest: &Digest,
        blobs_are_sound: bool,
        stop: &CancellationToken,
    ) -> Result<PartState, StoreError> {
        if !self.disks.is_here(manifest) {
            return Ok(PartState::Missing);
        }
        if self.disks.waits_for_seal(manifest) {
            let (disks, manifest, stop) = (Arc::clone(&self.disks), manifest.clone(), stop.clone());
            let sealed = records::blocking("sealing the disk", move || {
                match disks.make_seal(&manifest, &stop) {
                    // It was written by this process and can be read: the seal comes when there is room.
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(None),
                    sealed => sealed.map(Some),
                }
            });
            if sealed.await?.is_none() {
                return Ok(PartState::Sound);
            }
        }
        let Some(seal) = self.disks.seal(manifest) else {
            // Without its layers there is nothing to compare it with.
            return match blobs_are_sound {
                true => self.compare_disk(manifest, stop).await,
                false => Ok(PartState::Unknown),
            };
        };
        let (path, stop) = (self.disks.path(manifest), stop.clone());
        records::blocking("reading the disk again", move || {
            let actual = disks::hash(&mut File::open(path)?, Some(&seal), &stop)?;
            Ok(match actual == seal {
                true => PartState::Sound,
                false => PartState::Damaged,
            })
        })
        .await
    }

    /// Makes the disk again beside itself, and compares. One that is right is sealed.
    async fn compare_disk(
        &self,
        manifest: &Digest,
        stop: &CancellationToken,
    ) -> Result<PartState, StoreError> {
        let inputs = self.inputs_from_content(&self.image_here(manifest).await?);
        let (disks, limits) = (Arc::clone(&self.disks), self.options.limits);
        let (manifest, stop) = (manifest.clone(), stop.clone());
        let work = move || {
            let comparing = |source| StoreError::Disk {
                what: "comparing the disk",
                source,
            };
            let mut again = Temporary::beside(&disks.beside()).map_err(comparing)?;
            let file = again.file().try_clone().map_err(comparing)?;
            pipeline::convert(inputs, file, None, &limits, &stop, &|_, _| {})?;
            let same = same_bytes(again.path(), &disks.path(&manifest)).map_err(comparing)?;
            if !same {
                return Ok(PartState::Damaged);
            }
            disks.make_seal(&manifest, &stop).map_err(comparing)?;
            Ok(PartState::Sound)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| StoreError::Disk {
                what: "comparing the disk",
                source: io::Error::other(error),
            })?
    }

    async fn repair_disk(
        &self,
        manifest: &Digest,
        found: PartState,
        blobs_are_sound: bool,
    ) -> Result<PartState, StoreError> {
        if !blobs_are_sound {
            // The next pull or load makes it anew. Instances that run from it keep what they have open.
            let path = self.disks.path(manifest);
            records::blocking("removing a damaged disk", move || publish::remove(&path)).await?;
            reached("verify.disk-removed");
            return Ok(found);
        }
        let image = self.image_here(manifest).await?;
        let job = Job {
            inputs: self.inputs_from_content(&image),
            known: Known::Image(Box::new(image)),
            copies: Copies::None,
        };
        self.convert(job, Listeners::of(Arc::new(|_| {}))).await?;
        self.disks.seal_later(manifest);
        Ok(PartState::Repaired)
    }

    /// An image whose documents are known to be here.
    pub(super) async fn image_here(&self, manifest: &Digest) -> Result<Image, StoreError> {
        let content: &Content = &self.content;
        let missing = || StoreError::BlobMissing(manifest.clone());
        let bytes = content.document(manifest).ok().flatten();
        let bytes = bytes.ok_or_else(missing)?.to_vec();
        let platform = Platform::host();
        Ok(manifest::resolve(content, bytes, &platform, Wanted::ByHost).await?)
    }
}

/// The blobs that an image should have here. Older versions kept no documents.
fn blobs_of(stored: &Stored, manifest: &Digest) -> Vec<(ImagePart, Digest)> {
    let configuration = stored.configuration.iter();
    let documents = configuration.flat_map(|configuration| {
        [
            (ImagePart::Manifest, manifest.clone()),
            (ImagePart::Configuration, configuration.clone()),
        ]
    });
    let layers = stored.layers.iter();
    documents
        .chain(layers.map(|layer| (ImagePart::Layer, layer.clone())))
        .collect()
}

fn check_blob(
    content: &Content,
    digest: &Digest,
    stop: &CancellationToken,
) -> io::Result<PartState> {
    let Some((mut file, _)) = content.open(digest)? else {
        return Ok(PartState::Missing);
    };
    Ok(
        match disks::hash(&mut file, Some(digest), stop)? == *digest {
            true => PartState::Sound,
            false => PartState::Damaged,
        },
    )
}

fn same_bytes(one: &std::path::Path, other: &std::path::Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

fn advice(found: &Verification, repair: Repair, blobs_are_sound: bool) -> Option<String> {
    if found.is_sound() {
        return None;
    }
    let name = &found.name;
    Some(match (blobs_are_sound, repair) {
        (true, _) => format!("its disk can be made again: `warren image verify --repair {name}`"),
        (false, Repair::No) => format!(
            "remove what is damaged with `warren image verify --repair {name}`, then get it again: `warren pull {name}`, or load it from where it came"
        ),
        (false, Repair::Yes) => {
            format!("get it again: `warren pull {name}`, or load it from where it came")
        }
    })
}

//! Manifests that come in: checked, made into an image where they are one that runs here, and shown.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use warren_core::ports::images::ProgressSink;
use warren_core::ports::registry::{ManifestKept, PutManifest};
use warren_crashpoint::reached;

use super::described::{Described, Presence};
use super::error::ServeError;
use super::now;
use super::shelf::{Entry, Tag};
use crate::digest::{Digest, Hasher};
use crate::pipeline::ConvertError;
use crate::source::manifest::{self, Image, Platform, Verbatim, Wanted};
use crate::source::{Reference, SourceError};
use crate::store::records::NewRecord;
use crate::store::{ImageStore, StoreError};

/// Manifests of a repository.
const MOST_MANIFESTS: usize = 10_000;

/// A manifest whose content is all here.
struct Arrival {
    put: PutManifest,
    digest: Digest,
    described: Described,
    /// The image to record under its tags.
    image: Option<Image>,
}

impl ImageStore {
    /// Whether everything that a manifest names is here, in its size.
    fn check_named(&self, described: &Described) -> Result<(), ServeError> {
        for named in &described.names {
            match (self.content.size(&named.digest), named.presence) {
                (Some(actual), _) if actual != named.size => {
                    return Err(ServeError::NamedSize {
                        digest: named.digest.clone(),
                        said: named.size,
                        actual,
                    });
                }
                (None, Presence::Needed) => {
                    return Err(ServeError::NamedUnknown(named.digest.clone()));
                }
                (Some(_), _) | (None, Presence::Optional) => {}
            }
        }
        Ok(())
    }

    /// The image in a manifest that this host can run, or why there is none.
    async fn image_in(&self, bytes: &Bytes) -> Result<Result<Image, String>, ServeError> {
        let host = Platform::host();
        let from = &*self.content;
        let resolved = manifest::resolve(from, bytes.to_vec(), &host, Wanted::ByHost).await;
        let image = match resolved {
            Ok(image) => image,
            Err(SourceError::Read { what, source }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::from(SourceError::Read { what, source }).into());
            }
            // Registries keep whatever has the form of a manifest.
            Err(error) => return Ok(Err(error.to_string())),
        };
        let runs_here = Platform::parse(&image.platform).is_ok_and(|platform| {
            platform.os() == host.os() && platform.architecture() == host.architecture()
        });
        if !runs_here {
            return Ok(Err(format!(
                "it is for {}, and this host is {host}",
                image.platform
            )));
        }
        let here = |digest: &Digest| self.content.size(digest).is_some();
        if !image.layers.iter().all(|layer| here(&layer.digest)) {
            return Ok(Err("some of its layers were not pushed".to_owned()));
        }
        Ok(Ok(image))
    }

    /// Makes the disk of an image, or says why it is none after all.
    async fn make_disk(&self, image: &Image) -> Result<Option<String>, ServeError> {
        let quiet: ProgressSink = Arc::new(|_| {});
        match self.ensure_converted(image, &quiet).await {
            Ok(()) => Ok(None),
            // Some tools write the digest of nothing where they do not know what a layer unpacks to: such a configuration
            // does not say what the image is. Any other one that is wrong says that something was tampered with.
            Err(error) if says_nothing(&error) => Ok(Some(
                "its configuration does not say what its layers unpack to".to_owned(),
            )),
            Err(error) => Err(ServeError::Image(error)),
        }
    }

    pub(super) async fn put(&self, put: PutManifest) -> Result<ManifestKept, ServeError> {
        let described = Described::read(&put.bytes, put.media_type.as_deref())?;
        let expected: Option<Digest> = put.digest.as_deref().map(str::parse).transpose()?;
        let mut hasher = Hasher::like(expected.as_ref());
        hasher.update(&put.bytes);
        let digest = hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(ServeError::ManifestDigest {
                expected,
                actual: digest,
            });
        }
        // Before anything is looked up; until the repository names it all.
        let named = described.names.iter().map(|named| &named.digest);
        let lease = self.content.lease(named.chain([&digest]));
        self.check_named(&described)?;
        let document = Verbatim {
            digest: digest.clone(),
            bytes: put.bytes.clone(),
        };
        self.content.put(vec![document]).await?;
        reached("receive.manifest-kept");
        let mut image = None;
        let mut remark = None;
        let mut image_lease = None;
        if !put.tags.is_empty() {
            match self.image_in(&put.bytes).await? {
                Ok(found) => {
                    image_lease = Some(self.content.lease(found.contents()));
                    match self.make_disk(&found).await? {
                        None => image = Some(found),
                        Some(why) => remark = Some(why),
                    }
                }
                Err(why) => remark = Some(why),
            }
        }
        reached("receive.converted");
        if let Some(why) = &remark {
            tracing::info!(repository = put.repository, %digest, why, "kept as content, not as an image");
        }
        let subject = described.subject.as_ref().map(Digest::to_string);
        let remark = remark.filter(|_| described.looks_like_an_image());
        let arrival = Arrival {
            put,
            digest: digest.clone(),
            described,
            image,
        };
        self.show(arrival).await?;
        drop((lease, image_lease));
        Ok(ManifestKept {
            digest: digest.to_string(),
            subject,
            remark: remark.map(|why| format!("kept as content, not as an image: {why}")),
        })
    }

    /// Puts a manifest into its repository, and its image among the images. The record is what shows a tag that has one.
    async fn show(&self, arrival: Arrival) -> Result<(), ServeError> {
        let Arrival {
            put,
            digest,
            described,
            image,
        } = arrival;
        let _showing = self.serving.showing.read().await;
        let now = now();
        let entry = Entry {
            media_type: described.media_type,
            names: described
                .names
                .iter()
                .filter(|named| self.content.size(&named.digest).is_some())
                .map(|named| named.digest.clone())
                .collect(),
            subject: described.subject,
            loose_since: None,
        };
        let before = self.serving.shelf.get(&put.repository);
        let mut tags = Vec::new();
        let mut outdated = BTreeSet::new();
        for tag in put.tags {
            let known = before.as_ref().and_then(|held| held.tags.get(&tag));
            let mut names = known.map_or_else(BTreeSet::new, |tag| tag.names.clone());
            if image.is_some() {
                names.insert(image_name(&put.host, &put.repository, &tag));
            } else {
                outdated.append(&mut names);
            }
            let image = image.as_ref().map(|image| image.digest().clone());
            let manifest = digest.clone();
            tags.push((
                tag,
                Tag {
                    manifest,
                    image,
                    names,
                },
            ));
        }
        let names: BTreeSet<String> = tags.iter().flat_map(|(_, tag)| tag.names.clone()).collect();
        self.serving
            .shelf
            .change(&put.repository, |repository| {
                repository.expire(now);
                let full = repository.manifests.len() >= MOST_MANIFESTS
                    && !repository.manifests.contains_key(&digest);
                if full {
                    return Err(ServeError::TooManyManifests(MOST_MANIFESTS));
                }
                repository.put(&digest, entry, tags, now);
                Ok(())
            })
            .await??;
        if let Some(image) = &image {
            for name in names {
                let new = NewRecord {
                    id: None,
                    name,
                    tags: Default::default(),
                };
                self.record(new, image).await?;
            }
        }
        // A tag that names something else now is no image any more.
        for stored in self.records.list()?.readable {
            if outdated.contains(&stored.record.name) {
                self.records.remove(&stored.record.id).await?;
            }
        }
        Ok(())
    }
}

/// Under which name an image is recorded: what its pusher would give to `warren run`.
fn image_name(host: &str, repository: &str, tag: &str) -> String {
    let name = format!("{host}/{repository}:{tag}");
    // A host without a dot or a port is none to clients; they cannot have called us so.
    match name.parse::<Reference>() {
        Ok(reference) if reference.registry() == host => reference.to_string(),
        Ok(_) | Err(_) => format!("localhost/{repository}:{tag}"),
    }
}

/// Whether a conversion failed because the configuration gives the digest of nothing for a layer that is something.
fn says_nothing(error: &StoreError) -> bool {
    match error {
        StoreError::Shared(shared) => says_nothing(shared),
        StoreError::Convert(ConvertError::DiffId { expected, .. }) => {
            *expected == Hasher::like(Some(expected)).finish()
        }
        _ => false,
    }
}

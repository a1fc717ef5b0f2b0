//! What is in a repository at this moment: its shelf, and the images that are called like it.

use std::collections::BTreeSet;
use std::sync::Arc;

use warren_core::ports::registry::{Manifest, ManifestName, Referrer};

use super::described::Described;
use super::error::ServeError;
use super::shelf::{Repository, Tag};
use crate::digest::Digest;
use crate::source::Reference;
use crate::store::ImageStore;
use crate::store::records::Stored;

/// What a tag's records say of it.
pub(super) enum Standing {
    /// It names what it says.
    Holds,
    /// An image of the same name has come another way since.
    Replaced(Digest),
    /// The image was removed.
    Gone,
}

pub(super) fn standing(tag: &Tag, records: &[Stored]) -> Standing {
    let Some(image) = &tag.image else {
        return Standing::Holds;
    };
    let mut other = None;
    for stored in records {
        if tag.names.contains(&stored.record.name) {
            match stored.record.digest.parse::<Digest>() {
                Ok(digest) if digest == *image => return Standing::Holds,
                Ok(digest) => other = Some(digest),
                Err(_) => {}
            }
        }
    }
    other.map_or(Standing::Gone, Standing::Replaced)
}

/// The repository and the tag of an image that was not pushed here, by its name. `None` where the name has no place in a
/// registry, or its blobs are not kept.
fn place_of(stored: &Stored) -> Option<(String, Option<String>)> {
    stored.configuration.as_ref()?;
    let reference: Reference = stored.record.name.parse().ok()?;
    let host = reference.registry().replace(':', "_");
    // An IPv6 address has no form that is a repository's name.
    let fits = !host.contains(['[', ']']);
    let tag = reference.tag().map(ToOwned::to_owned);
    fits.then(|| (format!("{host}/{}", reference.repository()), tag))
}

/// What a repository has at this moment.
pub(super) struct View {
    /// What was pushed.
    pub(super) shelf: Option<Arc<Repository>>,
    /// Images with its name that came another way.
    records: Vec<Stored>,
    /// All records: those of pushed tags are among them.
    pub(super) all: Vec<Stored>,
}

impl View {
    pub(super) fn tag(&self, tag: &str) -> Option<Digest> {
        let pushed = self.shelf.as_ref().and_then(|shelf| shelf.tags.get(tag));
        match pushed.map(|pushed| (pushed, standing(pushed, &self.all))) {
            Some((pushed, Standing::Holds)) => return Some(pushed.manifest.clone()),
            Some((_, Standing::Replaced(digest))) => return Some(digest),
            Some((_, Standing::Gone)) | None => {}
        }
        self.records
            .iter()
            .filter(|stored| place_of(stored).is_some_and(|(_, own)| own.as_deref() == Some(tag)))
            .find_map(|stored| stored.record.digest.parse().ok())
    }

    /// The records that a tag stands for: as it was pushed, or as its image is called.
    pub(super) fn records_of_tag(&self, tag: &str) -> Vec<Stored> {
        let pushed = self.shelf.as_ref().and_then(|shelf| shelf.tags.get(tag));
        let named = |stored: &&Stored| {
            pushed.is_some_and(|pushed| pushed.names.contains(&stored.record.name))
        };
        let own =
            |stored: &&Stored| place_of(stored).is_some_and(|(_, own)| own.as_deref() == Some(tag));
        let pushed_records = self.all.iter().filter(named);
        let own_records = self.records.iter().filter(own);
        pushed_records.chain(own_records).cloned().collect()
    }

    /// All records whose image is this manifest.
    pub(super) fn records_of_manifest(&self, digest: &Digest) -> Vec<Stored> {
        let tags = self.shelf.iter().flat_map(|shelf| shelf.tags.values());
        let names: BTreeSet<&String> = tags
            .filter(|tag| tag.manifest == *digest || tag.image.as_ref() == Some(digest))
            .flat_map(|tag| &tag.names)
            .collect();
        let pushed = self
            .all
            .iter()
            .filter(|stored| names.contains(&stored.record.name));
        let text = digest.to_string();
        let own = self
            .records
            .iter()
            .filter(|stored| stored.record.digest == text);
        pushed.chain(own).cloned().collect()
    }

    /// The records behind what it has: its own, and those of tags that were replaced.
    fn images(&self) -> impl Iterator<Item = &Stored> {
        let names: BTreeSet<&String> = self
            .shelf
            .iter()
            .flat_map(|shelf| shelf.tags.values())
            .flat_map(|tag| &tag.names)
            .collect();
        let pushed = self
            .all
            .iter()
            .filter(move |stored| names.contains(&stored.record.name));
        self.records.iter().chain(pushed)
    }

    pub(super) fn has_manifest(&self, digest: &Digest) -> bool {
        let text = digest.to_string();
        self.shelf
            .as_ref()
            .is_some_and(|shelf| shelf.manifests.contains_key(digest))
            || self.images().any(|stored| stored.record.digest == text)
    }

    pub(super) fn names_blob(&self, digest: &Digest) -> bool {
        self.shelf.as_ref().is_some_and(|shelf| shelf.names(digest))
            || self.images().any(|stored| {
                stored.configuration.as_ref() == Some(digest) || stored.layers.contains(digest)
            })
    }
}

impl ImageStore {
    pub(super) fn view(&self, repository: &str) -> Result<View, ServeError> {
        let all = self.records.list()?.readable;
        let pushed: Vec<Arc<Repository>> = self.serving.shelf.all();
        let pushed: BTreeSet<&String> = pushed
            .iter()
            .flat_map(|held| held.tags.values())
            .flat_map(|tag| &tag.names)
            .collect();
        let records = all
            .iter()
            .filter(|stored| !pushed.contains(&stored.record.name))
            .filter(|stored| place_of(stored).is_some_and(|(place, _)| place == repository))
            .cloned()
            .collect();
        Ok(View {
            shelf: self.serving.shelf.get(repository),
            records,
            all,
        })
    }

    pub(super) async fn find_manifest(
        &self,
        repository: &str,
        name: &ManifestName,
    ) -> Result<Manifest, ServeError> {
        let view = self.view(repository)?;
        let (found, shown) = match name {
            ManifestName::Tag(tag) => (view.tag(tag), tag),
            ManifestName::Digest(text) => {
                let digest: Digest = text.parse()?;
                (view.has_manifest(&digest).then_some(digest), text)
            }
        };
        let unknown = || ServeError::ManifestUnknown {
            repository: repository.to_owned(),
            name: shown.clone(),
        };
        let digest = found.ok_or_else(unknown)?;
        let bytes = self.content.document(&digest).map_err(ServeError::Read)?;
        let bytes = bytes.ok_or_else(unknown)?;
        let pushed = view.shelf.as_ref();
        let media_type = match pushed.and_then(|shelf| shelf.manifests.get(&digest)) {
            Some(entry) => entry.media_type.clone(),
            None => Described::read(&bytes, None)?.media_type,
        };
        Ok(Manifest {
            digest: digest.to_string(),
            media_type,
            bytes,
        })
    }

    pub(super) async fn list_tags(&self, repository: &str) -> Result<Vec<String>, ServeError> {
        let view = self.view(repository)?;
        let pushed = view.shelf.iter().flat_map(|shelf| &shelf.tags);
        let mut tags: BTreeSet<String> = pushed
            .filter(|(_, tag)| !matches!(standing(tag, &view.all), Standing::Gone))
            .map(|(tag, _)| tag.clone())
            .collect();
        tags.extend(view.records.iter().filter_map(|stored| place_of(stored)?.1));
        if tags.is_empty() && view.shelf.is_none() && view.records.is_empty() {
            return Err(ServeError::RepositoryUnknown(repository.to_owned()));
        }
        Ok(tags.into_iter().collect())
    }

    pub(super) async fn list_repositories(&self) -> Result<Vec<String>, ServeError> {
        let all = self.records.list()?.readable;
        let shelf = self.serving.shelf.all();
        let mut names = BTreeSet::new();
        let mut pushed = BTreeSet::new();
        for repository in &shelf {
            for tag in repository.tags.values() {
                pushed.extend(&tag.names);
                if !matches!(standing(tag, &all), Standing::Gone) {
                    names.insert(repository.name.clone());
                }
            }
        }
        let own = all
            .iter()
            .filter(|stored| !pushed.contains(&stored.record.name));
        names.extend(own.filter_map(|stored| Some(place_of(stored)?.0)));
        Ok(names.into_iter().collect())
    }

    pub(super) async fn list_referrers(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Vec<Referrer>, ServeError> {
        let subject: Digest = digest.parse()?;
        let Some(held) = self.serving.shelf.get(repository) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let referring = held
            .manifests
            .iter()
            .filter(|(_, entry)| entry.subject.as_ref() == Some(&subject));
        for (digest, entry) in referring {
            let bytes = self.content.document(digest).map_err(ServeError::Read)?;
            let Some(bytes) = bytes else { continue };
            let described = Described::read(&bytes, Some(&entry.media_type))?;
            found.push(Referrer {
                media_type: described.media_type,
                digest: digest.to_string(),
                size: bytes.len() as u64,
                artifact_type: described.artifact_type,
                annotations: described.annotations,
            });
        }
        Ok(found)
    }
}

//! A registry's content in memory: what the protocol is tested against. It converts nothing.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256, Sha512};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use warren_core::PortError;
use warren_core::ports::ImageOutlet;
use warren_core::ports::outlet::{Archive, ExportRequest, SaveRequest};
use warren_core::ports::registry::{
    Blob, ByteRange, ByteStream, Manifest, ManifestKept, ManifestName, Piece, PutManifest,
    Referrer, RegistryBlobs, RegistryManifests, Upload, code,
};

#[derive(Default)]
struct Repository {
    blobs: BTreeSet<String>,
    manifests: BTreeMap<String, Manifest>,
    tags: BTreeMap<String, String>,
}

#[derive(Default)]
struct Inner {
    repositories: BTreeMap<String, Repository>,
    blobs: BTreeMap<String, Bytes>,
    uploads: BTreeMap<(String, String), Vec<u8>>,
    next: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Content(Mutex<Inner>);

fn digest_like(wanted: &str, bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match wanted.split_once(':') {
        Some(("sha512", _)) => format!("sha512:{}", hex(&Sha512::digest(bytes))),
        _ => format!("sha256:{}", hex(&Sha256::digest(bytes))),
    }
}

fn no_blob() -> PortError {
    PortError::not_found(code::BLOB_UNKNOWN, "there is no such blob")
}

fn no_upload() -> PortError {
    PortError::not_found(code::UPLOAD_UNKNOWN, "there is no such upload")
}

fn no_manifest() -> PortError {
    PortError::not_found(code::MANIFEST_UNKNOWN, "there is no such manifest")
}

impl Content {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics with it")
    }

    async fn append(&self, repository: &str, id: &str, piece: Piece) -> Result<Upload, PortError> {
        let key = (repository.to_owned(), id.to_owned());
        let offset = self.lock().uploads.get(&key).ok_or_else(no_upload)?.len();
        if piece.at.is_some_and(|at| at != offset as u64) {
            return Err(PortError::conflict(code::OUT_OF_ORDER, "out of order"));
        }
        let mut bytes = piece.bytes;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            let mut inner = self.lock();
            let upload = inner.uploads.get_mut(&key).ok_or_else(no_upload)?;
            upload.extend_from_slice(&chunk);
        }
        let offset = self.lock().uploads.get(&key).ok_or_else(no_upload)?.len() as u64;
        Ok(Upload {
            id: id.to_owned(),
            offset,
        })
    }
}

#[async_trait]
impl RegistryBlobs for Content {
    async fn blob(&self, repository: &str, digest: &str) -> Result<Blob, PortError> {
        let inner = self.lock();
        let has = inner
            .repositories
            .get(repository)
            .is_some_and(|held| held.blobs.contains(digest));
        let bytes = inner
            .blobs
            .get(digest)
            .filter(|_| has)
            .ok_or_else(no_blob)?;
        Ok(Blob {
            digest: digest.to_owned(),
            size: bytes.len() as u64,
        })
    }

    async fn read_blob(
        &self,
        _: &str,
        digest: &str,
        range: ByteRange,
    ) -> Result<ByteStream, PortError> {
        let bytes = self.lock().blobs.get(digest).cloned().ok_or_else(no_blob)?;
        let part = |at: u64| usize::try_from(at).expect("small");
        let bytes = bytes.slice(part(range.start)..part(range.end));
        Ok(stream::iter([Ok(bytes)]).boxed())
    }

    async fn remove_blob(&self, repository: &str, digest: &str) -> Result<(), PortError> {
        let mut inner = self.lock();
        let held = inner.repositories.get_mut(repository);
        let removed = held.is_some_and(|held| held.blobs.remove(digest));
        removed.then_some(()).ok_or_else(no_blob)
    }

    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: Option<&str>,
    ) -> Result<Option<Blob>, PortError> {
        let mut inner = self.lock();
        let there = inner.repositories.iter().any(|(name, held)| {
            from.is_none_or(|from| from == name) && held.blobs.contains(digest)
        });
        if !there {
            return Ok(None);
        }
        let size = inner.blobs.get(digest).ok_or_else(no_blob)?.len() as u64;
        let held = inner.repositories.entry(repository.to_owned()).or_default();
        held.blobs.insert(digest.to_owned());
        Ok(Some(Blob {
            digest: digest.to_owned(),
            size,
        }))
    }

    async fn begin_upload(&self, repository: &str) -> Result<Upload, PortError> {
        let mut inner = self.lock();
        inner.next += 1;
        let id = format!("00000000-0000-4000-8000-{:012}", inner.next);
        inner
            .uploads
            .insert((repository.to_owned(), id.clone()), Vec::new());
        Ok(Upload { id, offset: 0 })
    }

    async fn upload(&self, repository: &str, id: &str) -> Result<Upload, PortError> {
        let key = (repository.to_owned(), id.to_owned());
        let offset = self.lock().uploads.get(&key).ok_or_else(no_upload)?.len() as u64;
        Ok(Upload { id: key.1, offset })
    }

    async fn append_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
    ) -> Result<Upload, PortError> {
        self.append(repository, id, piece).await
    }

    async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        piece: Piece,
        digest: &str,
    ) -> Result<Blob, PortError> {
        self.append(repository, id, piece).await?;
        let mut inner = self.lock();
        let key = (repository.to_owned(), id.to_owned());
        let bytes = inner.uploads.remove(&key).ok_or_else(no_upload)?;
        if digest_like(digest, &bytes) != digest {
            return Err(PortError::invalid(code::DIGEST_INVALID, "another digest"));
        }
        let size = bytes.len() as u64;
        inner.blobs.insert(digest.to_owned(), bytes.into());
        let held = inner.repositories.entry(repository.to_owned()).or_default();
        held.blobs.insert(digest.to_owned());
        Ok(Blob {
            digest: digest.to_owned(),
            size,
        })
    }

    async fn cancel_upload(&self, repository: &str, id: &str) -> Result<(), PortError> {
        let key = (repository.to_owned(), id.to_owned());
        let removed = self.lock().uploads.remove(&key);
        removed.map(|_| ()).ok_or_else(no_upload)
    }
}

#[async_trait]
impl RegistryManifests for Content {
    async fn manifest(&self, repository: &str, name: &ManifestName) -> Result<Manifest, PortError> {
        let inner = self.lock();
        let held = inner.repositories.get(repository).ok_or_else(no_manifest)?;
        let digest = match name {
            ManifestName::Digest(digest) => digest,
            ManifestName::Tag(tag) => held.tags.get(tag).ok_or_else(no_manifest)?,
        };
        held.manifests.get(digest).cloned().ok_or_else(no_manifest)
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<ManifestKept, PortError> {
        let invalid = || PortError::invalid(code::MANIFEST_INVALID, "this is no manifest");
        let document: serde_json::Value =
            serde_json::from_slice(&put.bytes).map_err(|_| invalid())?;
        let digest = digest_like(put.digest.as_deref().unwrap_or_default(), &put.bytes);
        if put.digest.is_some_and(|wanted| wanted != digest) {
            return Err(PortError::invalid(code::DIGEST_INVALID, "another digest"));
        }
        let own = document["mediaType"].as_str().map(str::to_owned);
        let media_type = put.media_type.or(own).ok_or_else(invalid)?;
        let mut inner = self.lock();
        let held = inner.repositories.entry(put.repository).or_default();
        let manifest = Manifest {
            digest: digest.clone(),
            media_type,
            bytes: put.bytes,
        };
        held.manifests.insert(digest.clone(), manifest);
        for tag in put.tags {
            held.tags.insert(tag, digest.clone());
        }
        Ok(ManifestKept {
            digest,
            subject: document["subject"]["digest"].as_str().map(str::to_owned),
            remark: document["remark"].as_str().map(str::to_owned),
        })
    }

    async fn remove_manifest(
        &self,
        repository: &str,
        name: &ManifestName,
        in_use: &[String],
    ) -> Result<(), PortError> {
        let mut inner = self.lock();
        let held = inner
            .repositories
            .get_mut(repository)
            .ok_or_else(no_manifest)?;
        let digest = match name {
            ManifestName::Digest(digest) => digest.clone(),
            ManifestName::Tag(tag) => held.tags.get(tag).cloned().ok_or_else(no_manifest)?,
        };
        if in_use.contains(&digest) {
            return Err(PortError::conflict("image_in_use", "an instance uses it"));
        }
        match name {
            ManifestName::Tag(tag) => {
                held.tags.remove(tag);
            }
            ManifestName::Digest(_) => {
                held.manifests.remove(&digest).ok_or_else(no_manifest)?;
                held.tags.retain(|_, of| *of != digest);
            }
        }
        Ok(())
    }

    async fn tags(&self, repository: &str) -> Result<Vec<String>, PortError> {
        let inner = self.lock();
        let held = inner.repositories.get(repository).ok_or_else(|| {
            PortError::not_found(code::REPOSITORY_UNKNOWN, "there is no such repository")
        })?;
        Ok(held.tags.keys().cloned().collect())
    }

    async fn repositories(&self) -> Result<Vec<String>, PortError> {
        Ok(self.lock().repositories.keys().cloned().collect())
    }

    async fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Referrer>, PortError> {
        let inner = self.lock();
        let all = inner.repositories.get(repository).into_iter();
        let all = all.flat_map(|held| held.manifests.values());
        let found = all.filter_map(|manifest| {
            let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).ok()?;
            let refers = document["subject"]["digest"] == *digest;
            refers.then(|| Referrer {
                media_type: manifest.media_type.clone(),
                digest: manifest.digest.clone(),
                size: manifest.bytes.len() as u64,
                artifact_type: document["artifactType"].as_str().map(str::to_owned),
                annotations: serde_json::from_value(document["annotations"].clone())
                    .unwrap_or_default(),
            })
        });
        Ok(found.collect())
    }
}

/// An archive that says what is in it.
#[async_trait]
impl ImageOutlet for Content {
    async fn save(&self, request: SaveRequest) -> Result<Archive, PortError> {
        let words = format!("{:?} {}", request.format, request.ids.join(" "));
        Ok(Archive {
            size: words.len() as u64,
            bytes: stream::iter([Ok(Bytes::from(words))]).boxed(),
        })
    }

    async fn export(&self, request: ExportRequest) -> Result<Archive, PortError> {
        if request.size == Some(1) {
            return Err(PortError::invalid("export_too_small", "1 byte is too few"));
        }
        let words = format!("{:?} {} {:?}", request.layout, request.id, request.size);
        Ok(Archive {
            size: words.len() as u64,
            bytes: stream::iter([Ok(Bytes::from(words))]).boxed(),
        })
    }
}

//! Images as an archive that other programs load: an OCI layout in tar, with docker's own index beside it where asked.
//!
//! Blobs go out as they came in, so that an image keeps its digest. Nothing of this host or of the time is in the archive: the
//! same images always give the same bytes. It is written while it is read, and never in memory or on disk as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use warren_core::PortError;
use warren_core::ports::ImageOutlet;
use warren_core::ports::outlet::{Archive, ArchiveFormat, ExportRequest, SaveRequest};
use warren_core::ports::registry::ByteStream;
use warren_tar::{Entry, EntryKind};

use super::content::Content;
use super::records::Stored;
use super::{ImageStore, StoreError};
use crate::digest::Digest;
use crate::source::Reference;
use crate::source::layout::blob_name;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// What an archive consists of, in order.
enum Part {
    Written(Bytes),
    Blob(Digest, u64),
}

impl Part {
    fn size(&self) -> u64 {
        match self {
            Part::Written(bytes) => bytes.len() as u64,
            Part::Blob(_, size) => *size,
        }
    }
}

#[derive(Default)]
struct Writer {
    parts: Vec<Part>,
}

impl Writer {
    fn write(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.parts.push(Part::Written(bytes.into()));
        }
    }

    fn header(&mut self, name: &str, kind: EntryKind) -> io::Result<()> {
        self.write(warren_tar::header(&Entry::plain(name, kind))?);
        Ok(())
    }

    fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, EntryKind::Directory)
    }

    fn file(&mut self, name: &str, content: Part) -> io::Result<()> {
        let size = content.size();
        let segments = None;
        self.header(name, EntryKind::File { size, segments })?;
        self.parts.push(content);
        self.write(vec![0; warren_tar::padding(size)]);
        Ok(())
    }

    fn document(&mut self, name: &str, text: String) -> io::Result<()> {
        self.file(name, Part::Written(text.into()))
    }

    fn blob(&mut self, digest: &Digest, size: u64) -> io::Result<()> {
        self.file(&blob_name(digest), Part::Blob(digest.clone(), size))
    }
}

/// An image that goes out.
struct Wanted {
    name: String,
    manifest: Digest,
    configuration: Digest,
    layers: Vec<Digest>,
}

impl Wanted {
    fn of(stored: &Stored) -> Result<Self, StoreError> {
        let not_kept = || StoreError::NotKept(stored.record.name.clone());
        Ok(Wanted {
            name: stored.record.name.clone(),
            manifest: stored.record.digest.parse().map_err(|_| not_kept())?,
            configuration: stored.configuration.clone().ok_or_else(not_kept)?,
            layers: stored.layers.clone(),
        })
    }

    fn gone(&self, digest: &Digest) -> StoreError {
        StoreError::BlobGone {
            name: self.name.clone(),
            digest: digest.clone(),
        }
    }

    fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.manifest, &self.configuration]
            .into_iter()
            .chain(&self.layers)
    }

    /// How `index.json` names it: whole for containerd and docker, by its tag for others.
    fn entry(&self, media_type: &str, size: u64) -> Value {
        let tag = self.name.parse::<Reference>().ok();
        let tag = tag.as_ref().and_then(Reference::tag);
        let mut annotations = json!({ "io.containerd.image.name": self.name });
        if let Some(tag) = tag {
            annotations["org.opencontainers.image.ref.name"] = json!(tag);
        }
        json!({
            "mediaType": media_type,
            "digest": self.manifest.to_string(),
            "size": size,
            "annotations": annotations,
        })
    }

    /// How docker's `manifest.json` names it.
    fn docker_entry(&self) -> Value {
        let layers: Vec<String> = self.layers.iter().map(blob_name).collect();
        let is_tagged = !self.name.contains('@');
        let tags: Vec<&String> = is_tagged.then_some(&self.name).into_iter().collect();
        json!({ "Config": blob_name(&self.configuration), "RepoTags": tags, "Layers": layers })
    }
}

impl ImageStore {
    async fn archive(&self, request: SaveRequest) -> Result<Archive, StoreError> {
        let all = self.records.list()?.readable;
        let mut images = Vec::new();
        for id in &request.ids {
            let stored = all.iter().find(|stored| stored.record.id == *id);
            let stored = stored.ok_or_else(|| StoreError::NotKept(id.clone()))?;
            images.push(Wanted::of(stored)?);
        }
        let digests: BTreeSet<&Digest> = images.iter().flat_map(Wanted::blobs).collect();
        let lease = self.content.lease(digests);
        let mut blobs = BTreeMap::new();
        for image in &images {
            for digest in image.blobs() {
                let size = self.content.size(digest);
                let size = size.ok_or_else(|| image.gone(digest))?;
                blobs.insert(digest.clone(), size);
            }
        }
        let parts = self.parts(&images, &blobs, request.format)?;
        let size = parts.iter().map(Part::size).sum();
        let content = Arc::clone(&self.content);
        let state = (parts.into_iter(), content, lease);
        let bytes = stream::unfold(state, |(mut parts, content, lease)| async move {
            let bytes = part_bytes(parts.next()?, &content);
            Some((bytes, (parts, content, lease)))
        });
        Ok(Archive {
            size,
            bytes: bytes.flatten().boxed(),
        })
    }

    fn parts(
        &self,
        images: &[Wanted],
        blobs: &BTreeMap<Digest, u64>,
        format: ArchiveFormat,
    ) -> Result<Vec<Part>, StoreError> {
        let mut entries = Vec::new();
        for image in images {
            let reading = |source| StoreError::Disk {
                what: "reading a manifest",
                source,
            };
            let bytes = self.content.document(&image.manifest).map_err(reading)?;
            let bytes = bytes.ok_or_else(|| image.gone(&image.manifest))?;
            let document: Value =
                serde_json::from_slice(&bytes).map_err(|error| reading(io::Error::other(error)))?;
            let media_type = document["mediaType"].as_str().unwrap_or(MANIFEST);
            entries.push(image.entry(media_type, bytes.len() as u64));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        let docker = (format == ArchiveFormat::Docker)
            .then(|| images.iter().map(Wanted::docker_entry).collect());
        layout(&index, docker, blobs).map_err(|source| StoreError::Disk {
            what: "laying the archive out",
            source,
        })
    }
}

/// The archive's parts: the layout's own documents, docker's list where it is wanted, and the blobs.
fn layout(
    index: &Value,
    docker: Option<Value>,
    blobs: &BTreeMap<Digest, u64>,
) -> io::Result<Vec<Part>> {
    let mut archive = Writer::default();
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    archive.document("oci-layout", version.to_string())?;
    archive.document("index.json", index.to_string())?;
    if let Some(list) = docker {
        archive.document("manifest.json", list.to_string())?;
    }
    archive.directory("blobs/")?;
    let mut algorithm = "";
    for (digest, size) in blobs {
        if digest.algorithm() != algorithm {
            algorithm = digest.algorithm();
            archive.directory(&format!("blobs/{algorithm}/"))?;
        }
        archive.blob(digest, *size)?;
    }
    archive.write(vec![0; warren_tar::END]);
    Ok(archive.parts)
}

fn part_bytes(part: Part, content: &Content) -> ByteStream {
    let unreadable = |error| PortError::io("a blob cannot be read", error);
    match part {
        Part::Written(bytes) => stream::iter([Ok(bytes)]).boxed(),
        Part::Blob(digest, size) => match content.open(&digest) {
            Ok(Some((file, _))) => {
                let file = tokio::fs::File::from_std(file).take(size);
                ReaderStream::with_capacity(file, READ)
                    .map_err(unreadable)
                    .boxed()
            }
            Ok(None) => {
                let gone = io::Error::from(io::ErrorKind::NotFound);
                stream::iter([Err(unreadable(gone))]).boxed()
            }
            Err(error) => stream::iter([Err(unreadable(error))]).boxed(),
        },
    }
}

#[async_trait]
impl ImageOutlet for ImageStore {
    async fn save(&self, request: SaveRequest) -> Result<Archive, PortError> {
        Ok(self.archive(request).await?)
    }

    async fn export(&self, request: ExportRequest) -> Result<Archive, PortError> {
        Ok(self.export_image(request).await?)
    }
}

//! OCI image layouts (image-spec v1.1 `image-layout.md`), as a directory or inside a tar archive, and docker archives:
//! all are named files, some of them blobs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::SourceError;
use super::archive::ArchiveIndex;
use super::committed::Committed;
use super::manifest::{self, Descriptor, Fetch, Image, MAX_MANIFEST, Platform, Verbatim, Wanted};
use super::unmade::Unmade;
use crate::digest::Digest;
use crate::pipeline::{LayerInput, OpenLayer};

/// Named files.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// In an uncompressed tar archive.
    Archive(Arc<ArchiveIndex>),
}

impl Files {
    /// Opens a file by its path in the layout; `None` when it is not there.
    pub(crate) fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>> {
        match self {
            Files::Directory(root) => match open_regular(&root.join(name)) {
                Ok((file, size)) => Ok(Some((Box::new(file), size))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Files::Archive(index) => index.open(name),
        }
    }

    /// A small file, whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let read = |source| SourceError::Read {
            what: name.to_owned(),
            source,
        };
        let Some((from, size)) = self.open(name).map_err(read)? else {
            return Ok(None);
        };
        let too_large = || SourceError::TooLarge {
            what: name.to_owned(),
            limit,
        };
        if size > limit {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        from.take(limit + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > limit {
            return Err(too_large());
        }
        Ok(Some(bytes))
    }

    /// Opens a file when its turn comes.
    pub(crate) fn opener(&self, name: String) -> OpenLayer {
        let files = self.clone();
        Box::new(move |_: &CancellationToken| match files.open(&name)? {
            Some((reader, _)) => Ok(reader),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{name} is not there"),
            )),
        })
    }
}

/// A pipe or a device would block or have no end.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The blob of a digest, in a layout.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

#[async_trait]
impl Fetch for Files {
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let name = blob_name(&descriptor.digest()?);
        self.read(&name, limit)?.ok_or_else(|| SourceError::Read {
            what: name,
            source: io::ErrorKind::NotFound.into(),
        })
    }
}

/// One image of a local source.
pub(crate) struct Found {
    /// The name it has there.
    pub(crate) name: Option<String>,
    pub(crate) known: Known,
    /// Its layers, oldest first.
    pub(crate) inputs: Vec<LayerInput>,
}

/// What is known of an image before its layers are read.
pub(crate) enum Known {
    /// Everything.
    Image(Box<Image>),
    /// Not its digest, and not its layers'.
    Unmade(Unmade),
    /// Everything but the last layer.
    Committed(Box<Committed>),
}

/// What an OCI layout offers, or `None` if this is not one.
pub(crate) async fn read_layout(
    files: &Files,
    platform: &Platform,
    wanted: Wanted,
) -> Result<Option<Vec<Found>>, SourceError> {
    let Some(index) = files.read("index.json", MAX_MANIFEST)? else {
        return Ok(None);
    };
    if files.read("oci-layout", 4096)?.is_none() {
        return Ok(None);
    }
    let manifests = manifest::parse_index(&index)?;
    // Several platforms of one image directly in index.json: then it is the image's index itself.
    let mut named: Vec<&Descriptor> = Vec::new();
    let mut unnamed: Vec<&Descriptor> = Vec::new();
    for descriptor in &manifests {
        match name_of(descriptor) {
            Some(_) => named.push(descriptor),
            None => unnamed.push(descriptor),
        }
    }
    let mut found = Vec::new();
    for descriptor in named {
        let bytes = verified_manifest(files, descriptor)?;
        let image = manifest::resolve(files, bytes, platform, wanted).await?;
        found.push(Found::new(files, name_of(descriptor), image));
    }
    if found.is_empty() {
        let image = match unnamed.as_slice() {
            [only] => {
                let bytes = verified_manifest(files, only)?;
                manifest::resolve(files, bytes, platform, wanted).await?
            }
            _ => manifest::resolve(files, index, platform, wanted).await?,
        };
        found.push(Found::new(files, None, image));
    }
    Ok(Some(found))
}

/// containerd and docker write whole names, others a tag at most.
fn name_of(descriptor: &Descriptor) -> Option<String> {
    [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ]
    .iter()
    .find_map(|key| descriptor.annotations.get(*key).cloned())
}

fn verified_manifest(files: &Files, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
    let digest = descriptor.digest()?;
    let name = blob_name(&digest);
    let bytes = files
        .read(&name, MAX_MANIFEST)?
        .ok_or_else(|| SourceError::Read {
            what: name.clone(),
            source: io::ErrorKind::NotFound.into(),
        })?;
    let mut hasher = crate::digest::Hasher::like(Some(&digest));
    hasher.update(&bytes);
    if hasher.finish() != digest {
        return Err(SourceError::Digest {
            what: name,
            expected: digest.to_string(),
        });
    }
    Ok(bytes)
}

impl Found {
    fn new(files: &Files, name: Option<String>, image: Image) -> Self {
        let inputs = image
            .layers
            .iter()
            .map(|layer| LayerInput {
                digest: Some(layer.digest.clone()),
                size: Some(layer.size),
                diff_id: Some(layer.diff_id.clone()),
                open: files.opener(blob_name(&layer.digest)),
            })
            .collect();
        Found {
            name,
            known: Known::Image(Box::new(image)),
            inputs,
        }
    }

    /// The tarball of a root file system, plain or compressed.
    pub(crate) fn tarball(path: PathBuf, platform: Platform) -> Self {
        Found {
            name: None,
            known: Known::Unmade(Unmade::Tarball(platform)),
            inputs: vec![LayerInput {
                digest: None,
                size: None,
                diff_id: None,
                open: Box::new(move |_: &CancellationToken| Ok(Box::new(open_regular(&path)?.0))),
            }],
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// What `docker save` wrote, or `None` if this is not such an archive. Its layers are known by their diff-ids alone.
pub(crate) fn read_docker(files: &Files) -> Result<Option<Vec<Found>>, SourceError> {
    let Some(bytes) = files.read("manifest.json", MAX_MANIFEST)? else {
        return Ok(None);
    };
    let Ok(manifests) = serde_json::from_slice::<Vec<DockerManifest>>(&bytes) else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for entry in manifests {
        let missing = |name: &str| SourceError::Read {
            what: name.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        };
        let config = files
            .read(&entry.config, manifest::MAX_CONFIG)?
            .ok_or_else(|| missing(&entry.config))?;
        let configuration = manifest::Configuration::parse(&config)?;
        if configuration.diff_ids.len() != entry.layers.len() {
            return Err(manifest::malformed(
                "manifest.json",
                "it does not have one layer for each diff-id",
            ));
        }
        let mut inputs = Vec::new();
        for (name, diff_id) in entry.layers.iter().zip(&configuration.diff_ids) {
            let open = |source| SourceError::Read {
                what: name.clone(),
                source,
            };
            let (_, size) = files
                .open(name)
                .map_err(open)?
                .ok_or_else(|| missing(name))?;
            inputs.push(LayerInput {
                digest: None,
                size: Some(size),
                diff_id: Some(diff_id.clone()),
                open: files.opener(name.clone()),
            });
        }
        found.push(Found {
            name: entry.repo_tags.and_then(|tags| tags.into_iter().next()),
            known: Known::Unmade(Unmade::Configured(Verbatim::new(config))),
            inputs,
        });
    }
    Ok(Some(found))
}

//! Manifests, indexes and configurations: OCI image-spec v1.1 and docker's schema 2.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use warren_core::image::ImageConfig;

use super::SourceError;
use crate::digest::Digest;

/// Manifests and indexes: registries accept 4 MiB.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Configurations hold a history and labels.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Indexes in indexes.
const MAX_NESTING: usize = 4;

/// A descriptor, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<PlatformDocument>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    artifact_type: Option<String>,
}

impl Descriptor {
    pub(crate) fn digest(&self) -> Result<Digest, SourceError> {
        self.digest
            .parse()
            .map_err(|error: crate::DigestError| SourceError::Malformed {
                what: "a descriptor".into(),
                why: error.to_string(),
            })
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PlatformDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// What this host runs.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            other => (other, None),
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, SourceError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture] | [os, architecture, _]
                if !os.is_empty() && !architecture.is_empty() =>
            {
                Ok(Platform {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: parts.get(2).map(|v| (*v).to_owned()),
                })
            }
            _ => Err(SourceError::Malformed {
                what: format!("the platform {text:?}"),
                why: "write it as os/architecture or os/architecture/variant".into(),
            }),
        }
    }

    pub(crate) fn os(&self) -> &str {
        &self.os
    }

    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    pub(crate) fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `other` fits, less being better; `None` when it does not. A variant runs what was built
    /// for lower ones; where none is asked for, any will do, and the usual one is best.
    fn distance(&self, other: &PlatformDocument) -> Option<u64> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let usual = match self.architecture.as_str() {
            "arm" => "v7",
            "arm64" => "v8",
            "amd64" => "v1",
            _ => "",
        };
        let named =
            |variant: &Option<String>| variant.clone().filter(|variant| !variant.is_empty());
        let level = |variant: &str| variant.strip_prefix('v')?.parse::<u32>().ok();
        let wanted = named(&self.variant);
        let offered = named(&other.variant).unwrap_or_else(|| usual.to_owned());
        let target = wanted.clone().unwrap_or_else(|| usual.to_owned());
        match (level(&target), level(&offered)) {
            _ if target == offered => Some(0),
            (Some(target), Some(offered)) if offered < target => Some(u64::from(target - offered)),
            _ if wanted.is_none() => Some(u64::MAX),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A layer of a resolved image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    /// Compressed bytes.
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

/// A document byte for byte as it came, and the digest it goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verbatim {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

impl Verbatim {
    /// Under its SHA-256.
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Verbatim {
            digest: Digest::of(&bytes),
            bytes,
        }
    }
}

/// An image, resolved to what must be fetched.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Verbatim,
    pub(crate) configuration: Verbatim,
    pub(crate) platform: String,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
}

impl Image {
    /// The image's own digest: its manifest's.
    pub(crate) fn digest(&self) -> &Digest {
        &self.manifest.digest
    }

    /// Everything it is made of: manifest, configuration, layers.
    pub(crate) fn contents(&self) -> impl Iterator<Item = &Digest> {
        let documents = [&self.manifest.digest, &self.configuration.digest];
        let layers = self.layers.iter().map(|layer| &layer.digest);
        documents.into_iter().chain(layers)
    }
}

/// Brings manifests and configurations; the caller here checks digests.
#[async_trait]
pub(crate) trait Fetch: Sync {
    /// The bytes of a document, at most `limit`.
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError>;
}

/// Follows indexes to the manifest of a platform, and reads its configuration.
pub(crate) async fn resolve(
    from: &dyn Fetch,
    bytes: Vec<u8>,
    platform: &Platform,
    platform_wanted: Wanted,
) -> Result<Image, SourceError> {
    let mut manifest = Verbatim::new(bytes);
    for _ in 0..MAX_NESTING {
        let document: Document = parse(&manifest.bytes, "the manifest")?;
        if let Some(manifests) = document.manifests {
            let chosen = choose(&manifests, platform, platform_wanted)?;
            manifest = fetch_verified(from, chosen, MAX_MANIFEST, "a manifest").await?;
            continue;
        }
        return image(from, manifest, document).await;
    }
    Err(malformed("the index", "indexes are nested too deeply"))
}

/// Whether the user named the platform, or it is only this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Explicitly,
    ByHost,
}

fn choose<'a>(
    manifests: &'a [Descriptor],
    platform: &Platform,
    wanted: Wanted,
) -> Result<&'a Descriptor, SourceError> {
    let fitting = |d: &'a Descriptor| Some((platform.distance(d.platform.as_ref()?)?, d));
    if let Some((_, chosen)) = manifests.iter().filter_map(fitting).min_by_key(|(d, _)| *d) {
        return Ok(chosen);
    }
    // Layouts written by hand often name no platform at all.
    if let ([only], Wanted::ByHost) = (manifests, wanted)
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut found: Vec<String> = manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| match p.variant.as_deref() {
            None | Some("") => format!("{}/{}", p.os, p.architecture),
            Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
        })
        .map(|text| text.chars().filter(|c| !c.is_control()).take(64).collect())
        .take(32)
        .collect();
    found.dedup();
    Err(SourceError::Platform {
        wanted: platform.to_string(),
        found: if found.is_empty() {
            "none".into()
        } else {
            found.join(", ")
        },
    })
}

async fn image(
    from: &dyn Fetch,
    manifest: Verbatim,
    document: Document,
) -> Result<Image, SourceError> {
    if document.fs_layers.is_some() {
        return Err(SourceError::NotRunnable(
            "the image has a docker schema 1 manifest, which cannot be verified: push it again with a current tool".into(),
        ));
    }
    let media_type = document.media_type.unwrap_or_default();
    let (Some(config), Some(layers)) = (document.config, document.layers) else {
        return Err(malformed(
            "the manifest",
            "it has no configuration or no layers",
        ));
    };
    check_runnable(
        &media_type,
        document.artifact_type.as_deref(),
        &config,
        &layers,
    )?;
    let configuration = fetch_verified(from, &config, MAX_CONFIG, "the configuration").await?;
    let parsed = Configuration::parse(&configuration.bytes)?;
    // Layers of docker's that are only a marker have no diff-id of their own; none are allowed here.
    if parsed.diff_ids.len() != layers.len() {
        return Err(malformed(
            "the configuration",
            "it does not have one diff-id for each layer",
        ));
    }
    let layers = layers
        .iter()
        .zip(&parsed.diff_ids)
        .map(|(layer, diff_id)| {
            Ok(Layer {
                digest: layer.digest()?,
                size: layer.size,
                diff_id: diff_id.clone(),
            })
        })
        .collect::<Result<_, SourceError>>()?;
    Ok(Image {
        manifest,
        configuration,
        platform: parsed.platform,
        config: parsed.run,
        layers,
    })
}

fn check_runnable(
    media_type: &str,
    artifact: Option<&str>,
    config: &Descriptor,
    layers: &[Descriptor],
) -> Result<(), SourceError> {
    let shown =
        |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(120).collect() };
    if !matches!(
        media_type,
        "" | "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
    ) {
        return Err(SourceError::NotRunnable(format!(
            "a manifest of type {} is not a container image",
            shown(media_type)
        )));
    }
    if !matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    ) {
        let kind = artifact
            .or(config.artifact_type.as_deref())
            .unwrap_or(&config.media_type);
        return Err(SourceError::NotRunnable(format!(
            "this is an artifact of type {}, not a container image: there is nothing in it to run",
            shown(kind)
        )));
    }
    match layers.iter().find(|layer| !is_layer_type(&layer.media_type)) {
        None => Ok(()),
        Some(layer) if layer.media_type.contains("+encrypted") => Err(SourceError::NotRunnable(
            "the image's layers are encrypted: decrypt it with `skopeo copy --decryption-key` first".into(),
        )),
        Some(layer) => Err(SourceError::NotRunnable(format!(
            "a layer of type {} is not a file system",
            shown(&layer.media_type)
        ))),
    }
}

fn is_layer_type(media_type: &str) -> bool {
    let oci = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
    match oci {
        Some(rest) => matches!(rest, "v1.tar" | "v1.tar+gzip" | "v1.tar+zstd"),
        None => matches!(
            media_type,
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        ),
    }
}

async fn fetch_verified(
    from: &dyn Fetch,
    descriptor: &Descriptor,
    limit: u64,
    what: &str,
) -> Result<Verbatim, SourceError> {
    let expected = descriptor.digest()?;
    if descriptor.size > limit {
        return Err(SourceError::TooLarge {
            what: what.into(),
            limit,
        });
    }
    let bytes = from.fetch(descriptor, limit).await?;
    let mut hasher = crate::digest::Hasher::like(Some(&expected));
    hasher.update(&bytes);
    if bytes.len() as u64 != descriptor.size || hasher.finish() != expected {
        return Err(SourceError::Digest {
            what: what.into(),
            expected: expected.to_string(),
        });
    }
    Ok(Verbatim {
        digest: expected,
        bytes: bytes.into(),
    })
}

/// An image configuration, as far as it matters here.
pub(crate) struct Configuration {
    pub(crate) platform: String,
    pub(crate) run: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct ConfigurationDocument {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RunDocument>,
    rootfs: RootFsDocument,
}

#[derive(Deserialize)]
struct RootFsDocument {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunDocument {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Configuration {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SourceError> {
        let document: ConfigurationDocument = parse(bytes, "the configuration")?;
        let run = document.config.unwrap_or_default();
        let platform = Platform {
            os: document.os.unwrap_or_else(|| "linux".into()),
            architecture: document
                .architecture
                .unwrap_or_else(|| Platform::host().architecture),
            variant: document.variant.filter(|v| !v.is_empty()),
        };
        let diff_ids = document
            .rootfs
            .diff_ids
            .iter()
            .map(|id| {
                id.parse()
                    .map_err(|_| malformed("the configuration", "a diff-id is not a digest"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Configuration {
            platform: platform.to_string(),
            run: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                stop_signal: run.stop_signal.unwrap_or_default(),
                exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
                volumes: run.volumes.unwrap_or_default().into_keys().collect(),
                labels: run.labels.unwrap_or_default(),
            },
            diff_ids,
        })
    }
}

/// An index of a layout: what it offers.
pub(crate) fn parse_index(bytes: &[u8]) -> Result<Vec<Descriptor>, SourceError> {
    let document: Document = parse(bytes, "index.json")?;
    document
        .manifests
        .ok_or_else(|| malformed("index.json", "it has no manifests"))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| malformed(what, &error.to_string()))
}

pub(crate) fn malformed(what: &str, why: &str) -> SourceError {
    SourceError::Malformed {
        what: what.into(),
        why: why.into(),
    }
}

//! Images that come without a manifest: docker's archives have a configuration, tarballs of root file systems nothing.
//!
//! They get a real one when their layers have been read, so that they can be saved and pushed like all others. It holds
//! no time and nothing of this host: the same layers always give the same bytes, and thereby the same digest.

use serde::Serialize;

use super::SourceError;
use super::manifest::{Configuration, Image, Layer, Platform, Verbatim};
use crate::decompress::Compression;

/// image-spec v1.1 `media-types.md`.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";

/// What is known before the layers are read.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// The configuration, as it came.
    Configured(Verbatim),
    /// Only what the user says it runs on.
    Tarball(Platform),
}

impl Unmade {
    /// The image, now that its layers are known.
    pub(crate) fn make(self, layers: Vec<(Layer, Compression)>) -> Result<Image, SourceError> {
        let configuration = match self {
            Unmade::Configured(configuration) => configuration,
            Unmade::Tarball(platform) => plain_configuration(&platform, &layers),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: Descriptor {
                media_type: CONFIGURATION,
                digest: configuration.digest.to_string(),
                size: configuration.bytes.len() as u64,
            },
            layers: layers
                .iter()
                .map(|(layer, compression)| Descriptor {
                    media_type: media_type(*compression),
                    digest: layer.digest.to_string(),
                    size: layer.size,
                })
                .collect(),
        };
        let parsed = Configuration::parse(&configuration.bytes)?;
        Ok(Image {
            manifest: Verbatim::new(json(&manifest)),
            configuration,
            platform: parsed.platform,
            config: parsed.run,
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
        })
    }
}

fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
    }
}

fn plain_configuration(platform: &Platform, layers: &[(Layer, Compression)]) -> Verbatim {
    Verbatim::new(json(&PlainConfiguration {
        architecture: platform.architecture(),
        os: platform.os(),
        variant: platform.variant(),
        rootfs: RootFs {
            kind: "layers",
            diff_ids: layers
                .iter()
                .map(|(layer, _)| layer.diff_id.to_string())
                .collect(),
        },
    }))
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("structures of strings and numbers become JSON")
}

/// Fields in the order in which the specification lists them; serde keeps it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
}

#[derive(Serialize)]
struct PlainConfiguration<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use super::*;
    use crate::Digest;
    use crate::source::manifest::{Descriptor as Wanted, Fetch, Wanted as By, resolve};
    use async_trait::async_trait;

    struct One(Verbatim);

    #[async_trait]
    impl Fetch for One {
        async fn fetch(&self, wanted: &Wanted, _limit: u64) -> Result<Vec<u8>, SourceError> {
            assert_eq!(wanted.digest, self.0.digest.to_string());
            Ok(self.0.bytes.to_vec())
        }
    }

    fn layer(name: &str) -> Layer {
        Layer {
            digest: Digest::of(name.as_bytes()),
            size: 9,
            diff_id: Digest::of(format!("{name} unpacked").as_bytes()),
        }
    }

    fn tarball() -> Image {
        Unmade::Tarball(Platform::parse("linux/arm64/v8").unwrap())
            .make(vec![(layer("a"), Compression::Zstd)])
            .unwrap()
    }

    #[tokio::test]
    async fn what_is_made_is_an_image_that_resolves_to_itself() {
        let made = tarball();
        let read = resolve(
            &One(made.configuration.clone()),
            made.manifest.bytes.to_vec(),
            &Platform::host(),
            By::ByHost,
        )
        .await
        .unwrap();
        assert_eq!(read.digest(), made.digest());
        assert_eq!(read.layers, made.layers);
        assert_eq!(read.platform, "linux/arm64/v8");
    }

    #[test]
    fn the_same_layers_always_give_the_same_bytes() {
        let manifest = String::from_utf8(tarball().manifest.bytes.to_vec()).unwrap();
        assert_eq!(
            manifest,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"{CONFIGURATION}","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"{}","size":9}}]}}"#,
                tarball().configuration.digest,
                tarball().configuration.bytes.len(),
                layer("a").digest,
            )
        );
        assert_eq!(tarball().digest(), tarball().digest());
    }
}

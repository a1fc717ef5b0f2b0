//! What a manifest says of itself, as far as a registry has to know: which content it names and what it refers to. Any
//! manifest is content; whether it is an image that runs is asked elsewhere.
//!
//! Source: image-spec v1.1 `manifest.md`, `image-index.md`; distribution-spec v1.1, "Listing Referrers".

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::source::manifest::MAX_MANIFEST;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is wrong with a manifest, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoManifest(String);

/// Content that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) presence: Presence,
}

/// Whether what is named has to be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has.
    Needed,
    /// Its author may have kept it to themselves: layers that may not be distributed, or are elsewhere.
    Optional,
}

/// A manifest, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) media_type: String,
    pub(super) names: Vec<Named>,
    pub(super) subject: Option<Digest>,
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

impl Descriptor {
    fn named(&self) -> Named {
        let kept_back = self
            .media_type
            .starts_with("application/vnd.oci.image.layer.nondistributable.")
            || self
                .media_type
                .starts_with("application/vnd.docker.image.rootfs.foreign.")
            || self.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        Named {
            digest: self.digest.clone(),
            size: self.size,
            presence: if kept_back {
                Presence::Optional
            } else {
                Presence::Needed
            },
        }
    }
}

impl Described {
    /// Reads a manifest that was sent with this type.
    pub(super) fn read(bytes: &[u8], sent_as: Option<&str>) -> Result<Self, NoManifest> {
        let wrong = |why: String| NoManifest(why);
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(wrong(format!(
                "it has more than {MAX_MANIFEST} bytes, as no manifest may"
            )));
        }
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("it is no manifest: {error}")))?;
        if document.schema_version != 2 {
            return Err(wrong("its schemaVersion is not 2".to_owned()));
        }
        let is_index = document.manifests.is_some();
        if is_index && (document.config.is_some() || document.layers.is_some()) {
            // What reads it as one would see other content than what reads it as the other.
            return Err(wrong("it is both an image and an index".to_owned()));
        }
        let media_type = match (sent_as, document.media_type) {
            (Some(sent), Some(own)) if sent != own => {
                return Err(wrong(format!(
                    "it was sent as {sent} and says that it is {own}"
                )));
            }
            (Some(sent), _) => sent.to_owned(),
            (None, Some(own)) => own,
            (None, None) if is_index => OCI_INDEX.to_owned(),
            (None, None) => OCI_MANIFEST.to_owned(),
        };
        let names: Vec<Named> = match (media_type.as_str(), document.manifests) {
            (OCI_INDEX | DOCKER_LIST, Some(manifests)) => manifests
                .iter()
                .map(|descriptor| Named {
                    presence: Presence::Needed,
                    ..descriptor.named()
                })
                .collect(),
            (OCI_MANIFEST | DOCKER_MANIFEST, None) => {
                let config = document
                    .config
                    .as_ref()
                    .ok_or_else(|| wrong("it has no config".to_owned()))?;
                let layers = document
                    .layers
                    .as_ref()
                    .ok_or_else(|| wrong("it has no layers, not even none".to_owned()))?;
                std::iter::once(Named {
                    presence: Presence::Needed,
                    ..config.named()
                })
                .chain(layers.iter().map(Descriptor::named))
                .collect()
            }
            (OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST, _) => {
                return Err(wrong(format!("it is not what its type says: {media_type}")));
            }
            _ => {
                return Err(wrong(format!(
                    "manifests of the type {media_type} are not known here: OCI images and indexes are, and docker's of schema 2"
                )));
            }
        };
        let config_type = document.config.map(|config| config.media_type);
        Ok(Described {
            names,
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: document
                .artifact_type
                .filter(|text| !text.is_empty())
                .or(config_type)
                .filter(|text| !text.is_empty()),
            annotations: document.annotations.unwrap_or_default(),
            media_type,
        })
    }
}

impl Described {
    /// Whether its author meant it to be run somewhere.
    pub(super) fn looks_like_an_image(&self) -> bool {
        match self.artifact_type.as_deref() {
            None => matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST),
            Some(kind) => matches!(
                kind,
                "application/vnd.oci.image.config.v1+json"
                    | "application/vnd.docker.container.image.v1+json"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed test panics")]
    use super::*;
    use serde_json::{Value, json};

    fn read(document: &Value, sent_as: Option<&str>) -> Result<Described, NoManifest> {
        Described::read(document.to_string().as_bytes(), sent_as)
    }

    fn descriptor(media_type: &str, of: &str) -> Value {
        let digest = Digest::of(of.as_bytes()).to_string();
        json!({ "mediaType": media_type, "digest": digest, "size": of.len() })
    }

    #[test]
    fn images_indexes_and_artifacts_name_their_content() {
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let kept_back = "application/vnd.oci.image.layer.nondistributable.v1.tar";
        let image = json!({
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", "config"),
            "layers": [descriptor(layer, "layer"), descriptor(kept_back, "other")],
            "subject": descriptor(OCI_MANIFEST, "subject"),
            "annotations": { "a": "b" },
        });
        let image = read(&image, None).unwrap();
        assert_eq!(image.media_type, OCI_MANIFEST);
        let presences: Vec<Presence> = image.names.iter().map(|named| named.presence).collect();
        assert_eq!(
            presences,
            [Presence::Needed, Presence::Needed, Presence::Optional]
        );
        assert_eq!(image.subject, Some(Digest::of(b"subject")));
        assert_eq!(
            image.artifact_type.as_deref(),
            Some("application/vnd.oci.image.config.v1+json")
        );
        assert_eq!(image.annotations["a"], "b");
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": [descriptor(OCI_MANIFEST, "one")], "artifactType": "x/y",
        });
        let index = read(&index, Some(OCI_INDEX)).unwrap();
        assert_eq!(index.names.len(), 1);
        assert_eq!(index.artifact_type.as_deref(), Some("x/y"));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "config");
        let refused = [
            (json!({}), None),
            (json!([]), None),
            (
                json!({ "schemaVersion": 1, "config": config, "layers": [] }),
                None,
            ),
            (json!({ "schemaVersion": 2 }), None),
            (json!({ "schemaVersion": 2, "config": config }), None),
            (
                json!({ "schemaVersion": 2, "config": config, "layers": [], "manifests": [] }),
                None,
            ),
            (
                json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }),
                Some(OCI_MANIFEST),
            ),
            (
                json!({ "schemaVersion": 2, "manifests": [] }),
                Some(OCI_MANIFEST),
            ),
            (
                json!({ "schemaVersion": 2, "config": config, "layers": [] }),
                Some("application/json"),
            ),
            (
                json!({ "schemaVersion": 2, "config": { "digest": "sha256:1", "size": 1 }, "layers": [] }),
                None,
            ),
            (
                json!({ "schemaVersion": 2, "config": { "digest": Digest::of(b"").to_string(), "size": -1 }, "layers": [] }),
                None,
            ),
        ];
        for (document, sent_as) in refused {
            assert!(read(&document, sent_as).is_err(), "{document} {sent_as:?}");
        }
    }
}

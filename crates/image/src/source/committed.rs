//! Images made of another image and one more layer.
//!
//! The manifest is an OCI one, whatever the base's was: its layers are named with the same digests, docker's media types in OCI's
//! words. The configuration is the base's with what was asked for changed. Neither has a time of now: the same changes of the
//! same image always give the same image.

use serde_json::{Map, Value, json};

use super::SourceError;
use super::change::{self, Change};
use super::manifest::{Configuration, Image, Layer, Verbatim, malformed};

/// image-spec v1.1 `media-types.md`.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What docker's configurations say of the container an image was made from, and of when.
const OF_THE_BASE_ALONE: [&str; 6] = [
    "container",
    "container_config",
    "created",
    "id",
    "parent",
    "docker_version",
];

/// What is known before the new layer is there.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The image below.
    pub(crate) base: Image,
    /// What is changed of its configuration.
    pub(crate) changes: Vec<Change>,
    /// Who made it.
    pub(crate) author: Option<String>,
    /// What it is for.
    pub(crate) message: Option<String>,
}

impl Committed {
    /// The image; without a layer it has those of its base and another history.
    pub(crate) fn make(&self, layer: Option<&Layer>) -> Result<Image, SourceError> {
        let configuration = Verbatim::new(bytes(&self.configuration(layer)?));
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": CONFIGURATION,
                "digest": configuration.digest.to_string(),
                "size": configuration.bytes.len(),
            },
        });
        manifest["layers"] = self.descriptors(layer)?;
        let parsed = Configuration::parse(&configuration.bytes)?;
        Ok(Image {
            manifest: Verbatim::new(bytes(&manifest)),
            configuration,
            platform: parsed.platform,
            config: parsed.run,
            layers: self.base.layers.iter().chain(layer).cloned().collect(),
        })
    }

    fn configuration(&self, layer: Option<&Layer>) -> Result<Value, SourceError> {
        let odd = |what: &str| malformed("the configuration of the base", what);
        let base: Value = serde_json::from_slice(&self.base.configuration.bytes)
            .map_err(|error| odd(&error.to_string()))?;
        let Value::Object(mut document) = base else {
            return Err(odd("it is no object"));
        };
        for key in OF_THE_BASE_ALONE {
            document.remove(key);
        }
        if let Some(author) = &self.author {
            document.insert("author".into(), json!(author));
        }
        change::apply(&self.changes, object(&mut document, "config"));
        if let Some(layer) = layer {
            let root = object(&mut document, "rootfs");
            list(root, "diff_ids").push(json!(layer.diff_id.to_string()));
        }
        let mut step = json!({ "created_by": "warren commit" });
        for (key, value) in [("author", &self.author), ("comment", &self.message)] {
            if let Some(value) = value {
                step[key] = json!(value);
            }
        }
        if layer.is_none() {
            step["empty_layer"] = json!(true);
        }
        list(&mut document, "history").push(step);
        Ok(Value::Object(document))
    }

    fn descriptors(&self, layer: Option<&Layer>) -> Result<Value, SourceError> {
        let odd = |what: &str| malformed("the manifest of the base", what);
        let base: Value = serde_json::from_slice(&self.base.manifest.bytes)
            .map_err(|error| odd(&error.to_string()))?;
        let known = base["layers"]
            .as_array()
            .ok_or_else(|| odd("it has no layers"))?;
        let mut descriptors = Vec::new();
        for (descriptor, layer) in known.iter().zip(&self.base.layers) {
            let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
            descriptors.push(json!({
                "mediaType": in_oci_words(media_type),
                "digest": layer.digest.to_string(),
                "size": layer.size,
            }));
        }
        descriptors.extend(layer.map(|layer| {
            json!({
                "mediaType": GZIP_LAYER,
                "digest": layer.digest.to_string(),
                "size": layer.size,
            })
        }));
        Ok(Value::Array(descriptors))
    }
}

fn in_oci_words(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => GZIP_LAYER,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
        "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
            "application/vnd.oci.image.layer.v1.tar"
        }
        other => other,
    }
}

/// An object within another; what is something else there is replaced.
fn object<'a>(within: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let found = within.entry(key).or_insert(Value::Null);
    if !found.is_object() {
        *found = Value::Object(Map::new());
    }
    found.as_object_mut().expect("it was just made one")
}

fn list<'a>(within: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let found = within.entry(key).or_insert(Value::Null);
    if !found.is_array() {
        *found = Value::Array(Vec::new());
    }
    found.as_array_mut().expect("it was just made one")
}

fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).expect("JSON values become JSON")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use super::*;
    use crate::Digest;

    fn layer(name: &str) -> Layer {
        Layer {
            digest: Digest::of(name.as_bytes()),
            size: 9,
            diff_id: Digest::of(format!("{name} unpacked").as_bytes()),
        }
    }

    fn base() -> Image {
        let layer = layer("base");
        let configuration = json!({
            "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z", "container": "abc",
            "config": { "Cmd": ["sh"] },
            "history": [{ "created_by": "before" }],
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.to_string()] },
        });
        let configuration = Verbatim::new(bytes(&configuration));
        let manifest = json!({
            "schemaVersion": 2, "config": {},
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": layer.digest.to_string(), "size": layer.size,
            }],
        });
        Image {
            manifest: Verbatim::new(bytes(&manifest)),
            configuration,
            platform: "linux/amd64".into(),
            config: Default::default(),
            layers: vec![layer],
        }
    }

    fn committed() -> Committed {
        Committed {
            base: base(),
            changes: vec![Change::parse("CMD [\"app\"]").unwrap()],
            author: Some("me".into()),
            message: Some("why".into()),
        }
    }

    #[test]
    fn a_layer_is_added_to_manifest_configuration_and_history() {
        let new = layer("new");
        let image = committed().make(Some(&new)).unwrap();
        assert_eq!(image.layers, [layer("base"), new.clone()]);
        assert_eq!(image.config.cmd, ["app"]);
        let configuration: Value = serde_json::from_slice(&image.configuration.bytes).unwrap();
        assert_eq!(
            configuration,
            json!({
                "architecture": "amd64", "os": "linux", "author": "me", "config": { "Cmd": ["app"] },
                "history": [
                    { "created_by": "before" },
                    { "created_by": "warren commit", "author": "me", "comment": "why" },
                ],
                "rootfs": { "type": "layers", "diff_ids": [
                    layer("base").diff_id.to_string(), new.diff_id.to_string(),
                ] },
            })
        );
        let manifest: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        let types: Vec<&str> = manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["mediaType"].as_str().unwrap())
            .collect();
        assert_eq!(types, [GZIP_LAYER, GZIP_LAYER]);
    }

    #[test]
    fn without_a_layer_only_the_history_says_so() {
        let image = committed().make(None).unwrap();
        assert_eq!(image.layers, base().layers);
        let configuration: Value = serde_json::from_slice(&image.configuration.bytes).unwrap();
        assert_eq!(configuration["history"][1]["empty_layer"], json!(true));
        assert_eq!(committed().make(None).unwrap().digest(), image.digest());
    }
}

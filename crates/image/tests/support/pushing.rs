//! Pushes into a store, as the clients of a registry make them.

use std::path::Path;

use futures::{StreamExt, stream};
use serde_json::Value;
use warren_core::ports::registry::{
    Piece, PutManifest, RegistryBlobs as _, RegistryManifests as _,
};
use warren_image::ImageStore;

/// Pushes the image of an OCI layout: the blobs that the repository has not got yet, then the manifest.
pub async fn push_layout(images: &ImageStore, layout: &Path, repository: &str, tag: &str) {
    let blob = |named: &Value| {
        let digest = named["digest"].as_str().unwrap().to_owned();
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        (digest, bytes::Bytes::from(std::fs::read(path).unwrap()))
    };
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let (_, manifest) = blob(&index["manifests"][0]);
    let described: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = described["layers"].as_array().unwrap();
    for (digest, bytes) in layers.iter().chain([&described["config"]]).map(blob) {
        if images.blob(repository, &digest).await.is_ok() {
            continue;
        }
        let upload = images.begin_upload(repository).await.unwrap();
        let piece = Piece {
            at: None,
            length: Some(bytes.len() as u64),
            bytes: stream::iter([Ok(bytes)]).boxed(),
        };
        let finished = images.finish_upload(repository, &upload.id, piece, &digest);
        finished.await.unwrap();
    }
    let put = PutManifest {
        repository: repository.to_owned(),
        digest: None,
        tags: vec![tag.to_owned()],
        media_type: None,
        bytes: manifest,
        host: "localhost:8080".to_owned(),
    };
    let kept = images.put_manifest(put).await.unwrap();
    assert_eq!(kept.remark, None);
}

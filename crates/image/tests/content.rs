//! What the store keeps of images: exactly the bytes that came in, under their digests, for as long as somebody needs them.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use support::registry::Registry;
use support::{copy_image, have, leftovers, one_file, quiet, store, temporaries, write_layout};
use warren_core::ErrorClass;
use warren_core::image::ImageRecord;
use warren_core::ports::Images as _;
use warren_core::ports::images::LoadRequest;
use warren_image::{Digest, FromContent, ImageStore, UploadError};

fn read(images: &ImageStore, digest: &str) -> Vec<u8> {
    let digest: Digest = digest.parse().unwrap();
    let (mut file, size) = images.content().open(&digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

/// Everything an image is made of, out of the store: manifest, configuration, layers; each hashed and measured.
fn contents(images: &ImageStore, image: &ImageRecord) -> Vec<Vec<u8>> {
    let manifest = read(images, &image.digest);
    assert_eq!(Digest::of(&manifest).to_string(), image.digest);
    let parsed: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = parsed["layers"].as_array().unwrap();
    let mut all = vec![manifest];
    for descriptor in std::iter::once(&parsed["config"]).chain(layers) {
        let bytes = read(images, descriptor["digest"].as_str().unwrap());
        assert_eq!(Digest::of(&bytes).to_string(), descriptor["digest"]);
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
        all.push(bytes);
    }
    all
}

fn named(path: &Path, name: &str) -> LoadRequest {
    LoadRequest {
        path: path.to_owned(),
        name: Some(name.into()),
        ..LoadRequest::default()
    }
}

async fn load(images: &ImageStore, path: &Path, name: &str) -> ImageRecord {
    let mut records = images.load(named(path, name), quiet()).await.unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_in_keeps_exactly_what_came() {
    let test = "every_way_in_keeps_exactly_what_came";
    if !have(test, &["docker-registry", "skopeo"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let layers = [one_file("a", 300_000), one_file("b", 10)];
    let layout = work.path().join("layout");
    let digest = write_layout(&layout, "v1", &layers);
    let came = {
        let read = |digest: &Digest| std::fs::read(layout.join("blobs/sha256").join(digest.hex()));
        let manifest = read(&digest).unwrap();
        let parsed: Value = serde_json::from_slice(&manifest).unwrap();
        let config = parsed["config"]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        vec![
            manifest,
            read(&config).unwrap(),
            layers[0].0.clone(),
            layers[1].0.clone(),
        ]
    };
    let registry = Registry::start(work.path(), "");
    registry.push(&layout, "v1", "web:1", &[]);
    let (oci, docker) = (work.path().join("oci.tar"), work.path().join("docker.tar"));
    for target in [
        format!("oci-archive:{}:v1", oci.display()),
        format!("docker-archive:{}:web:9", docker.display()),
    ] {
        copy_image(&format!("oci:{}:v1", layout.display()), &target);
    }

    // With a manifest: byte for byte, each way in a store of its own.
    let pulled = store(&work.path().join("pulled"));
    let record = pulled
        .pull(registry.request("web:1"), quiet())
        .await
        .unwrap();
    assert_eq!(contents(&pulled, &record), came);
    for (name, path) in [("layout", &layout), ("archive", &oci)] {
        let images = store(&work.path().join(name));
        let record = load(&images, path, "localhost/x").await;
        assert_eq!(contents(&images, &record), came, "{name}");
    }

    // Without one: a real one is made, the same every time, and other tools accept it.
    let plain = work.path().join("plain.tar");
    std::fs::write(&plain, &layers[0].1).unwrap();
    let zipped = work.path().join("zipped.tar.gz");
    std::fs::write(&zipped, &layers[0].0).unwrap();
    for (path, unpacked) in [(&docker, 2), (&plain, 1), (&zipped, 1)] {
        let mut made = Vec::new();
        for again in ["one", "two"] {
            let data = work.path().join(again).join(path.file_name().unwrap());
            let images = store(&data);
            let record = load(&images, path, "localhost/x").await;
            made.push(contents(&images, &record));
            assert_eq!(leftovers(&data), 0);
        }
        assert_eq!(made[0], made[1]);
        let [manifest, config, blobs @ ..] = &made[0][..] else {
            panic!("no manifest or no configuration");
        };
        assert_eq!(blobs.len(), unpacked);
        let out = work.path().join("out").join(path.file_name().unwrap());
        write_as_layout(&out, manifest, std::iter::once(config).chain(blobs));
        copy_image(
            &format!("oci:{}", out.display()),
            &format!("docker-archive:{}/again.tar:x:1", out.display()),
        );
    }
    let images = store(&work.path().join("one/zipped.tar.gz"));
    let record = &images.list().await.unwrap()[0];
    assert_eq!(contents(&images, record)[2], layers[0].0);
    let manifest = String::from_utf8(read(&images, &record.digest)).unwrap();
    assert!(manifest.contains("layer.v1.tar+gzip"), "{manifest}");
}

fn write_as_layout<'a>(at: &Path, manifest: &'a Vec<u8>, blobs: impl Iterator<Item = &'a Vec<u8>>) {
    std::fs::create_dir_all(at.join("blobs/sha256")).unwrap();
    for blob in std::iter::once(manifest).chain(blobs) {
        let path = at.join("blobs/sha256").join(Digest::of(blob).hex());
        std::fs::write(path, blob).unwrap();
    }
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(manifest).to_string(), "size": manifest.len(),
    }] });
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
    std::fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Makes a store look as if a version without content had written it: no documents, no layers, none in the record.
fn forget_content(data: &Path, record: &ImageRecord) {
    std::fs::remove_dir_all(data.join("images/blobs")).unwrap();
    let path = data.join("images/refs").join(format!("{}.json", record.id));
    let mut old: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("configuration");
    old["layers"] = serde_json::json!([]);
    std::fs::write(&path, old.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_version_did_not_keep_comes_with_the_next_pull_or_load() {
    let test = "what_an_older_version_did_not_keep_comes_with_the_next_pull_or_load";
    if !have(test, &["docker-registry", "skopeo"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let layers = [one_file("a", 300_000), one_file("b", 10)];
    let layout = work.path().join("layout");
    write_layout(&layout, "v1", &layers);
    let registry = Registry::start(work.path(), "");
    registry.push(&layout, "v1", "web:1", &[]);
    let inode = |path: &Path| path.metadata().unwrap().ino();
    for way in ["load", "pull"] {
        let data = work.path().join(way);
        let bring = async |images: &ImageStore| match way {
            "load" => load(images, &layout, "localhost/x").await,
            _ => images
                .pull(registry.request("web:1"), quiet())
                .await
                .unwrap(),
        };
        let first = bring(&store(&data)).await;
        forget_content(&data, &first);
        let images = store(&data);
        assert_eq!(images.list().await.unwrap(), std::slice::from_ref(&first));
        let disk = images.disk(&first.digest).await.unwrap();
        let before = inode(&disk);
        let again = bring(&images).await;
        assert_eq!(contents(&images, &again).len(), 4, "{way}");
        assert_eq!(inode(&disk), before, "{way}: the disk was written again");
        assert_eq!(leftovers(&data), 0);
    }
}

#[tokio::test]
async fn a_damaged_layer_does_not_become_a_blob() {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    let layers = [one_file("a", 5000), one_file("b", 5000)];
    write_layout(&layout, "v1", &layers);
    let data = work.path().join("data");
    let images = store(&data);
    let blob = layout
        .join("blobs/sha256")
        .join(Digest::of(&layers[1].0).hex());
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    let first = Digest::of(&layers[0].0);
    for disk in ["missing", "here"] {
        let failed = images.load(named(&layout, "localhost/x"), quiet()).await;
        assert_eq!(failed.unwrap_err().code, "image_damaged", "{disk}");
        for found in [Digest::of(&bad), Digest::of(&good)] {
            assert_eq!(images.content().size(&found), None, "{disk}");
        }
        assert_eq!(leftovers(&data), 0, "{disk}");
        // Now with the disk here and only this blob missing.
        std::fs::write(&blob, &good).unwrap();
        load(&images, &layout, "localhost/x").await;
        assert!(images.content().size(&first).is_some());
        std::fs::write(&blob, &bad).unwrap();
        std::fs::remove_file(
            data.join("images/blobs/sha256")
                .join(Digest::of(&good).hex()),
        )
        .unwrap();
    }
}

async fn upload(images: &ImageStore, bytes: &[u8], digest: &Digest) {
    let content = images.content();
    let id = content.create_upload().await.unwrap();
    let mut offset = 0;
    for piece in bytes.chunks(bytes.len().div_ceil(3)) {
        assert_eq!(content.upload_offset(&id).unwrap(), offset);
        offset = content
            .append(&id, offset, Bytes::copy_from_slice(piece))
            .await
            .unwrap();
    }
    assert_eq!(
        content.finish_upload(&id, digest).await.unwrap(),
        bytes.len() as u64
    );
    assert_eq!(read(images, &digest.to_string()), bytes);
}

#[tokio::test]
async fn an_upload_becomes_a_blob_when_its_digest_is_right() {
    let work = tempfile::tempdir().unwrap();
    let images = store(work.path());
    let content = images.content();
    let bytes = one_file("u", 100_000).0;
    let digest = Digest::of(&bytes);
    upload(&images, &bytes, &digest).await;
    // As sha512sum says of "abc" (FIPS 180-4).
    let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    upload(&images, b"abc", &sha512.parse().unwrap()).await;
    // Empty: one request, no piece.
    let id = content.create_upload().await.unwrap();
    content.finish_upload(&id, &Digest::of(b"")).await.unwrap();
    assert_eq!(content.size(&Digest::of(b"")), Some(0));

    let id = content.create_upload().await.unwrap();
    content
        .append(&id, 0, Bytes::from_static(b"ab"))
        .await
        .unwrap();
    let gap = content.append(&id, 3, Bytes::from_static(b"c")).await;
    assert!(matches!(
        gap,
        Err(UploadError::Offset {
            expected: 2,
            given: 3
        })
    ));
    let wrong = content.finish_upload(&id, &Digest::of(b"abc")).await;
    assert!(matches!(wrong, Err(UploadError::Digest { .. })));
    assert_eq!(content.size(&Digest::of(b"abc")), None);
    assert!(matches!(
        content.upload_offset(&id),
        Err(UploadError::Unknown)
    ));
    let id = content.create_upload().await.unwrap();
    assert!(content.cancel_upload(&id));
    assert!(!content.cancel_upload(&id));
    assert_eq!(leftovers(work.path()), 0);
    // What a server that died had of one is removed by the next.
    let id = content.create_upload().await.unwrap();
    content
        .append(&id, 0, Bytes::from_static(b"half"))
        .await
        .unwrap();
    assert_eq!(temporaries(work.path()), 1);
    drop(images);
    drop(store(work.path()));
    assert_eq!(leftovers(work.path()), 0);
}

#[tokio::test]
async fn an_image_is_made_of_blobs_that_are_here() {
    let work = tempfile::tempdir().unwrap();
    let layers = [one_file("a", 300_000), one_file("b", 10)];
    let layout = work.path().join("layout");
    let digest = write_layout(&layout, "v1", &layers);
    let loaded = store(&work.path().join("loaded"));
    let record = load(&loaded, &layout, "localhost/x").await;
    let images = store(&work.path().join("made"));
    let request = FromContent {
        manifest: digest.clone(),
        name: "localhost/made".into(),
        id: None,
        platform: None,
        tags: BTreeMap::new(),
    };
    let all = contents(&loaded, &record);
    let [manifest, config, first, second] = &all[..] else {
        panic!("not four blobs");
    };
    images
        .content()
        .put_document(Bytes::from(manifest.clone()))
        .await
        .unwrap();
    images
        .content()
        .put_document(Bytes::from(config.clone()))
        .await
        .unwrap();
    upload(&images, first, &Digest::of(first)).await;
    let missing = images.convert_from_content(request.clone(), quiet()).await;
    let missing = warren_core::PortError::from(missing.unwrap_err());
    assert_eq!(
        (missing.class, missing.code),
        (ErrorClass::NotFound, "blob_not_here")
    );
    upload(&images, second, &Digest::of(second)).await;
    let made = images.convert_from_content(request, quiet()).await.unwrap();
    assert_eq!(
        (&made.digest, made.name.as_str()),
        (&record.digest, "localhost/made:latest")
    );
    let disk = async |images: &ImageStore| {
        std::fs::read(images.disk(&made.digest).await.unwrap()).unwrap()
    };
    assert!(disk(&images).await == disk(&loaded).await);
    assert_eq!(contents(&images, &made), all);
}

#[tokio::test]
async fn only_layers_decide_about_the_bytes_of_a_disk() {
    let work = tempfile::tempdir().unwrap();
    let (zipped, plain) = one_file("a", 100_000);
    let images = store(&work.path().join("data"));
    let mut disks = Vec::new();
    for (name, bytes) in [
        ("zipped", &zipped),
        ("plain", &plain),
        ("again", &zstd::encode_all(&plain[..], 1).unwrap()),
    ] {
        let path = work.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let record = load(&images, &path, &format!("localhost/{name}")).await;
        disks.push(std::fs::read(images.disk(&record.digest).await.unwrap()).unwrap());
    }
    assert!(disks[0] == disks[1] && disks[1] == disks[2]);
}

#[tokio::test]
async fn a_removed_image_takes_along_what_nobody_else_needs() {
    let work = tempfile::tempdir().unwrap();
    let (shared, own, other) = (
        one_file("s", 5000),
        one_file("o", 5000),
        one_file("t", 5000),
    );
    let (one, two) = (work.path().join("one"), work.path().join("two"));
    write_layout(&one, "v1", &[shared.clone(), own.clone()]);
    write_layout(&two, "v1", &[shared.clone(), other.clone()]);
    let data = work.path().join("data");
    let images = store(&data);
    let first = load(&images, &one, "localhost/one").await;
    let second = load(&images, &two, "localhost/two").await;
    let here =
        |(stored, _): &(Vec<u8>, Vec<u8>)| images.content().size(&Digest::of(stored)).is_some();
    // What an operation under way needs stays, and what an instance runs from.
    let lease = images.content().lease([&Digest::of(&own.0)]);
    images
        .remove(&first.id, std::slice::from_ref(&first.digest))
        .await
        .unwrap();
    assert!(images.disk(&first.digest).await.is_ok());
    assert!(here(&shared) && here(&own) && here(&other));
    drop(lease);
    let first = load(&images, &one, "localhost/one").await;
    let lease = images.content().lease([&Digest::of(&own.0)]);
    images.remove(&first.id, &[]).await.unwrap();
    assert!(images.disk(&first.digest).await.is_err());
    assert!(here(&shared) && here(&own) && here(&other));
    drop(lease);
    load(&images, &one, "localhost/one").await;
    images.remove(&first.id, &[]).await.unwrap();
    assert!(here(&shared) && !here(&own) && here(&other));
    // Nobody knows what a damaged record reaches.
    std::fs::write(data.join("images/refs/torn.json"), b"{\"id\":").unwrap();
    images.remove(&second.id, &[]).await.unwrap();
    assert_eq!(images.list().await.unwrap(), []);
    assert!(here(&shared) && here(&other));
    assert_eq!(leftovers(&data), 0);
}

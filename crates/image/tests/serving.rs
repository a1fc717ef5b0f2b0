//! The store as a registry, from inside: what is pushed becomes content and images, survives, and goes again. How it speaks
//! is tested where it speaks.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use support::{Archive, gzip, one_file, quiet, store, temporaries};
use warren_core::PortError;
use warren_core::ports::images::LoadRequest;
use warren_core::ports::outlet::{ArchiveFormat, SaveRequest};
use warren_core::ports::registry::{
    ByteRange, ManifestKept, ManifestName, Piece, PutManifest, RegistryBlobs as _,
    RegistryManifests as _,
};
use warren_core::ports::{ImageOutlet as _, Images as _};
use warren_image::{Digest, ImageStore, Options, UploadLimits};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const HOST: &str = "localhost:8080";

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn piece(bytes: &[u8]) -> Piece {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    Piece {
        at: None,
        length: Some(bytes.len() as u64),
        bytes: stream::iter([Ok(bytes)]).boxed(),
    }
}

fn tag(tag: &str) -> ManifestName {
    ManifestName::Tag(tag.to_owned())
}

fn by(digest: &Digest) -> ManifestName {
    ManifestName::Digest(digest.to_string())
}

async fn push_blob(store: &ImageStore, repository: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let upload = store.begin_upload(repository).await.unwrap();
    let blob = store
        .finish_upload(repository, &upload.id, piece(bytes), &digest.to_string())
        .await
        .unwrap();
    assert_eq!(blob.size, bytes.len() as u64);
    digest
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

/// An image's manifest; its configuration and layers are pushed on the way. Layers are compressed bytes and diff-ids.
async fn push_content(
    store: &ImageStore,
    repository: &str,
    architecture: &str,
    layers: &[(Vec<u8>, Digest)],
) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|(_, id)| id.to_string()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/one"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    push_blob(store, repository, config.as_bytes()).await;
    let mut described = Vec::new();
    for (layer, _) in layers {
        push_blob(store, repository, layer).await;
        described.push(descriptor(LAYER, layer));
    }
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config.as_bytes()), "layers": described,
    })
    .to_string()
    .into_bytes()
}

async fn put(
    store: &ImageStore,
    repository: &str,
    tags: &[&str],
    manifest: &[u8],
) -> Result<ManifestKept, PortError> {
    let put = PutManifest {
        repository: repository.to_owned(),
        digest: tags.is_empty().then(|| Digest::of(manifest).to_string()),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        media_type: None,
        bytes: bytes::Bytes::copy_from_slice(manifest),
        host: HOST.to_owned(),
    };
    store.put_manifest(put).await
}

fn layer(name: &str, size: usize) -> (Vec<u8>, Digest) {
    let (compressed, plain) = one_file(name, size);
    (compressed, Digest::of(&plain))
}

async fn push(store: &ImageStore, repository: &str, name: &str, of: &str) -> Digest {
    let manifest = push_content(store, repository, architecture(), &[layer(of, 5000)]).await;
    let kept = put(store, repository, &[name], &manifest).await.unwrap();
    assert_eq!(kept.remark, None);
    Digest::of(&manifest)
}

async fn read(store: &ImageStore, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
    let digest = digest.to_string();
    let blob = store.blob(repository, &digest).await.ok()?;
    let range = ByteRange {
        start: 0,
        end: blob.size,
    };
    let bytes = store.read_blob(repository, &digest, range).await.unwrap();
    let pieces: Vec<_> = bytes.map(Result::unwrap).collect().await;
    Some(pieces.concat())
}

fn disks(data: &Path) -> usize {
    std::fs::read_dir(data.join("images/disks"))
        .unwrap()
        .count()
}

fn blobs(data: &Path) -> usize {
    std::fs::read_dir(data.join("images/blobs/sha256"))
        .unwrap()
        .count()
}

#[tokio::test]
async fn a_pushed_image_runs_survives_and_goes_with_its_tag() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let digest = push(&images, "team/app", "1", "one").await;
    let record = images.find("localhost:8080/team/app:1").await.unwrap();
    let record = record.expect("a pull is not needed");
    assert_eq!(record.digest, digest.to_string());
    assert_eq!(record.config.cmd, ["/one"]);
    assert!(images.disk(&record.digest).await.unwrap().is_file());
    drop(images);
    let images = store(data.path());
    for name in [tag("1"), by(&digest)] {
        let manifest = images.manifest("team/app", &name).await.unwrap();
        assert_eq!(manifest.digest, digest.to_string());
        assert_eq!(manifest.media_type, MANIFEST);
        assert_eq!(Digest::of(&manifest.bytes), digest);
    }
    assert_eq!(images.tags("team/app").await.unwrap(), ["1"]);
    assert_eq!(images.repositories().await.unwrap(), ["team/app"]);
    let (bytes, _) = layer("one", 5000);
    let found = read(&images, "team/app", &Digest::of(&bytes)).await;
    assert_eq!(found, Some(bytes.clone()));
    assert_eq!(
        read(&images, "elsewhere", &Digest::of(&bytes)).await,
        None,
        "another repository"
    );
    let in_use = [record.digest.clone()];
    let refused = images.remove_manifest("team/app", &tag("1"), &in_use).await;
    assert_eq!(refused.unwrap_err().code, "image_in_use");
    images
        .remove_manifest("team/app", &tag("1"), &[])
        .await
        .unwrap();
    assert_eq!(images.list().await.unwrap(), []);
    assert_eq!(disks(data.path()), 0);
    let gone = images.manifest("team/app", &tag("1")).await.unwrap_err();
    assert_eq!(gone.code, "manifest_unknown");
    // The tag is gone, what it named is still there for those who are pulling it.
    images.manifest("team/app", &by(&digest)).await.unwrap();
    images
        .remove_manifest("team/app", &by(&digest), &[])
        .await
        .unwrap();
    assert!(images.repositories().await.unwrap().is_empty());
    let again = images.remove_manifest("team/app", &by(&digest), &[]).await;
    assert_eq!(again.unwrap_err().code, "manifest_unknown");
}

#[tokio::test]
async fn removing_the_image_removes_the_tag() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    push(&images, "app", "1", "one").await;
    let kept = push(&images, "app", "2", "two").await;
    drop(images);
    // Without the hour that blobs have after their upload.
    let images = store(data.path());
    let record = images.find("localhost:8080/app:1").await.unwrap().unwrap();
    images.remove(&record.id, &[]).await.unwrap();
    assert_eq!(images.tags("app").await.unwrap(), ["2"]);
    assert!(images.manifest("app", &tag("1")).await.is_err());
    assert_eq!((disks(data.path()), blobs(data.path())), (1, 3));
    images.manifest("app", &by(&kept)).await.unwrap();
}

#[tokio::test]
async fn a_tag_that_moves_takes_its_image_along() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let old = push(&images, "app", "1", "one").await;
    let new = push(&images, "app", "1", "two").await;
    let records = images.list().await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].digest, new.to_string());
    let now = images.manifest("app", &tag("1")).await.unwrap();
    assert_eq!(now.digest, new.to_string());
    images.manifest("app", &by(&old)).await.unwrap();
    // As something that does not run, it is no image any more.
    let config = b"{}";
    push_blob(&images, "app", config).await;
    let artifact = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.notes",
        "config": descriptor("application/vnd.oci.empty.v1+json", config), "layers": [],
    });
    put(&images, "app", &["1"], artifact.to_string().as_bytes())
        .await
        .unwrap();
    assert_eq!(images.list().await.unwrap(), []);
    let now = images.manifest("app", &tag("1")).await.unwrap();
    assert_eq!(Digest::of(&now.bytes).to_string(), now.digest);
}

#[tokio::test]
async fn one_tag_by_several_names_is_one_image() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let manifest = push_content(&images, "app", architecture(), &[layer("one", 100)]).await;
    for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "nohost"] {
        let put = PutManifest {
            repository: "app".to_owned(),
            digest: None,
            tags: vec!["1".to_owned()],
            media_type: Some(MANIFEST.to_owned()),
            bytes: manifest.clone().into(),
            host: host.to_owned(),
        };
        images.put_manifest(put).await.unwrap();
    }
    let names: Vec<String> = images
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|record| record.name)
        .collect();
    assert_eq!(
        names,
        [
            "127.0.0.1:8080/app:1",
            "[::1]:8080/app:1",
            "localhost/app:1",
            "localhost:8080/app:1"
        ]
    );
    assert_eq!(images.repositories().await.unwrap(), ["app"]);
    images.remove_manifest("app", &tag("1"), &[]).await.unwrap();
    assert_eq!(images.list().await.unwrap(), []);
}

/// Layers that cannot be a file system, and configurations that lie: refused with the reason, and nothing of them is shown.
#[tokio::test]
async fn what_cannot_be_converted_is_refused_with_its_reason() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let escaping = Archive::new().file(b"../../etc/passwd", b"root").end();
    let (whole, plain) = one_file("whole", 50_000);
    let cut = whole[..whole.len() / 2].to_vec();
    let cases = [
        ("image_hostile", gzip(&escaping), Digest::of(&escaping)),
        ("image_damaged", cut, Digest::of(&plain)),
        ("image_damaged", whole, Digest::of(b"something else")),
        ("image_malformed", gzip(&[1; 2048]), Digest::of(&[1; 2048])),
    ];
    for (code, bytes, diff_id) in cases {
        let layers = [(bytes, diff_id)];
        let manifest = push_content(&images, "app", architecture(), &layers).await;
        let refused = put(&images, "app", &["1"], &manifest).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused}");
        assert!(images.manifest("app", &tag("1")).await.is_err());
        assert!(
            images
                .manifest("app", &by(&Digest::of(&manifest)))
                .await
                .is_err()
        );
    }
    assert_eq!(images.list().await.unwrap(), []);
    assert!(images.repositories().await.unwrap().is_empty());
    assert_eq!((disks(data.path()), temporaries(data.path())), (0, 0));
}

#[tokio::test]
async fn what_does_not_run_here_is_kept_as_content() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let other = if architecture() == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    let foreign = push_content(&images, "app", other, &[layer("one", 100)]).await;
    let kept = put(&images, "app", &["foreign"], &foreign).await.unwrap();
    assert!(kept.remark.unwrap().contains(other));
    // Some tools do not know what a layer unpacks to, and say that it is nothing.
    let nothing = [(layer("one", 100).0, Digest::of(b""))];
    let nothing = push_content(&images, "app", architecture(), &nothing).await;
    let kept = put(&images, "app", &["nothing"], &nothing).await.unwrap();
    assert!(kept.remark.unwrap().contains("does not say"));
    let subject = Digest::of(&foreign);
    push_blob(&images, "app", b"{}").await;
    push_blob(&images, "app", b"a signature").await;
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.sig",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor("application/x.sig", b"a signature")],
        "subject": descriptor(MANIFEST, &foreign), "annotations": { "by": "me" },
    })
    .to_string();
    let kept = put(&images, "app", &[], signature.as_bytes())
        .await
        .unwrap();
    assert_eq!(kept.subject, Some(subject.to_string()));
    assert_eq!(kept.remark, None);
    assert_eq!(images.list().await.unwrap(), []);
    drop(images);
    let images = store(data.path());
    assert_eq!(images.tags("app").await.unwrap(), ["foreign", "nothing"]);
    let referrers = images.referrers("app", &subject.to_string()).await.unwrap();
    assert_eq!(referrers.len(), 1);
    assert_eq!(
        referrers[0].artifact_type.as_deref(),
        Some("application/x.sig")
    );
    assert_eq!(referrers[0].annotations["by"], "me");
    assert_eq!(referrers[0].size, signature.len() as u64);
}

#[tokio::test]
async fn an_index_stays_one_and_its_image_for_this_host_runs() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let other = if architecture() == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    let ours = push_content(&images, "app", architecture(), &[layer("one", 100)]).await;
    let theirs = push_content(&images, "app", other, &[layer("two", 100)]).await;
    let platform = |of: &[u8], architecture: &str| {
        let mut one = descriptor(MANIFEST, of);
        one["platform"] = json!({ "os": "linux", "architecture": architecture });
        one
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [platform(&theirs, other), platform(&ours, architecture())],
    })
    .to_string();
    let early = put(&images, "app", &["1"], index.as_bytes()).await;
    assert_eq!(early.unwrap_err().code, "manifest_blob_unknown");
    put(&images, "app", &[], &ours).await.unwrap();
    put(&images, "app", &[], &theirs).await.unwrap();
    put(&images, "app", &["1"], index.as_bytes()).await.unwrap();
    let tagged = images.manifest("app", &tag("1")).await.unwrap();
    assert_eq!(
        (tagged.bytes.as_ref(), tagged.media_type.as_str()),
        (index.as_bytes(), INDEX)
    );
    let record = images.find("localhost:8080/app:1").await.unwrap().unwrap();
    assert_eq!(record.digest, Digest::of(&ours).to_string());
    for manifest in [&ours, &theirs] {
        images
            .manifest("app", &by(&Digest::of(manifest)))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn every_image_is_in_the_repository_of_its_name() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let layout = data.path().join("layout");
    let (compressed, plain) = one_file("loaded", 3000);
    let digest = support::write_layout(&layout, "t", &[(compressed.clone(), plain)]);
    for name in ["web:1", "localhost:5000/team/web:2"] {
        let request = LoadRequest {
            path: layout.clone(),
            name: Some(name.to_owned()),
            ..LoadRequest::default()
        };
        images.load(request, quiet()).await.unwrap();
    }
    assert_eq!(
        images.repositories().await.unwrap(),
        ["docker.io/library/web", "localhost_5000/team/web"]
    );
    let repository = "docker.io/library/web";
    assert_eq!(images.tags(repository).await.unwrap(), ["1"]);
    let manifest = images.manifest(repository, &tag("1")).await.unwrap();
    assert_eq!(manifest.digest, digest.to_string());
    let found = read(&images, repository, &Digest::of(&compressed)).await;
    assert_eq!(found, Some(compressed.clone()));
    let needed = images
        .remove_blob(repository, &Digest::of(&compressed).to_string())
        .await;
    assert_eq!(needed.unwrap_err().code, "blob_needed");
    let in_use = [digest.to_string()];
    // Another name keeps the image.
    images
        .remove_manifest(repository, &tag("1"), &in_use)
        .await
        .unwrap();
    assert!(images.tags(repository).await.is_err());
    let last = images
        .remove_manifest("localhost_5000/team/web", &by(&digest), &in_use)
        .await;
    assert_eq!(last.unwrap_err().code, "image_in_use");
}

#[tokio::test]
async fn what_repositories_need_is_not_collected() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    let shared = layer("shared", 4000);
    let both = [shared.clone(), layer("own", 100)];
    let manifest = push_content(&images, "app", architecture(), &both).await;
    put(&images, "app", &[], &manifest).await.unwrap();
    let other = push_content(
        &images,
        "other",
        architecture(),
        std::slice::from_ref(&shared),
    )
    .await;
    put(&images, "other", &["1"], &other).await.unwrap();
    drop(images);
    // Without the hour that blobs have after their upload.
    let images = store(data.path());
    let record = images
        .find("localhost:8080/other:1")
        .await
        .unwrap()
        .unwrap();
    images.remove(&record.id, &[]).await.unwrap();
    assert_eq!(disks(data.path()), 0);
    let found = read(&images, "app", &Digest::of(&shared.0)).await;
    assert_eq!(found.as_ref(), Some(&shared.0));
    assert!(
        images
            .manifest("other", &by(&Digest::of(&other)))
            .await
            .is_err()
    );
    assert_eq!(
        blobs(data.path()),
        4,
        "the manifest, its configuration, two layers"
    );
}

#[tokio::test]
async fn uploads_end_where_they_must() {
    let data = tempfile::tempdir().unwrap();
    let options = Options {
        docker_config: Some(data.path().join("none")),
        uploads: UploadLimits {
            blob_bytes: 1000,
            pending_bytes: 1500,
            idle: Duration::from_millis(200),
        },
        ..Options::default()
    };
    let images = ImageStore::open(data.path(), options).unwrap();
    let begin = async || images.begin_upload("a").await.unwrap().id;
    let code = |result: Result<_, PortError>| result.map(|_: u64| ()).unwrap_err().code;
    let append = async |id: &str, piece| {
        let done = images.append_upload("a", id, piece).await;
        done.map(|upload| upload.offset)
    };
    let id = begin().await;
    assert_eq!(append(&id, piece(&[1; 900])).await.unwrap(), 900);
    assert_eq!(code(append(&id, piece(&[1; 101])).await), "blob_too_large");
    let late = Piece {
        at: Some(901),
        ..piece(&[1; 10])
    };
    assert_eq!(code(append(&id, late).await), "upload_out_of_order");
    assert_eq!(images.upload("a", &id).await.unwrap().offset, 900);
    assert_eq!(
        images.upload("b", &id).await.unwrap_err().code,
        "upload_unknown"
    );
    let second = begin().await;
    assert_eq!(
        code(append(&second, piece(&[1; 700])).await),
        "too_many_uploads"
    );
    let short = Piece {
        length: Some(50),
        ..piece(&[2; 40])
    };
    assert_eq!(code(append(&id, short).await), "size_invalid");
    assert_eq!(
        images.upload("a", &id).await.unwrap().offset,
        940,
        "what came stays"
    );
    // It breaks off: what came is there, and the rest may follow.
    let broken = Piece {
        at: None,
        length: None,
        bytes: stream::iter([
            Ok(bytes::Bytes::from_static(b"0123456789")),
            Err(PortError::invalid("size_invalid", "broke off")),
        ])
        .boxed(),
    };
    assert_eq!(code(append(&id, broken).await), "size_invalid");
    assert_eq!(images.upload("a", &id).await.unwrap().offset, 950);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while temporaries(data.path()) > 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "an idle upload stays"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        images.upload("a", &id).await.unwrap_err().code,
        "upload_unknown"
    );
}

#[tokio::test]
async fn a_damaged_repository_stops_collections() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    push(&images, "app", "1", "one").await;
    push(&images, "other", "1", "two").await;
    drop(images);
    let directory = data.path().join("images/repositories");
    let file = std::fs::read_dir(&directory).unwrap().next().unwrap();
    std::fs::write(file.unwrap().path(), "{ torn").unwrap();
    let images = store(data.path());
    assert_eq!(images.list().await.unwrap().len(), 2);
    for record in images.list().await.unwrap() {
        images.remove(&record.id, &[]).await.unwrap();
    }
    assert_eq!(
        blobs(data.path()),
        6,
        "nobody knows what the damaged one held"
    );
}

async fn save(images: &ImageStore, ids: &[String], format: ArchiveFormat) -> Vec<u8> {
    let request = SaveRequest {
        ids: ids.to_vec(),
        format,
    };
    let archive = images.save(request).await.unwrap();
    let pieces: Vec<_> = archive.bytes.map(Result::unwrap).collect().await;
    let bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, archive.size);
    bytes
}

#[tokio::test]
async fn saved_images_load_elsewhere_with_their_digests() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    push(&images, "app", "1", "one").await;
    push(&images, "app", "2", "two").await;
    let records = images.list().await.unwrap();
    let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let bytes = save(&images, &ids, format).await;
        assert!(bytes == save(&images, &ids, format).await, "the same again");
        let path = data.path().join("saved.tar");
        std::fs::write(&path, &bytes).unwrap();
        let other = tempfile::tempdir().unwrap();
        let elsewhere = store(other.path());
        let request = LoadRequest {
            path: path.clone(),
            ..LoadRequest::default()
        };
        let loaded = elsewhere.load(request, quiet()).await.unwrap();
        let pairs = |records: &[warren_core::image::ImageRecord]| {
            let pairs = records.iter();
            let mut pairs: Vec<(String, String)> =
                pairs.map(|r| (r.name.clone(), r.digest.clone())).collect();
            pairs.sort();
            pairs
        };
        assert_eq!(pairs(&loaded), pairs(&records));
        if support::have(
            "saved_images_load_elsewhere_with_their_digests",
            &["skopeo"],
        ) {
            let (from, to) = (path.display(), data.path().join(format!("{format:?}")));
            let (from, to) = match format {
                ArchiveFormat::Oci => (format!("oci-archive:{from}:1"), to),
                ArchiveFormat::Docker => {
                    (format!("docker-archive:{from}:localhost:8080/app:1"), to)
                }
            };
            let to = format!("dir:{}", to.display());
            let mut copy = std::process::Command::new("skopeo");
            support::run(copy.args(["copy", "--quiet", "--insecure-policy", &from, &to]));
        }
    }
}

#[tokio::test]
async fn long_names_and_what_is_missing() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    // A layer under a digest whose name fits into no header.
    let (compressed, diff_id) = layer("one", 100);
    let mut hashed = std::process::Command::new("sha512sum");
    let file = data.path().join("layer");
    std::fs::write(&file, &compressed).unwrap();
    let said = String::from_utf8(support::run(hashed.arg(&file))).unwrap();
    let long = format!("sha512:{}", said.split(' ').next().unwrap());
    let mut manifest: Value = serde_json::from_slice(
        &push_content(
            &images,
            "app",
            architecture(),
            &[(compressed.clone(), diff_id)],
        )
        .await,
    )
    .unwrap();
    let upload = images.begin_upload("app").await.unwrap();
    images
        .finish_upload("app", &upload.id, piece(&compressed), &long)
        .await
        .unwrap();
    manifest["layers"][0]["digest"] = json!(long);
    put(&images, "app", &["1"], manifest.to_string().as_bytes())
        .await
        .unwrap();
    let record = images.list().await.unwrap().remove(0);
    let bytes = save(&images, &[record.id], ArchiveFormat::Oci).await;
    let path = data.path().join("saved.tar");
    std::fs::write(&path, &bytes).unwrap();
    let names = support::run(std::process::Command::new("tar").arg("-tf").arg(&path));
    let names = String::from_utf8(names).unwrap();
    assert!(
        names.contains(&format!("blobs/{}", long.replace(':', "/"))),
        "{names}"
    );
    let request = SaveRequest {
        ids: vec!["nothing".to_owned()],
        format: ArchiveFormat::Oci,
    };
    assert_eq!(
        images.save(request).await.err().unwrap().code,
        "image_not_kept"
    );
}

#[tokio::test]
async fn an_image_whose_blobs_are_gone_says_so() {
    let data = tempfile::tempdir().unwrap();
    let images = store(data.path());
    push(&images, "app", "1", "one").await;
    let record = images.list().await.unwrap().remove(0);
    let blobs = data.path().join("images/blobs/sha256");
    let hex = record.digest.strip_prefix("sha256:").unwrap();
    let manifest = std::fs::read_to_string(blobs.join(hex)).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    std::fs::remove_file(blobs.join(layer.strip_prefix("sha256:").unwrap())).unwrap();
    let request = SaveRequest {
        ids: vec![record.id],
        format: ArchiveFormat::Oci,
    };
    let refused = images.save(request).await.err().unwrap();
    assert_eq!(refused.code, "blob_missing");
    assert!(refused.message.contains(layer), "{}", refused.message);
    assert!(refused.hint.unwrap().contains("warren pull"));
}

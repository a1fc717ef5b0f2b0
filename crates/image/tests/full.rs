//! A full file system, at every write that images and disks make: it is told as such, nothing half-made is left, what was
//! there stays whole, and everything works again once there is room.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::future::Future;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use futures::StreamExt as _;
use support::registry::Registry;
use support::small::{PAGE, PLENTY, Small};
use support::{
    changed_disk, copy_image, have, leftovers, one_file, quiet, run, store, write_layout,
};
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::images::{ImageUpkeep as _, LoadRequest, PruneRequest};
use warren_core::ports::outlet::{ArchiveFormat, DiskLayout, ExportRequest, SaveRequest};
use warren_core::ports::{Commits as _, ImageOutlet as _, Images as _, Presence, Volumes as _};
use warren_core::storage::{PruneMode, PruneScope, Repair};
use warren_core::units::ByteSize;
use warren_core::{ErrorClass, PortError};
use warren_image::{Digest, ImageStore, UploadError, WritableDisks};

fn is_full(error: &PortError) -> bool {
    (error.class, error.code) == (ErrorClass::NoSpace, "disk_full")
}

/// Does `act` to a fresh store with ever more room, until it succeeds. Each failure must be that there is no room,
/// must leave nothing half-made, and must be over once there is room.
async fn with_ever_more_room<Fut>(small: &Small, what: &str, act: impl Fn(Store) -> Fut)
where
    Fut: Future<Output = Result<(), PortError>>,
{
    let mut failures = 0;
    for n in 0.. {
        let data = small.at.join(n.to_string());
        let store = Store::open(&data);
        small.resize(small.used() + n * PAGE);
        let result = act(store.clone()).await;
        assert_eq!(leftovers(&data), 0, "{what}, {n} pages");
        small.resize(PLENTY);
        match &result {
            Ok(()) => {}
            Err(error) => {
                failures += 1;
                assert!(is_full(error), "{what}, {n} pages: {error:?}");
                assert_eq!(store.images.list().await.unwrap(), [], "{what}, {n} pages");
                act(store.clone()).await.unwrap();
            }
        }
        for record in store.images.list().await.unwrap() {
            let found = store.images.verify(&record.id, Repair::No).await.unwrap();
            assert!(found.is_sound(), "{what}, {n} pages: {found:?}");
        }
        assert_eq!(leftovers(&data), 0, "{what}, {n} pages");
        drop(store);
        std::fs::remove_dir_all(&data).unwrap();
        if result.is_ok() {
            break;
        }
    }
    assert!(failures > 3, "{what}: only {failures} writes failed");
}

#[derive(Clone)]
struct Store {
    images: std::sync::Arc<ImageStore>,
    disks: std::sync::Arc<WritableDisks>,
}

impl Store {
    fn open(data: &Path) -> Self {
        Store {
            images: store(data).into(),
            disks: WritableDisks::open(data).unwrap().into(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_at_each_write_is_told_and_harms_nothing() {
    let test = "a_full_disk_at_each_write_is_told_and_harms_nothing";
    if !have(test, &["docker-registry", "skopeo"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let Some(small) = Small::tmpfs(test, work.path().join("small")) else {
        return;
    };
    let layers = [one_file("a", 9000), one_file("b", 3000)];
    let layout = work.path().join("layout");
    write_layout(&layout, "v1", &layers);
    let registry = Registry::start(work.path(), "");
    registry.push(&layout, "v1", "web:1", &[]);
    let docker = work.path().join("docker.tar");
    copy_image(
        &format!("oci:{}:v1", layout.display()),
        &format!("docker-archive:{}:web:9", docker.display()),
    );
    let zipped = work.path().join("docker.tar.gz");
    std::fs::write(&zipped, support::gzip(&std::fs::read(&docker).unwrap())).unwrap();
    let tarball = work.path().join("root.tar.gz");
    std::fs::write(&tarball, &layers[0].0).unwrap();

    with_ever_more_room(&small, "pull", |store| {
        let request = registry.request("web:1");
        async move { store.images.pull(request, quiet()).await.map(drop) }
    })
    .await;
    for path in [&layout, &docker, &zipped, &tarball] {
        let what = format!("load {}", path.display());
        with_ever_more_room(&small, &what, |store| {
            let request = LoadRequest {
                path: path.clone(),
                name: Some("localhost/x".into()),
                ..LoadRequest::default()
            };
            async move { store.images.load(request, quiet()).await.map(drop) }
        })
        .await;
    }
    let bytes = Bytes::from(one_file("u", 40_000).1);
    with_ever_more_room(&small, "upload", |store| {
        let bytes = bytes.clone();
        async move { upload(&store.images, bytes).await }
    })
    .await;
    // Making the ready-made disk and cloning it; then only cloning.
    with_ever_more_room_for_disks(&small).await;
}

async fn upload(images: &ImageStore, bytes: Bytes) -> Result<(), PortError> {
    let told = |error: UploadError| match error {
        UploadError::Disk(source) => PortError::io("writing an upload", source),
        other => panic!("{other}"),
    };
    let content = images.content();
    let id = content.create_upload().await.map_err(told)?;
    for (n, piece) in bytes.chunks(10_000).enumerate() {
        let piece = Bytes::copy_from_slice(piece);
        let append = content.append(&id, n as u64 * 10_000, piece).await;
        append.map_err(told)?;
    }
    let digest = Digest::of(&bytes);
    content.finish_upload(&id, &digest).await.map_err(told)?;
    Ok(())
}

async fn with_ever_more_room_for_disks(small: &Small) {
    let data = small.at.join("disks");
    let store = Store::open(&data);
    let disk = data.join("disk.ext4");
    let size = ByteSize::mib(32);
    let ensure = async || store.disks.ensure_empty(&disk, size).await;
    for ready_made in [false, true] {
        let mut failures = 0;
        for room in (0..).step_by(16) {
            small.resize(small.used() + room * PAGE);
            let result = ensure().await;
            small.resize(PLENTY);
            assert_eq!(leftovers(&data), 0);
            let Err(error) = result else { break };
            failures += 1;
            assert!(is_full(&error), "{room} pages: {error:?}");
            assert_eq!(store.disks.observe(&disk).await.unwrap(), Presence::Absent);
        }
        assert!(failures > 0, "ready-made: {ready_made}");
        run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&disk));
        store.disks.remove(&disk).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_room_is_told_and_harms_nothing() {
    let test = "a_commit_without_room_is_told_and_harms_nothing";
    if !have(test, &["mkfs.ext4"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let Some(small) = Small::tmpfs(test, work.path().join("small")) else {
        return;
    };
    let layout = work.path().join("layout");
    write_layout(&layout, "v1", &[one_file("a", 9000)]);
    let changed = changed_disk(work.path());
    let mut refused = 0;
    // Up to where the copy of the disk, the layer and the image's disk all have room.
    for room in (0..).step_by(3) {
        let data = small.at.join(room.to_string());
        let images = store(&data);
        let request = LoadRequest {
            path: layout.clone(),
            name: Some("localhost/base".into()),
            ..LoadRequest::default()
        };
        let base = images.load(request, quiet()).await.unwrap().remove(0);
        let disk = data.join("disk.ext4");
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([&changed, &disk]));
        let commit = async || {
            let request = CommitRequest {
                name: "localhost/committed".into(),
                ..CommitRequest::default()
            };
            images.check(&request, &base.digest).await?;
            let captured = images.capture(&disk).await?;
            images
                .commit(request, &base.digest, captured, quiet())
                .await
        };
        small.leave_room(room * PAGE);
        let result = commit().await;
        assert_eq!(leftovers(&data), 0, "{room} pages");
        if let Err(error) = &result {
            refused += 1;
            assert!(is_full(error), "{room} pages: {error:?}");
            assert_eq!(images.list().await.unwrap().len(), 1, "{room} pages");
            goes_out(&images, &base.id).await;
            small.resize(PLENTY);
            commit().await.unwrap();
        }
        small.resize(PLENTY);
        for record in images.list().await.unwrap() {
            let found = images.verify(&record.id, Repair::No).await.unwrap();
            assert!(found.is_sound(), "{room} pages: {found:?}");
        }
        assert_eq!(images.list().await.unwrap().len(), 2, "{room} pages");
        drop(images);
        std::fs::remove_dir_all(&data).unwrap();
        if result.is_ok() {
            break;
        }
    }
    assert!(refused > 3, "only {refused} were refused");
}

/// What leaves a host needs no room on it.
async fn goes_out(images: &ImageStore, id: &str) {
    let save = SaveRequest {
        ids: vec![id.to_owned()],
        format: ArchiveFormat::Oci,
    };
    let export = ExportRequest {
        id: id.to_owned(),
        layout: DiskLayout::Partitioned,
        size: None,
    };
    for archive in [images.save(save).await, images.export(export).await] {
        let archive = archive.unwrap();
        let pieces = archive.bytes.map(|piece| piece.unwrap().len() as u64);
        let sent: u64 = pieces.collect::<Vec<_>>().await.into_iter().sum();
        assert_eq!(sent, archive.size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ext4_is_told_and_harms_nothing() {
    let test = "a_full_ext4_is_told_and_harms_nothing";
    let work = tempfile::tempdir().unwrap();
    let Some(small) = Small::ext4(test, work.path().join("small")) else {
        return;
    };
    let layout = work.path().join("layout");
    write_layout(
        &layout,
        "v1",
        &[one_file("a", 600_000), one_file("b", 200_000)],
    );
    let data = small.at.join("data");
    let images = store(&data);
    let load = || {
        let request = LoadRequest {
            path: layout.clone(),
            name: Some("localhost/x".into()),
            ..LoadRequest::default()
        };
        images.load(request, quiet())
    };
    let empty = small.used();
    let record = load().await.unwrap().remove(0);
    let needed = small.used() - empty;
    images.remove(&record.id, &[]).await.unwrap();
    for percent in [0, 1, 10, 30, 50, 70, 90] {
        small.leave(needed * percent / 100);
        let error = load().await.unwrap_err();
        assert!(is_full(&error), "{percent} %: {error:?}");
        assert_eq!(leftovers(&data), 0);
        assert_eq!(images.list().await.unwrap(), []);
        let everything = PruneRequest {
            scope: PruneScope::Unreferenced,
            mode: PruneMode::Remove,
            in_use: Vec::new(),
        };
        images.prune(everything).await.unwrap();
    }
    small.throw_ballast();
    let record = load().await.unwrap().remove(0);
    // Upkeep needs no room of its own; ext4 keeps some for what it has not written yet.
    small.leave(256 << 10);
    let found = images.verify(&record.id, Repair::No).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
    images.remove(&record.id, &[]).await.unwrap();
    small.settle();
    load().await.unwrap();
}

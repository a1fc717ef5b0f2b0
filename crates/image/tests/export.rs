//! Images as disks: what other programs find in the archive that goes out.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use futures::StreamExt;
use support::ext4::{complaints, scan_disk, without_lost_and_found};
use support::reading::{assert_same_tree, scan_image};
use support::{have, one_file, quiet, run, store, write_layout};
use warren_core::ports::images::LoadRequest;
use warren_core::ports::outlet::{DiskLayout, ExportRequest};
use warren_core::ports::{ImageOutlet as _, Images as _};
use warren_image::ImageStore;

const MIB: u64 = 1 << 20;

/// A store with one image, and the id of that.
async fn with_image(work: &Path) -> (ImageStore, String) {
    let layout = work.join("layout");
    write_layout(&layout, "t", &[one_file("file", 300_000)]);
    let images = store(&work.join("data"));
    let request = LoadRequest {
        path: layout,
        name: Some("localhost/x:t".into()),
        ..LoadRequest::default()
    };
    let loaded = images.load(request, quiet()).await.unwrap();
    let id = loaded[0].id.clone();
    (images, id)
}

async fn export(
    images: &ImageStore,
    id: &str,
    layout: DiskLayout,
    size: Option<u64>,
) -> Result<Vec<u8>, warren_core::PortError> {
    let request = ExportRequest {
        id: id.to_owned(),
        layout,
        size,
    };
    let archive = images.export(request).await?;
    let pieces: Vec<_> = archive.bytes.map(Result::unwrap).collect().await;
    let bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, archive.size);
    Ok(bytes)
}

/// By GNU tar, which knows nothing of Warren.
fn unpack(archive: &[u8], work: &Path) {
    let file = work.join("archive.tar");
    std::fs::write(&file, archive).unwrap();
    run(Command::new("tar")
        .arg("-C")
        .arg(work)
        .arg("-xSf")
        .arg(&file));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_goes_out_alone() {
    let test = "a_file_system_goes_out_alone";
    if !have(test, &["tar", "e2fsck"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (images, id) = with_image(work.path()).await;
    let archive = export(&images, &id, DiskLayout::FileSystem, None)
        .await
        .unwrap();
    assert!((archive.len() as u64) < 2 * MIB, "{}", archive.len());
    let again = export(&images, &id, DiskLayout::FileSystem, None)
        .await
        .unwrap();
    assert!(archive == again, "the same again");
    unpack(&archive, work.path());
    let disk = work.path().join("disk.ext4");
    assert_eq!(complaints(&disk), None);
    let metadata = disk.metadata().unwrap();
    assert!(metadata.len() >= 256 * MIB && metadata.blocks() * 512 < 4 * MIB);
    let digest = images.list().await.unwrap()[0].digest.clone();
    let wanted = scan_image(&images.disk(&digest).await.unwrap());
    let read = scan_disk(std::fs::File::open(&disk).unwrap()).unwrap();
    assert_same_tree("read", &without_lost_and_found(read, &wanted), &wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_has_a_partition_that_others_find() {
    let test = "a_disk_has_a_partition_that_others_find";
    if !have(test, &["tar", "e2fsck", "partx", "dd"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (images, id) = with_image(work.path()).await;
    for size in [None, Some(100 * MIB)] {
        let archive = export(&images, &id, DiskLayout::Partitioned, size).await;
        unpack(&archive.unwrap(), work.path());
        let disk = work.path().join("disk.raw");
        let bytes = disk.metadata().unwrap().len();
        assert_eq!(bytes, size.unwrap_or(bytes));
        let mut shown = Command::new("partx");
        shown.args(["--show", "--noheadings", "-o", "NR,START,END,TYPE,NAME"]);
        let shown = String::from_utf8(run(shown.arg(&disk))).unwrap();
        let shown: Vec<&str> = shown.split_whitespace().collect();
        let end = (bytes / 512 - 2048 - 1).to_string();
        let root = match std::env::consts::ARCH {
            "aarch64" => "b921b045-1df0-41c3-af44-4c6f280d3fae",
            // What the image says that it is for.
            _ => "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        };
        assert_eq!(shown, ["1", "2048", &end, root, "root"]);
        // Both copies of the table are right: the second one is found without the first.
        let head = std::fs::File::options().write(true).open(&disk).unwrap();
        let inner = work.path().join("inner.ext4");
        run(Command::new("dd")
            .args(["bs=1M", "skip=1", "conv=sparse", "status=none"])
            .arg(format!("count={}", bytes / MIB - 2))
            .arg(format!("if={}", disk.display()))
            .arg(format!("of={}", inner.display())));
        assert_eq!(complaints(&inner), None);
        head.write_all_at(&[0; 17_408 - 512], 512).unwrap();
        let mut found = Command::new("partx");
        found.args(["--show", "--noheadings", "-o", "START,END"]);
        let found = String::from_utf8(run(found.arg(&disk))).unwrap();
        let found: Vec<&str> = found.split_whitespace().collect();
        assert_eq!(found, ["2048", &end]);
        std::fs::remove_file(&inner).unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_is_told_with_what_to_do() {
    let work = tempfile::tempdir().unwrap();
    let (images, id) = with_image(work.path()).await;
    let small = export(&images, &id, DiskLayout::Partitioned, Some(3 * MIB)).await;
    let small = small.unwrap_err();
    assert_eq!(small.code, "export_too_small");
    assert!(small.hint.unwrap().contains("MiB at least"));
    let none = export(&images, "nothing", DiskLayout::FileSystem, None).await;
    assert_eq!(none.unwrap_err().code, "image_not_here");
    let digest = images.list().await.unwrap()[0].digest.clone();
    let disk = images.disk(&digest).await.unwrap();
    std::fs::write(&disk, vec![7; 100_000]).unwrap();
    let damaged = export(&images, &id, DiskLayout::FileSystem, None).await;
    assert_eq!(damaged.unwrap_err().code, "image_damaged");
    std::fs::remove_file(&disk).unwrap();
    let gone = export(&images, &id, DiskLayout::FileSystem, None).await;
    let gone = gone.unwrap_err();
    assert_eq!(gone.code, "image_disk_missing");
    assert!(gone.hint.unwrap().contains("--repair"));
}

/// A reader that goes away ends the writer.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_reads_ends() {
    let work = tempfile::tempdir().unwrap();
    let (images, id) = with_image(work.path()).await;
    let request = ExportRequest {
        id,
        layout: DiskLayout::FileSystem,
        size: Some(20 << 30),
    };
    let mut archive = images.export(request).await.unwrap();
    assert!(archive.bytes.next().await.unwrap().is_ok());
    drop(archive);
    let open = || {
        let listing = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = listing.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets
            .filter(|target| target.starts_with(work.path()))
            .count()
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while open() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(open(), 0, "its disk is closed");
}

//! What is written as ext4 is what the image has, at every size; what ext4 cannot hold is told. That a tree with one of everything
//! comes through is in `exact`, and random trees are in `layers`.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use support::ext4::{assert_exact, complaints, mounted, scan_disk, write};
use support::reading::scan_image;
use support::{Archive, convert_archives, have, run};
use warren_image::erofs::Reader;
use warren_image::ext4::WriteError;

const MIB: u64 = 1 << 20;

/// An attribute of so many bytes.
fn attribute(name: &str, size: usize) -> (String, Vec<u8>) {
    let value = (0..size).map(|at| (at * 13 + size) as u8).collect();
    (format!("SCHILY.xattr.{name}"), value)
}

fn with_attributes(archive: Archive, attributes: &[(String, Vec<u8>)]) -> Archive {
    let records: Vec<(&str, &[u8])> = attributes
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    archive.pax(&records)
}

#[test]
fn directories_attributes_and_numbers_come_through_at_every_size() {
    let test = "directories_attributes_and_numbers_come_through_at_every_size";
    if !have(test, &["e2fsck"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image.erofs");
    let mut archive = Archive::new().directory(b"many/");
    // More than a block of names, and more inodes than a small file system has by itself.
    for number in 0..9000 {
        let name = format!("many/a-name-that-makes-a-directory-long-{number}");
        archive = archive.file(name.as_bytes(), b"");
    }
    // In the inode, in a block, in both; without a value; as many as a block has room for.
    let lists = [
        vec![attribute("user.a", 40)],
        vec![attribute("user.large", 3000)],
        vec![
            attribute("user.b", 30),
            attribute("trusted.c", 500),
            attribute("security.empty", 0),
            attribute("user.z", 3),
        ],
        (0..100)
            .map(|n| attribute(&format!("user.{n:03}"), 12))
            .collect(),
    ];
    for (number, list) in lists.iter().enumerate() {
        let name = format!("attributes-{number}");
        archive = with_attributes(archive, list).file(name.as_bytes(), b"x");
    }
    for (seconds, nanoseconds) in [
        (-2_147_483_648i64, 0),
        (-1, 999_999_999),
        (2_147_483_648, 1),
        (15_032_385_535, 500),
    ] {
        let time = match seconds {
            // A negative time counts its fraction downwards, as a decimal number does.
            -1 => "-0.000000001".to_owned(),
            _ => format!("{seconds}.{nanoseconds:09}"),
        };
        let name = format!("time{seconds}");
        archive = archive
            .pax(&[("mtime", time.as_bytes())])
            .file(name.as_bytes(), b"");
    }
    for length in [1, 59, 60, 61, 99] {
        let target = "t".repeat(length);
        archive = archive.symlink(format!("link-{length}").as_bytes(), target.as_bytes());
    }
    convert_archives(vec![archive.end()], &image).unwrap();
    let wanted = scan_image(&image);
    for size in [None, Some(16 * MIB), Some(5 << 30)] {
        assert_exact(test, &image, work.path(), size, &wanted);
    }
}

/// What needs trees of extents: more holes than an inode has extents, and files that fill groups.
#[test]
fn scattered_and_large_files_come_through() {
    let test = "scattered_and_large_files_come_through";
    if !have(test, &["e2fsck", "tar"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let sparse = |name: &str, size: u64, pieces: u64, step: u64| {
        let file = File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        for number in 0..pieces {
            file.write_all_at(format!("piece {number}").as_bytes(), number * step)
                .unwrap();
        }
    };
    sparse("five", 20 * MIB, 5, 4 * MIB);
    // Three levels: 340 extents in a block, and four blocks in the inode.
    sparse("scattered", 600 * MIB, 2000, 300_000);
    sparse("only-a-hole", 100 << 30, 0, 1);
    sparse("end", 30 * MIB + 1, 1, 1);
    let mut large = File::create(tree.join("large")).unwrap();
    let piece: Vec<u8> = (0..MIB).map(|at| (at / 7 + at / 4096) as u8).collect();
    for number in 0..150u8 {
        large.write_all(&[number]).unwrap();
        large.write_all(&piece[1..]).unwrap();
    }
    let packed = run(Command::new("tar")
        .args(["--format=posix", "--sparse", "--numeric-owner", "-C"])
        .arg(&tree)
        .args(["-cf", "-", "."]));
    let image = work.path().join("image.erofs");
    convert_archives(vec![packed], &image).unwrap();
    let wanted = scan_image(&image);
    assert_exact(test, &image, work.path(), None, &wanted);
}

#[test]
fn a_directory_that_every_ext4_has_is_the_images_own() {
    let test = "a_directory_that_every_ext4_has_is_the_images_own";
    if !have(test, &["e2fsck"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image.erofs");
    let archive = Archive::new()
        .directory(b"a/")
        .directory(b"lost+found/")
        .file(b"lost+found/kept", b"kept")
        .end();
    convert_archives(vec![archive], &image).unwrap();
    let wanted = scan_image(&image);
    assert_exact(test, &image, work.path(), Some(8 * MIB), &wanted);
}

#[test]
fn what_does_not_fit_is_told() {
    let work = tempfile::tempdir().unwrap();
    let (image, disk) = (work.path().join("image"), work.path().join("disk"));
    let convert = |archive: Archive, image: &Path| {
        let _ = std::fs::remove_file(image);
        convert_archives(vec![archive.end()], image).unwrap();
    };
    convert(Archive::new().file(b"file", &vec![7; 3 << 20]), &image);
    let Err(WriteError::TooSmall { asked, least }) = write(&image, &disk, Some(2 * MIB)) else {
        panic!("it cannot have been enough");
    };
    assert_eq!(asked, 2 * MIB);
    write(&image, &disk, Some(least)).unwrap();
    assert!(
        scan_disk(File::open(&disk).unwrap())
            .unwrap()
            .contains_key(&b"file"[..])
    );
    for size in [0, 1, 4096, least - 1] {
        let refused = write(&image, &disk, Some(size)).unwrap_err();
        assert!(
            matches!(refused, WriteError::TooSmall { .. }),
            "{size}: {refused}"
        );
    }
    let refused = write(&image, &disk, Some(u64::MAX)).unwrap_err();
    assert!(matches!(refused, WriteError::TooLarge), "{refused}");
    let archive = with_attributes(
        Archive::new().directory(b"a/"),
        &[attribute("user.one", 3000), attribute("user.two", 3000)],
    );
    convert(archive.file(b"a/file", b""), &image);
    let refused = write(&image, &disk, None).unwrap_err().to_string();
    assert!(refused.starts_with("a/file cannot be"), "{refused}");
}

#[test]
fn the_same_tree_gives_the_same_bytes_and_free_space_is_a_hole() {
    let test = "the_same_tree_gives_the_same_bytes_and_free_space_is_a_hole";
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    let archive = Archive::new().file(b"file", &[7; 10_000]).end();
    convert_archives(vec![archive], &image).unwrap();
    let reader = Reader::open(File::open(&image).unwrap()).unwrap();
    let (one, two) = (work.path().join("one"), work.path().join("two"));
    let plan = write(&image, &one, Some(1 << 30)).unwrap();
    write(&image, &two, Some(1 << 30)).unwrap();
    let stored: u64 = plan.segments().iter().map(|segment| segment.length).sum();
    assert!(
        stored < MIB,
        "{stored} bytes for {} of contents",
        reader.size()
    );
    run(Command::new("cmp").args([&one, &two]));
    if have(test, &["e2fsck", "resize2fs"]) {
        // Others can make it larger.
        File::options()
            .write(true)
            .open(&one)
            .unwrap()
            .set_len(3 << 30)
            .unwrap();
        run(Command::new("resize2fs").arg(&one));
        assert_eq!(complaints(&one), None);
        mounted(test, &one, &work.path().join("mounted"));
    }
}

//! The reader of images sees what the kernel shows, in our images and in those of other programs, and no damage makes
//! it panic, run on or believe.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::reading::{assert_same_tree, scan_image};
use support::{Archive, Mount, convert_archives, have, run, scan};
use warren_image::erofs::{ReadError, Reader};

/// One of everything that layouts differ in.
fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("many/deeper")).unwrap();
    for size in [0usize, 1, 4000, 4096, 4097, 9000, 300_000] {
        let data: Vec<u8> = (0..size).map(|at| (at * 31 + at / 253) as u8).collect();
        std::fs::write(root.join(format!("size-{size}")), data).unwrap();
    }
    std::fs::hard_link(root.join("size-9000"), root.join("many/linked")).unwrap();
    symlink("../size-9000", root.join("many/symlink")).unwrap();
    symlink(format!("/{}", "s/".repeat(1800)), root.join("long-link")).unwrap();
    for number in 0..300 {
        let path = root.join(format!("many/a-name-that-fills-blocks-{number}"));
        std::fs::write(&path, number.to_string()).unwrap();
        for (name, value) in [("user.same", "shared by many"), ("user.other", "this too")] {
            rustix::fs::lsetxattr(
                &path,
                name,
                value.as_bytes(),
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }
    }
    std::fs::write(root.join("many/!before-the-dot"), "x").unwrap();
    run(Command::new("mknod")
        .arg(root.join("disk"))
        .args(["b", "259", "300"]));
    run(Command::new("mknod").arg(root.join("pipe")).arg("p"));
    std::os::unix::fs::chown(root.join("many"), Some(70_000), Some(1)).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 1_500_000).unwrap();
}

#[test]
fn images_of_mkfs_are_read_as_the_kernel_shows_them() {
    let test = "images_of_mkfs_are_read_as_the_kernel_shows_them";
    if !have(test, &["mkfs.erofs", "mknod"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let kinds: [(&str, &[&str]); 5] = [
        ("plain", &[]),
        ("compact inodes", &["-T", "1600000000"]),
        (
            "nothing inline",
            &["-E", "force-inode-extended,noinline_data"],
        ),
        ("shared attributes", &["-x", "1"]),
        ("chunks", &["--chunksize=65536"]),
    ];
    for (number, (what, options)) in kinds.into_iter().enumerate() {
        let image = work.path().join(format!("{number}.erofs"));
        run(Command::new("mkfs.erofs")
            .args(options)
            .arg(&image)
            .arg(&tree));
        let Some(mount) = Mount::new(test, &image, work.path().join("mount")) else {
            return;
        };
        assert_same_tree(what, &scan_image(&image), &scan(&mount.0));
    }
}

#[test]
fn compressed_images_are_refused_in_words() {
    let test = "compressed_images_are_refused_in_words";
    if !have(test, &["mkfs.erofs", "mknod"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("zeros"), vec![0; 1 << 20]).unwrap();
    let image = work.path().join("image");
    run(Command::new("mkfs.erofs")
        .arg("-zlz4")
        .arg(&image)
        .arg(&tree));
    let error = Reader::open(File::open(&image).unwrap())
        .and_then(|reader| reader.walk().collect::<Result<Vec<_>, _>>())
        .unwrap_err();
    assert!(matches!(error, ReadError::Unsupported(_)), "{error}");
}

/// An image with one of every layout that the writer has.
fn image_of_ours(at: &Path) -> Vec<u8> {
    let data: Vec<u8> = (0..9000u32).map(|n| (n * 7) as u8).collect();
    let attributes: [(&str, &[u8]); 2] = [
        ("SCHILY.xattr.user.a", b"value"),
        ("SCHILY.xattr.security.capability", &[1, 0, 0, 2]),
    ];
    let sparse: [(&str, &[u8]); 3] = [
        ("GNU.sparse.size", b"20000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"0,5,12288,5"),
    ];
    let mut archive = Archive::new()
        .directory(b"d/")
        .file(b"d/inline", b"inline")
        .file(b"d/blocks", &data)
        .file(b"d/even", &data[..8192])
        .pax(&attributes)
        .file(b"d/attributes", b"x")
        .pax(&sparse)
        .file(b"d/sparse", b"firstagain")
        .symlink(b"d/link", b"inline")
        .hard_link(b"d/hard", b"d/blocks")
        .header(b"d/null", b'3', b"", 0)
        .header(b"d/pipe", b'6', b"", 0);
    for number in 0..100 {
        let name = format!("many/with-a-rather-long-name-for-a-file-{number}");
        archive = archive.file(name.as_bytes(), name.as_bytes());
    }
    let image = at.join("image");
    convert_archives(vec![archive.end()], &image).unwrap();
    std::fs::read(image).unwrap()
}

/// Everything that can be asked of an image is asked; gives the number of names, `None` at the first damage.
fn read_all(file: File) -> Option<usize> {
    let reader = Reader::open(file).ok()?;
    let mut count = 0;
    // A damaged size may be that of a file with nothing but a hole.
    let mut budget = 64u64 << 20;
    for found in reader.walk() {
        let node = found.ok()?.node;
        count += 1;
        reader.xattrs(&node).ok()?;
        if let Ok(mut data) = reader.data(&node) {
            data.next_data(0).ok()?;
            let mut sink = std::io::sink();
            budget -= std::io::copy(&mut data.take(budget), &mut sink).ok()?;
        }
        let _ = reader.target(&node);
    }
    Some(count)
}

#[test]
fn holes_are_known_and_read_as_zeros() {
    let work = tempfile::tempdir().unwrap();
    image_of_ours(work.path());
    let reader = Reader::open(File::open(work.path().join("image")).unwrap()).unwrap();
    let sparse = reader
        .walk()
        .map(Result::unwrap)
        .find(|found| found.path == b"d/sparse")
        .unwrap();
    let mut data = reader.data(&sparse.node).unwrap();
    let mut stretches = Vec::new();
    let mut at = 0;
    while let Some(found) = data.next_data(at).unwrap() {
        stretches.push((found.offset, found.length));
        at = found.offset + found.length;
    }
    assert_eq!(stretches, [(0, 4096), (12288, 4096)]);
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).unwrap();
    let mut expected = vec![0; 20_000];
    expected[..5].copy_from_slice(b"first");
    expected[12288..12293].copy_from_slice(b"again");
    assert!(bytes == expected);
    data.seek(SeekFrom::End(-7710)).unwrap();
    let mut piece = [0; 5];
    data.read_exact(&mut piece).unwrap();
    assert_eq!(&piece, b"ain\0\0");
}

#[test]
fn no_damage_makes_the_reader_panic_or_run_on() {
    let work = tempfile::tempdir().unwrap();
    let good = image_of_ours(work.path());
    assert_eq!(read_all(in_memory(&good)), Some(112));
    // Only what has a meaning: file data may be anything.
    let meaningful: Vec<usize> = (1024..good.len()).filter(|at| good[*at] != 0).collect();
    let (mut noticed, mut tried) = (0, 0);
    for at in meaningful.iter().step_by(meaningful.len() / 700 + 1) {
        for change in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[*at] ^= change;
            unseal(&mut bad);
            tried += 1;
            noticed += usize::from(read_all(in_memory(&bad)) != Some(112));
        }
    }
    assert!(noticed > tried / 10, "{noticed} of {tried}");
    for length in (0..good.len()).step_by(997) {
        assert!(read_all(in_memory(&good[..length])).is_none(), "{length}");
    }
}

#[test]
fn a_changed_superblock_does_not_pass_its_checksum() {
    let work = tempfile::tempdir().unwrap();
    let mut image = image_of_ours(work.path());
    image[1024 + 16] ^= 1;
    let error = Reader::open(in_memory(&image)).unwrap_err();
    assert!(matches!(error, ReadError::Superblock), "{error}");
}

#[test]
fn directories_that_name_each_other_end_the_walk() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    let archive = Archive::new()
        .directory(b"aa/")
        .directory(b"aa/bb/")
        .directory(b"cc/")
        .end();
    convert_archives(vec![archive], &image).unwrap();
    let bytes = std::fs::read(&image).unwrap();
    let reader = Reader::open(in_memory(&bytes)).unwrap();
    let nids: BTreeMap<Vec<u8>, u64> = reader
        .walk()
        .map(Result::unwrap)
        .map(|found| (found.path, found.node.nid))
        .collect();
    // `bb` becomes each of the other directories in turn.
    let from = nids[b"aa/bb".as_slice()].to_le_bytes();
    for to in [b"".as_slice(), b"aa", b"cc"] {
        let mut bad = bytes.clone();
        let entry = [from.as_slice(), &[0; 2]].concat();
        let at = (0..bad.len() - 12)
            .filter(|at| bad[*at..*at + 8] == entry[..8] && bad[*at + 10] == 2)
            .max_by_key(|at| bad[*at + 8])
            .unwrap();
        bad[at..at + 8].copy_from_slice(&nids[to].to_le_bytes());
        let walked: Result<Vec<_>, _> = Reader::open(in_memory(&bad)).unwrap().walk().collect();
        assert!(
            matches!(walked, Err(ReadError::Directory { .. })),
            "{walked:?}"
        );
    }
}

/// Takes the checksum away, so that what is behind it is looked at.
fn unseal(image: &mut [u8]) {
    if let Some(features) = image.get_mut(1032..1036) {
        features.fill(0);
    }
}

fn in_memory(bytes: &[u8]) -> File {
    let descriptor = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(descriptor);
    file.write_all(bytes).unwrap();
    file
}

//! The disk that comes out is the tree that `umoci` unpacks, as the kernel shows it.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::reading::{assert_same_tree, scan_image};
use support::{Archive, Mount, convert_archives, gzip, have, quiet, run, scan, write_layout};
use warren_core::ports::Images as _;
use warren_core::ports::images::LoadRequest;
use warren_image::{ImageStore, Options};

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// A tree with one of everything.
fn make_tree(root: &Path) {
    for directory in [
        "bin",
        "d/empty",
        "opq/s",
        "big",
        "many",
        "gone/deep/er",
        "replaced/by",
    ] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::write(root.join("bin/tool"), vec![7u8; 100_000]).unwrap();
    std::fs::hard_link(root.join("bin/tool"), root.join("bin/other-name")).unwrap();
    std::fs::hard_link(root.join("bin/tool"), root.join("d/third-name")).unwrap();
    symlink("tool", root.join("bin/link")).unwrap();
    std::fs::hard_link(root.join("bin/link"), root.join("bin/link-to-link")).unwrap();
    symlink(
        format!("/nonexistent/{}", "a/".repeat(1500)),
        root.join("d/long-link"),
    )
    .unwrap();
    // A capability and an ACL as the kernel stores them.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    set_xattr(&root.join("bin/tool"), "security.capability", &capability);
    set_xattr(&root.join("d"), "user.mime", b"text/plain");
    set_xattr(&root.join("d"), "trusted.t", &[0, 1, 0xff]);
    let acl: Vec<u8> = [2u32.to_le_bytes()]
        .into_iter()
        .flatten()
        .chain(
            [
                (1u16, 7u16, u32::MAX),
                (2, 6, 1234),
                (4, 5, u32::MAX),
                (0x10, 7, u32::MAX),
                (0x20, 5, u32::MAX),
            ]
            .iter()
            .flat_map(|(tag, permissions, id)| {
                [
                    tag.to_le_bytes().as_slice(),
                    &permissions.to_le_bytes(),
                    &id.to_le_bytes(),
                ]
                .concat()
            }),
        )
        .collect();
    set_xattr(&root.join("d/empty"), "system.posix_acl_access", &acl);
    set_xattr(&root.join("d/empty"), "system.posix_acl_default", &acl);
    std::fs::write(root.join("d/owned"), "hi\n").unwrap();
    std::os::unix::fs::chown(root.join("d/owned"), Some(70_000), Some(4_000_000_000)).unwrap();
    run(Command::new("chmod").arg("6751").arg(root.join("d/owned")));
    for (size, name) in [
        0usize, 1, 1023, 1024, 4031, 4032, 4033, 4095, 4096, 4097, 65_535, 65_536, 262_144,
        262_145, 5_000_000,
    ]
    .iter()
    .zip(0..)
    {
        let data: Vec<u8> = (0..*size)
            .map(|at| (at * 7 + at / 251 + name) as u8)
            .collect();
        std::fs::write(root.join(format!("big/size-{size}")), &data).unwrap();
        std::fs::write(root.join(format!("big/copy-{size}")), &data).unwrap();
        std::fs::write(root.join(format!("big/third-{size}")), &data).unwrap();
    }
    let sparse = std::fs::File::create(root.join("big/sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    use std::os::unix::fs::FileExt;
    sparse.write_all_at(b"in the middle", 20_000_123).unwrap();
    sparse.write_all_at(&[9; 70_000], 30_000_000).unwrap();
    sparse.write_all_at(b"end", (40 << 20) - 3).unwrap();
    for (name, kind) in [("null", "c 1 3"), ("disk", "b 259 300"), ("fifo", "p")] {
        run(Command::new("mknod")
            .arg(root.join("d").join(name))
            .args(kind.split(' ')));
    }
    for number in 0..700 {
        std::fs::write(
            root.join(format!("many/a-rather-long-name-{number}")),
            format!("{number}"),
        )
        .unwrap();
    }
    // Names that sort before `.` and between `.` and `..`.
    for name in [
        &b"!first"[..],
        b"-",
        b".-",
        b".hidden",
        b"non\xffutf8",
        b"new\nline",
    ] {
        std::fs::write(root.join("d").join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    std::fs::write(root.join("d").join("n".repeat(255)), "long").unwrap();
    let mut deep = root.join("deep");
    for _ in 0..30 {
        deep = deep.join("directory");
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("leaf"), "leaf").unwrap();
    for (path, time) in [
        ("d/owned", "2020-01-02 03:04:05.123456789 UTC"),
        ("d", "1969-12-31 23:59:58.5 UTC"),
    ] {
        run(Command::new("touch")
            .arg("-d")
            .arg(time)
            .arg(root.join(path)));
    }
}

fn tar(root: &Path, arguments: &[&str], names: &[&str]) -> Vec<u8> {
    run(Command::new("tar")
        .args([
            "-C",
            root.to_str().unwrap(),
            "--numeric-owner",
            "--sort=name",
            "-cf",
            "-",
        ])
        .args(arguments)
        .args(names))
}

/// Converts, checks with fsck.erofs, and compares the mounted disk with umoci's tree.
async fn compare(test: &str, layers: &[(Vec<u8>, Vec<u8>)]) {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    write_layout(&layout, "t", layers);
    let store = ImageStore::open(&work.path().join("data"), Options::default()).unwrap();
    let request = LoadRequest {
        path: layout.clone(),
        name: Some("localhost/x:t".into()),
        ..LoadRequest::default()
    };
    let records = store.load(request, quiet()).await.unwrap();
    let disk = store.disk(&records[0].digest).await.unwrap();
    run(Command::new("fsck.erofs").arg(&disk));
    let unpacked = work.path().join("unpacked");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:t", layout.display()))
        .arg(&unpacked));
    let Some(mount) = Mount::new(test, &disk, work.path().join("mount")) else {
        return;
    };
    let ours = scan(&mount.0);
    assert_same_tree("umoci's tree", &ours, &scan(&unpacked));
    assert_same_tree("our reader", &scan_image(&disk), &ours);
    if have(test, &["e2fsck"]) {
        support::ext4::assert_exact(test, &disk, work.path(), None, &scan(&unpacked));
    }
}

#[tokio::test]
async fn the_disk_equals_what_umoci_unpacks() {
    let test = "the_disk_equals_what_umoci_unpacks";
    if !have(test, &["umoci", "fsck.erofs", "tar", "mknod"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let lower = work.path().join("lower");
    std::fs::create_dir(&lower).unwrap();
    make_tree(&lower);
    let first = tar(
        &lower,
        &[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--pax-option=delete=atime,delete=ctime",
        ],
        &["."],
    );
    // The upper layer: whiteouts, an opaque directory with what it holds, replaced kinds, links into the layer below.
    let root_time: &[(&str, &[u8])] = &[("mtime", b"1000000000.000000007")];
    let second = Archive::new()
        .pax(root_time)
        .directory(b"./")
        .file(b"./.wh.gone", b"")
        .directory(b"./opq/")
        .file(b"./opq/kept", b"kept")
        .file(b"./opq/.wh..wh..opq", b"")
        .file(b"./opq/after", b"after")
        .file(b"./replaced", b"now a file")
        .hard_link(b"./d/link-across", b"./bin/tool")
        .directory(b"./many/")
        .file(b"./many/.wh.a-rather-long-name-13", b"")
        .file(b"./many/a-rather-long-name-14", b"changed")
        .directory(b"./bin/")
        .file(b"./bin/link", b"no link any more")
        .directory(b"./d/empty/")
        .end();
    let third = Archive::new()
        .directory(b"replaced/")
        .file(b"replaced/again", b"a directory again")
        .directory(b"d/")
        .file(b"d/.wh.third-name", b"")
        .end();
    let layers: Vec<_> = [first, second, third]
        .into_iter()
        .map(|plain| (gzip(&plain), plain))
        .collect();
    compare(test, &layers).await;
}

#[tokio::test]
async fn archives_of_every_format_give_the_same_disk() {
    let test = "archives_of_every_format_give_the_same_disk";
    if !have(test, &["umoci", "fsck.erofs", "tar", "mknod"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    // What ustar cannot say goes, so that all formats can say the same.
    std::fs::remove_dir_all(tree.join("deep")).unwrap();
    for name in ["d/long-link", "d/owned"] {
        std::fs::remove_file(tree.join(name)).unwrap();
    }
    std::fs::remove_file(tree.join("d").join("n".repeat(255))).unwrap();
    run(Command::new("find").arg(&tree).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "2021-01-01 UTC",
        "{}",
        "+",
    ]));
    let mut disks = Vec::new();
    let formats: [&[&str]; 6] = [
        &["--format=ustar"],
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for (number, arguments) in formats.iter().enumerate() {
        let plain = tar(&tree, arguments, &["."]);
        let out = work.path().join(format!("{number}.erofs"));
        convert_archives(vec![plain], &out).unwrap();
        run(Command::new("fsck.erofs").arg(&out));
        let Some(mount) = Mount::new(test, &out, work.path().join("mount")) else {
            return;
        };
        disks.push((arguments, scan(&mount.0)));
    }
    for (arguments, disk) in &disks[1..] {
        assert_same_tree(&format!("{arguments:?}"), disk, &disks[0].1);
    }
}

#[test]
fn the_same_layers_give_the_same_bytes_however_they_are_compressed() {
    let work = tempfile::tempdir().unwrap();
    let random: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let plain = Archive::new()
        .directory(b"a/")
        .file(b"a/large", &random)
        .file(b"a/same", &random)
        .file(b"a/small", b"small")
        .end();
    let (front, back) = plain.split_at(plain.len() / 3);
    let members = [gzip(front), gzip(back)].concat();
    let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
    // zstd:chunked puts its table of contents into skippable frames.
    let skippable = [
        &[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..],
        b"table",
        &zstd,
        &[0x5f, 0x2a, 0x4d, 0x18, 2, 0, 0, 0],
        b"xx",
    ]
    .concat();
    let mut images = Vec::new();
    for (name, bytes) in [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("members", members),
        ("zstd", zstd),
        ("skippable", skippable),
    ] {
        let out = work.path().join(name);
        let converted = convert_archives(vec![bytes], &out).unwrap();
        assert_eq!(
            converted.layers[0].diff_id,
            warren_image::Digest::of(&plain),
            "{name}"
        );
        assert!(
            converted.merged.image.shared_bytes >= 3_000_000,
            "the copy was stored again"
        );
        assert!(converted.merged.image.size < 3_200_000);
        images.push(std::fs::read(&out).unwrap());
    }
    assert!(
        images.windows(2).all(|pair| pair[0] == pair[1]),
        "the images differ"
    );
}

//! Trees packed and unpacked on a real file system, archives of GNU tar, and archives that want to be elsewhere.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use warren_tar::{Entry, EntryKind, Timestamp, Writer};
use warren_tree::{Links, Owners, Root, Rules, Specials, UnpackError, Unpacked, pack, unpack};

const PLAIN: Rules = Rules {
    owners: Owners::Own,
    specials: Specials::LeftOut,
};

/// All that a tree is, in a form that can be compared: kind, mode, size, content, time, link, blocks, attributes, names of one file.
fn told(top: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(
        top: &Path,
        at: &Path,
        told: &mut BTreeMap<PathBuf, String>,
        first: &mut BTreeMap<u64, PathBuf>,
    ) {
        let seen = fs::symlink_metadata(at).unwrap();
        let path = at.strip_prefix(top).unwrap().to_owned();
        let content = if seen.is_file() {
            format!("{:?}", md5(&fs::read(at).unwrap()))
        } else if seen.is_symlink() {
            format!("{:?}", fs::read_link(at).unwrap())
        } else {
            String::new()
        };
        let same = match seen.nlink() > 1 && !seen.is_dir() {
            true => first
                .entry(seen.ino())
                .or_insert_with(|| path.clone())
                .clone(),
            false => PathBuf::new(),
        };
        let sparse = seen.is_file() && seen.blocks() * 512 < seen.size();
        let attribute = if seen.is_file() || seen.is_dir() {
            let mut value = vec![0; 4096];
            let length = rustix::fs::getxattr(at, "user.warren", &mut value[..]).unwrap_or(0);
            value.truncate(length);
            value
        } else {
            Vec::new()
        };
        let size = if seen.is_dir() { 0 } else { seen.size() };
        told.insert(
            path,
            format!(
                "{:o} {size} {content} {}.{} {same:?} {sparse} {attribute:?}",
                seen.mode(),
                seen.mtime(),
                seen.mtime_nsec(),
            ),
        );
        if seen.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                visit(top, &entry.unwrap().path(), told, first);
            }
        }
    }
    let mut all = BTreeMap::new();
    visit(top, top, &mut all, &mut BTreeMap::new());
    all
}

/// Names what differs, and nothing else.
fn same(got: &BTreeMap<PathBuf, String>, wanted: &BTreeMap<PathBuf, String>) {
    let paths = got.keys().chain(wanted.keys());
    let different: Vec<_> = paths
        .filter(|path| got.get(*path) != wanted.get(*path))
        .take(3)
        .collect();
    let shown = |tree: &BTreeMap<PathBuf, String>| {
        let told = different.iter().map(|path| tree.get(*path).cloned());
        told.collect::<Vec<_>>()
    };
    assert!(
        different.is_empty(),
        "{different:?}: {:?} instead of {:?}",
        shown(got),
        shown(wanted)
    );
}

/// Enough to tell contents apart.
fn md5(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Files of every kind that an ordinary user can make.
fn make(top: &Path, count: usize) {
    fs::create_dir(top).unwrap();
    for n in 0..count {
        let directory = top.join(format!("d{}", n / 50));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join(format!("f{n}"));
        fs::write(&file, format!("{n}\n").repeat(n % 97)).unwrap();
        if n % 10 == 0 {
            fs::hard_link(&file, top.join(format!("d0/hard{n}"))).unwrap();
        }
        if n % 11 == 0 {
            symlink(format!("../d0/f{n}"), directory.join(format!("link{n}"))).unwrap();
        }
        if n % 13 == 0 {
            let value = [b'a', b'\n', 0, n as u8];
            rustix::fs::setxattr(
                &file,
                "user.warren",
                &value,
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }
        if n % 100 == 0 {
            let sparse = fs::File::create(directory.join(format!("sparse{n}"))).unwrap();
            sparse.set_len(3 << 20).unwrap();
            sparse.write_all_at(b"here", 1 << 20).unwrap();
            sparse.write_all_at(&vec![7; 70_000], 2 << 20).unwrap();
        }
    }
    fs::File::create(top.join("hole"))
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    fs::write(
        top.join(std::ffi::OsStr::from_bytes(b"no \xff utf-8\n")),
        "x",
    )
    .unwrap();
    let deep = top.join("long".repeat(30)).join("names".repeat(40));
    fs::create_dir_all(&deep).unwrap();
    symlink("t".repeat(1000), deep.join("target")).unwrap();
    symlink("/nowhere", top.join("dangling")).unwrap();
    let old = fs::File::create(deep.join("old")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500))
        .unwrap();
    fs::set_permissions(deep.join("old"), fs::Permissions::from_mode(0o1400)).unwrap();
    fs::create_dir(top.join("sealed")).unwrap();
    fs::write(top.join("sealed/inside"), "x").unwrap();
    fs::set_permissions(top.join("sealed"), fs::Permissions::from_mode(0o555)).unwrap();
}

fn packed(top: &Path, name: &str) -> Vec<u8> {
    let root = Root::open(top.parent().unwrap(), Links::Refused).unwrap();
    let spot = root.spot(Path::new(top.file_name().unwrap())).unwrap();
    pack(&spot, name.as_bytes(), Vec::new()).unwrap().1
}

fn unpacked(into: &Path, base: &str, data: &[u8]) -> Result<Unpacked, UnpackError> {
    let root = Root::open(into, Links::Refused).unwrap();
    unpack(&root, Path::new(base), PLAIN, data)
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let world = tempfile::tempdir().unwrap();
    let top = world.path().join("tree");
    make(&top, 600);
    let data = packed(&top, ".");
    assert!(data.len() < 3 << 20, "holes are not packed: {}", data.len());
    let done = unpacked(world.path(), "again", &data).unwrap();
    assert_eq!(done.left_out, 0, "{done:?}");
    same(&told(&world.path().join("again")), &told(&top));
    // Over what is there, as often as one likes. A directory that was there keeps its time.
    unpacked(world.path(), "again", &data).unwrap();
    let (mut twice, mut once) = (told(&world.path().join("again")), told(&top));
    twice.remove(Path::new(""));
    once.remove(Path::new(""));
    same(&twice, &once);
}

#[test]
fn one_file_takes_the_place_that_it_is_for() {
    let world = tempfile::tempdir().unwrap();
    let file = world.path().join("file");
    fs::write(&file, "content").unwrap();
    fs::write(world.path().join("other"), "something else").unwrap();
    unpacked(world.path(), "other", &packed(&file, ".")).unwrap();
    assert_eq!(
        fs::read_to_string(world.path().join("other")).unwrap(),
        "content"
    );
    fs::create_dir(world.path().join("dir")).unwrap();
    assert!(unpacked(world.path(), "dir", &packed(&file, ".")).is_err());
    assert_eq!(fs::read_dir(world.path()).unwrap().count(), 3);
}

#[test]
fn gnu_tar_reads_what_is_packed_and_what_it_packs_is_read() {
    let world = tempfile::tempdir().unwrap();
    let top = world.path().join("tree");
    make(&top, 120);
    let theirs = world.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let mut tar = Command::new("tar")
        .args(["--xattrs", "--warning=no-timestamp", "-xpf", "-", "-C"])
        .arg(&theirs)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin
        .take()
        .unwrap()
        .write_all(&packed(&top, "tree"))
        .unwrap();
    assert!(tar.wait().unwrap().success());
    same(&told(&theirs.join("tree")), &told(&top));
    for format in ["gnu", "posix"] {
        let with_attributes: &[&str] = match format {
            "posix" => &["--xattrs"],
            _ => &[],
        };
        let output = Command::new("tar")
            .args(with_attributes)
            .args(["-S", "--format", format, "-cf", "-", "tree"])
            .current_dir(world.path())
            .output()
            .unwrap();
        assert!(output.status.success());
        let ours = world.path().join(format);
        fs::create_dir(&ours).unwrap();
        unpacked(&ours, ".", &output.stdout).unwrap();
        let (mut got, mut wanted) = (told(&ours.join("tree")), told(&top));
        if format == "gnu" {
            // It has neither attributes nor parts of a second.
            for told in got.values_mut().chain(wanted.values_mut()) {
                let words: Vec<&str> = told.split(' ').collect();
                *told = format!("{} {} {} {}", words[0], words[1], words[2], words[4]);
            }
        }
        same(&got, &wanted);
    }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o6777,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: vec![(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())],
    }
}

fn file(path: &str) -> Entry {
    let segments = None;
    entry(path, EntryKind::File { size: 4, segments })
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn hard(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::HardLink(target.into()))
}

#[test]
fn nothing_lands_outside_whatever_an_archive_says() {
    let world = tempfile::tempdir().unwrap();
    let canary = world.path().join("canary");
    let directory = |path: &str| entry(path, EntryKind::Directory);
    let canaries = canary.to_str().unwrap().to_owned();
    let outside = world.path().to_str().unwrap().to_owned();
    let hostile: Vec<Vec<Entry>> = vec![
        vec![file("../canary")],
        vec![file("a/../../canary")],
        vec![file("./../canary")],
        vec![file(&canaries)],
        vec![file("..")],
        vec![directory(".."), file("x")],
        vec![link("a", "../"), file("a/canary")],
        vec![link("a", &outside), file("a/canary")],
        vec![link("a", &outside), directory("a"), file("a/canary")],
        vec![link("a", &outside), directory("a/b")],
        vec![link("a", ".."), link("a/canary", "x")],
        vec![directory("d"), link("d/up", "../.."), file("d/up/canary")],
        vec![hard("a", "../canary"), file("a")],
        vec![hard("a", &canaries)],
        vec![link("a", &outside), hard("b", "a/canary")],
        vec![link("a", &canaries), hard("b", "a"), file("b")],
        // A link where a file is to be is taken away, not written through.
        vec![link("a", &canaries), file("a")],
        vec![link("a", &canaries), directory("a")],
        vec![directory("a"), link("a", &outside), file("a/canary")],
        vec![file("a"), file("a/canary")],
        vec![entry("dev", EntryKind::Block(8, 0))],
        vec![entry("pipe", EntryKind::Fifo), file("pipe/x")],
    ];
    for (at, entries) in hostile.iter().enumerate() {
        fs::write(&canary, "untouched").unwrap();
        let before = fs::metadata(&canary).unwrap();
        let target = world.path().join("target");
        fs::create_dir(&target).unwrap();
        let mut writer = Writer::new(Vec::new());
        for entry in entries {
            writer.entry(entry).unwrap();
            writer
                .write_all(&b"evil"[..usize::try_from(entry.kind.stored()).unwrap()])
                .unwrap();
        }
        let data = writer.finish().unwrap();
        let _ = unpacked(&target, ".", &data);
        // Neither as a tree of its own.
        let _ = unpacked(world.path(), "target", &data);
        let after = fs::metadata(&canary).unwrap();
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched", "{at}");
        assert_eq!(
            (after.ino(), after.nlink(), after.mode()),
            (before.ino(), 1, before.mode()),
            "{at}"
        );
        let names: Vec<_> = fs::read_dir(world.path())
            .unwrap()
            .map(|name| name.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{at}: {names:?}");
        for path in walk(&target) {
            let seen = fs::symlink_metadata(&path).unwrap();
            let ordinary = seen.is_file() || seen.is_dir() || seen.is_symlink();
            assert!(
                ordinary && (seen.is_symlink() || seen.mode() & 0o6000 == 0),
                "{at}: {path:?}"
            );
        }
        fs::remove_dir_all(&target).unwrap();
    }
}

fn walk(top: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(top).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            all.extend(walk(&path));
        }
        all.push(path);
    }
    all
}

#[test]
fn an_archive_that_breaks_off_leaves_no_half_file() {
    let world = tempfile::tempdir().unwrap();
    let top = world.path().join("tree");
    fs::create_dir(&top).unwrap();
    for n in 0..5 {
        fs::write(top.join(format!("f{n}")), vec![n; 10_000]).unwrap();
    }
    let data = packed(&top, ".");
    for cut in (0..data.len()).step_by(777) {
        let target = world.path().join("target");
        fs::create_dir(&target).unwrap();
        let result = unpacked(&target, ".", &data[..cut]);
        assert!(cut > data.len() - 1024 || result.is_err(), "{cut}");
        for path in walk(&target) {
            assert_eq!(fs::read(&path).unwrap().len(), 10_000, "{cut}: {path:?}");
        }
        fs::remove_dir_all(&target).unwrap();
    }
}

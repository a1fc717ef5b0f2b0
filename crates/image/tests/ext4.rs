//! The reader of ext4 sees what the kernel shows: of a disk that was unmounted, and of one whose journal has to be replayed.
//! No damage makes it panic or run on.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::ext4::scan_disk;
use support::reading::assert_same_tree;
use support::{have, mount, run, scan};
use warren_image::ext4::{Ext4, Ext4Error, Source};

/// A file system that the kernel writes.
struct Mounted {
    image: PathBuf,
    at: PathBuf,
}

impl Mounted {
    /// Makes one of `megabytes` with mkfs' own features and `options`; `None` (and a skip) where mounting is not allowed.
    fn new(test: &str, work: &Path, megabytes: u64, options: &[&str]) -> Option<Self> {
        if !have(test, &["mkfs.ext4", "mount", "mknod"]) {
            return None;
        }
        let (image, at) = (work.join("disk.ext4"), work.join("mounted"));
        std::fs::create_dir_all(&at).unwrap();
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .args(options)
            .arg(&image));
        mount(test, &["-o", "loop,noatime"], &image, &at).then(|| Mounted { image, at })
    }

    fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.at).unwrap()).unwrap();
    }

    /// What it shows now, and the disk as it is on the host at this moment.
    fn copy_as_it_runs(&self, to: &Path) -> BTreeMap<Vec<u8>, String> {
        self.sync();
        let shown = scan(&self.at);
        std::fs::copy(&self.image, to).unwrap();
        shown
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.at));
    }
}

fn pattern(size: usize, seed: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (at * 31 + at / 253 + seed * 7) as u8)
        .collect()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// One of everything that is stored in its own way.
fn write_tree(root: &Path) {
    std::fs::create_dir_all(root.join("many/deeper")).unwrap();
    for size in [0usize, 1, 100, 4095, 4096, 4097, 70_000, 3_000_000] {
        std::fs::write(root.join(format!("size-{size}")), pattern(size, size)).unwrap();
    }
    std::fs::hard_link(root.join("size-4097"), root.join("many/linked")).unwrap();
    symlink("../size-1", root.join("many/short-link")).unwrap();
    symlink("a/".repeat(400), root.join("long-link")).unwrap();
    // A hash tree of names, and a list of extents deeper than an inode.
    for number in 0..3000 {
        let name = format!("many/a-name-that-makes-a-directory-long-{number}");
        File::create(root.join(name)).unwrap();
    }
    let scattered = File::create(root.join("scattered")).unwrap();
    scattered.set_len(200 << 20).unwrap();
    for number in 0..600u64 {
        scattered
            .write_all_at(&pattern(5000, number as usize), number * 300_000)
            .unwrap();
    }
    let allocated = File::create(root.join("allocated")).unwrap();
    rustix::fs::fallocate(
        &allocated,
        rustix::fs::FallocateFlags::empty(),
        0,
        1_000_000,
    )
    .unwrap();
    allocated.write_all_at(b"written", 500_000).unwrap();
    for (name, kind) in [
        ("null", "c 1 3"),
        ("whiteout", "c 0 0"),
        ("disk", "b 259 300"),
    ] {
        run(Command::new("mknod")
            .arg(root.join(name))
            .args(kind.split(' ')));
    }
    run(Command::new("mknod").arg(root.join("pipe")).arg("p"));
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    std::os::unix::fs::chown(root.join("many"), Some(70_000), Some(4_000_000_000)).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"n\xff\xfe\n")), "not UTF-8").unwrap();
    set(&root.join("size-1"), "user.short", b"in the inode");
    set(&root.join("size-1"), "user.long", &pattern(700, 1));
    set(&root.join("many"), "trusted.overlay.opaque", b"y");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&root.join("size-100"), "security.capability", &capability);
    // An owner, a user, a group, a mask, others.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 70_001),
        (4, 4, u32::MAX),
        (8, 6, 33),
        (16, 6, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(bits.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    set(&root.join("size-100"), "system.posix_acl_access", &list);
    set(&root.join("many"), "system.posix_acl_default", &list);
    for (name, seconds, nanoseconds) in [
        ("size-1", 1, 999_999_999),
        ("size-0", -5, 250_000_000),
        ("size-100", 5_000_000_000, 1),
    ] {
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let at = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &times, at).unwrap();
    }
}

#[test]
fn a_disk_is_read_as_the_kernel_shows_it() {
    let test = "a_disk_is_read_as_the_kernel_shows_it";
    // The features of the disks that guests have; fewer; older blocks.
    let shapes: [&[&str]; 3] = [
        &["-b", "4096", "-I", "256"],
        &["-b", "4096", "-O", "^metadata_csum,^64bit", "-I", "256"],
        &["-b", "1024", "-O", "metadata_csum", "-I", "512"],
    ];
    for options in shapes {
        let work = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::new(test, work.path(), 64, options) else {
            return;
        };
        write_tree(&mounted.at);
        let running = work.path().join("running.ext4");
        let shown = mounted.copy_as_it_runs(&running);
        let image = mounted.image.clone();
        drop(mounted);
        let unmounted = scan_disk(File::open(&image).unwrap()).unwrap();
        assert_same_tree(&format!("unmounted {options:?}"), &unmounted, &shown);
        let replayed = scan_disk(File::open(&running).unwrap());
        let replayed = replayed.unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_same_tree(&format!("running {options:?}"), &replayed, &shown);
    }
}

/// Blocks of directories that were given up and came again as data: what the journal still has of them must stay there.
#[test]
fn a_journal_is_replayed_as_the_kernel_would() {
    let test = "a_journal_is_replayed_as_the_kernel_would";
    for options in [&["-b", "4096"][..], &["-b", "1024", "-O", "^metadata_csum"]] {
        let work = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::new(test, work.path(), 48, options) else {
            return;
        };
        for round in 0..6 {
            let directory = mounted.at.join("directory");
            std::fs::create_dir_all(&directory).unwrap();
            for number in 0..800 {
                let name = directory.join(format!("a-long-name-for-a-file-{number}"));
                std::fs::write(name, pattern(round * 10 + 1, number)).unwrap();
            }
            mounted.sync();
            std::fs::remove_dir_all(&directory).unwrap();
            mounted.sync();
            let data = mounted.at.join(format!("data-{round}"));
            std::fs::write(data, pattern(3_000_000, round)).unwrap();
            let copy = work.path().join("copy.ext4");
            let shown = mounted.copy_as_it_runs(&copy);
            let replayed = scan_disk(File::open(&copy).unwrap()).unwrap();
            assert_same_tree(&format!("round {round} {options:?}"), &replayed, &shown);
        }
    }
}

#[test]
fn what_is_no_ext4_is_told() {
    for size in [0, 100, 2047, 2048, 1 << 20] {
        let zeros = vec![0u8; size];
        let read = Ext4::open(zeros.as_slice()).err().unwrap();
        assert!(matches!(read, Ext4Error::NotExt4), "{size}: {read}");
    }
}

type Looked = std::cell::RefCell<std::collections::BTreeSet<usize>>;

/// Remembers what was read.
struct Watched<'a>(&'a [u8], &'a Looked);

impl Source for Watched<'_> {
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        let at_index = at as usize;
        self.1.borrow_mut().extend(at_index..at_index + into.len());
        self.0.read_at(into, at)
    }

    fn size(&self) -> std::io::Result<u64> {
        self.0.size()
    }
}

/// Every byte of the metadata of a small disk, made another: an answer or an error, never anything else.
#[test]
fn no_damage_makes_it_panic_or_run_on() {
    let test = "no_damage_makes_it_panic_or_run_on";
    if !have(test, &["mkfs.ext4"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (image, tree) = (work.path().join("disk"), work.path().join("tree"));
    std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
    for number in 0..40 {
        File::create(tree.join(format!("a/b/file-{number}"))).unwrap();
    }
    symlink("b/".repeat(80), tree.join("a/link")).unwrap();
    for checksums in ["metadata_csum", "^metadata_csum"] {
        File::create(&image).unwrap().set_len(512 << 10).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "1024", "-O"])
            .arg(format!("{checksums},^has_journal,^resize_inode"))
            .arg("-d")
            .args([&tree, &image]));
        let bytes = std::fs::read(&image).unwrap();
        let looked = Looked::default();
        let intact = scan_disk(Watched(bytes.as_slice(), &looked)).unwrap();
        let places: Vec<usize> = looked.into_inner().into_iter().collect();
        let (mut refused, mut tried) = (0, 0);
        let mut state = 0x9e37_79b9_u32;
        for at in places.into_iter().filter(|at| bytes[*at] != 0) {
            let mut damaged = bytes.clone();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            damaged[at] ^= (state >> 24) as u8 | 1;
            tried += 1;
            match scan_disk(damaged.as_slice()) {
                Err(_) => refused += 1,
                Ok(found) => assert!(found.len() <= 4 * intact.len()),
            }
        }
        assert!(tried > 1000, "{tried}");
        // With checksums hardly any of it goes unnoticed.
        let wanted = if checksums == "metadata_csum" {
            tried / 4
        } else {
            100
        };
        assert!(refused >= wanted, "{refused} of {tried} with {checksums}");
    }
}

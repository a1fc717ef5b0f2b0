//! What an instance has changed becomes a layer: with it, the image is what the guest saw.
//!
//! The kernel of this machine plays the guest: it mounts an image with an ext4 over it, as the agent does, and what it shows
//! then is compared with the disk of the committed image.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::reading::{assert_same_tree, scan_image};
use support::{
    Archive, gzip, have, leftovers, mount, one_file, quiet, run, scan, store, write_layout,
};
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::images::{ImageUpkeep as _, LoadRequest};
use warren_core::ports::{Commits as _, Images as _};
use warren_core::storage::Repair;
use warren_core::{ErrorClass, PortError};
use warren_image::{Digest, ImageStore};

/// Numbers that the seed alone decides (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}

/// An instance as the kernel sees it: its image, its disk, and both joined.
struct Instance {
    work: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Instance {
    /// Starts one over an image; `None` (and a skip) where mounting is not allowed.
    fn start(test: &str, work: &Path, image: &Path) -> Option<Self> {
        if !have(test, &["mkfs.ext4", "mount", "mknod"]) {
            return None;
        }
        let mut instance = Instance {
            work: work.to_owned(),
            mounted: Vec::new(),
        };
        File::create(instance.disk())
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(instance.disk()));
        let (lower, upper, root) = (work.join("lower"), work.join("upper"), work.join("root"));
        let layers = format!(
            "lowerdir={},upperdir={1}/upper,workdir={1}/work,xino=on",
            lower.display(),
            upper.display()
        );
        let disk = instance.disk();
        let mounts = [
            (["-t", "erofs", "-o", "loop,ro"], image, &lower),
            (["-t", "ext4", "-o", "loop,noatime"], disk.as_path(), &upper),
            (
                ["-t", "overlay", "-o", &layers],
                Path::new("overlay"),
                &root,
            ),
        ];
        for (options, what, at) in mounts {
            std::fs::create_dir_all(at).unwrap();
            if at == &root {
                for directory in ["upper", "work"] {
                    std::fs::create_dir_all(upper.join(directory)).unwrap();
                }
            }
            if !mount(test, &options, what, at) {
                return None;
            }
            instance.mounted.push(at.clone());
        }
        Some(instance)
    }

    fn root(&self) -> PathBuf {
        self.work.join("root")
    }

    fn disk(&self) -> PathBuf {
        self.work.join("disk.ext4")
    }

    /// What it shows now; what is on its disk is the same then.
    fn shown(&self) -> BTreeMap<Vec<u8>, String> {
        rustix::fs::syncfs(File::open(self.work.join("upper")).unwrap()).unwrap();
        plain(scan(&self.root()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            run(Command::new("umount").arg(at));
        }
    }
}

/// Without the number of links, which overlayfs makes up for directories, and does not keep for files that it copies up.
fn plain(tree: BTreeMap<Vec<u8>, String>) -> BTreeMap<Vec<u8>, String> {
    let line = |line: String| {
        let words = line.split(' ').filter(|word| !word.starts_with("links="));
        words.collect::<Vec<_>>().join(" ")
    };
    tree.into_iter()
        .map(|(path, text)| (path, line(text)))
        .collect()
}

fn request(name: &str) -> CommitRequest {
    CommitRequest {
        name: name.to_owned(),
        ..CommitRequest::default()
    }
}

/// Loads an image of these layers (compressed, uncompressed) into a store; its digest and its disk.
async fn load(
    images: &ImageStore,
    work: &Path,
    layers: &[(Vec<u8>, Vec<u8>)],
) -> (String, PathBuf) {
    let layout = work.join("layout");
    write_layout(&layout, "v1", layers);
    let request = LoadRequest {
        path: layout,
        name: Some("localhost/base:1".into()),
        ..LoadRequest::default()
    };
    let records = images.load(request, quiet()).await.unwrap();
    let digest = records[0].digest.clone();
    let disk = images.disk(&digest).await.unwrap();
    (digest, disk)
}

async fn commit(
    images: &ImageStore,
    request: CommitRequest,
    base: &str,
    disk: &Path,
) -> Result<warren_core::image::ImageRecord, PortError> {
    images.check(&request, base).await?;
    let captured = images.capture(disk).await?;
    images.commit(request, base, captured, quiet()).await
}

fn base_layer() -> (Vec<u8>, Vec<u8>) {
    let mut archive = Archive::new();
    for directory in ["etc/", "a/", "a/b/", "a/b/c/", "d/", "d/e/", "var/"] {
        archive = archive.directory(directory.as_bytes());
    }
    for (name, text) in [
        ("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        ("a/one", "one"),
        ("a/b/two", "two"),
        ("a/b/c/three", "three"),
        ("d/four", "four"),
        ("d/e/five", "five"),
        ("var/log", "a line\n"),
    ] {
        archive = archive.file(name.as_bytes(), text.as_bytes());
    }
    let plain = archive
        .hard_link(b"d/linked", b"a/b/two")
        .symlink(b"d/link", b"../a/one")
        .end();
    (gzip(&plain), plain)
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_guest_can_do_to_its_files_comes_through() {
    let test = "everything_that_a_guest_can_do_to_its_files_comes_through";
    let work = tempfile::tempdir().unwrap();
    let images = store(&work.path().join("data"));
    let (base, image) = load(&images, work.path(), &[base_layer()]).await;
    let Some(instance) = Instance::start(test, work.path(), &image) else {
        return;
    };
    let root = instance.root();
    let at = |name: &str| root.join(name);
    // Changed, removed, replaced by another kind, replaced by a directory of the same name.
    std::fs::write(at("a/one"), "something else").unwrap();
    std::fs::remove_file(at("d/four")).unwrap();
    std::fs::remove_file(at("var/log")).unwrap();
    std::fs::create_dir(at("var/log")).unwrap();
    std::fs::write(at("var/log/today"), "").unwrap();
    std::fs::remove_dir_all(at("a/b")).unwrap();
    std::fs::create_dir(at("a/b")).unwrap();
    std::fs::write(at("a/b/fresh"), "only this").unwrap();
    std::fs::remove_dir_all(at("d/e")).unwrap();
    symlink("/etc", at("d/e")).unwrap();
    // Of every kind, with names, owners, times and attributes of every kind.
    std::fs::create_dir_all(at("new/deep/er")).unwrap();
    std::fs::write(at("new/x"), "x").unwrap();
    std::fs::create_dir_all(at(&format!("new{}", "/d".repeat(300)))).unwrap();
    std::fs::hard_link(at("new/x"), at("new/deep/linked")).unwrap();
    std::fs::hard_link(at("d/link"), at("new/link-linked")).unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"new/\xff\xfe odd\n");
    std::fs::write(root.join(odd), "odd").unwrap();
    std::fs::write(at(&format!("new/{}", "n".repeat(255))), "long").unwrap();
    symlink("t/".repeat(300), at("new/far")).unwrap();
    for (name, words) in [
        ("new/null", "c 1 3"),
        ("new/disk", "b 259 300"),
        ("new/pipe", "p"),
    ] {
        run(Command::new("mknod").arg(at(name)).args(words.split(' ')));
    }
    std::os::unix::fs::chown(at("new/x"), Some(70_000), Some(4_000_000_000)).unwrap();
    std::fs::set_permissions(at("new/deep"), std::fs::Permissions::from_mode(0o3751)).unwrap();
    set(&at("new/x"), "user.note", b"some \0 bytes");
    set(&at("new/deep"), "trusted.own", b"mine");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&at("new/x"), "security.capability", &capability);
    run(Command::new("touch")
        .args(["-h", "-d", "1960-02-03T04:05:06.000000007Z"])
        .arg(at("new/far")));
    run(Command::new("touch")
        .args(["-d", "2200-02-03T04:05:06.123456789Z"])
        .arg(at("new/x")));
    let sparse = File::create(at("new/sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    for place in [0u64, 100_000, 5 << 20, (20 << 20) - 3] {
        sparse.write_all_at(b"end", place).unwrap();
    }
    let hole = File::create(at("new/hole")).unwrap();
    hole.set_len(3 << 20).unwrap();
    // What archives do not hold, and what is not the user's.
    let _socket = std::os::unix::net::UnixListener::bind(at("new/socket")).unwrap();
    std::fs::write(at("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    std::fs::write(at("etc/resolv.conf"), "nameserver 10.0.0.1\n").unwrap();

    let mut expected = instance.shown();
    for name in ["new/socket", "etc/hosts", "etc/resolv.conf"] {
        expected.remove(name.as_bytes()).unwrap();
    }
    // The root is as new as a boot, and a directory as what a boot has put there.
    expected.remove(b"".as_slice()).unwrap();
    expected.remove(b"etc".as_slice()).unwrap();
    let record = commit(&images, request("localhost/new:1"), &base, &instance.disk())
        .await
        .unwrap();
    let disk = images.disk(&record.digest).await.unwrap();
    let mut found = plain(scan_image(&disk));
    found.remove(b"".as_slice()).unwrap();
    found.remove(b"etc".as_slice()).unwrap();
    assert_same_tree("committed", &found, &expected);

    // Again gives the same; all of it is there, and nothing else.
    let again = commit(&images, request("localhost/new:2"), &base, &instance.disk())
        .await
        .unwrap();
    assert_eq!(again.digest, record.digest);
    assert!(
        images
            .verify(&record.id, Repair::No)
            .await
            .unwrap()
            .is_sound()
    );
    assert_eq!(leftovers(&work.path().join("data")), 0);
    understood_by_others(test, &images, &record.digest, &expected, work.path());
}

/// Another implementation unpacks the committed image to the same tree.
fn understood_by_others(
    test: &str,
    images: &ImageStore,
    digest: &str,
    expected: &BTreeMap<Vec<u8>, String>,
    work: &Path,
) {
    if !have(test, &["umoci"]) {
        return;
    }
    let layout = work.join("committed");
    std::fs::create_dir(&layout).unwrap();
    run(Command::new("cp")
        .arg("-r")
        .arg(work.join("data/images/blobs"))
        .arg(&layout));
    let manifest: Digest = digest.parse().unwrap();
    let size = images.content().size(&manifest).unwrap();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let unpacked = work.join("unpacked");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:v1", layout.display()))
        .arg(&unpacked));
    let mut found = plain(scan(&unpacked));
    found.remove(b"".as_slice()).unwrap();
    found.remove(b"etc".as_slice()).unwrap();
    assert_same_tree("unpacked by umoci", &found, expected);
}

/// One random change; what cannot be done is not done.
fn change(numbers: &mut Numbers, root: &Path) {
    let mut paths: Vec<PathBuf> = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut at = 0;
    while at < paths.len() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(&paths[at])
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.symlink_metadata().unwrap().is_dir() {
                paths.push(path);
            } else {
                files.push(path);
            }
        }
        at += 1;
    }
    let directory = &paths[numbers.below(paths.len() as u64) as usize];
    let any = |numbers: &mut Numbers| {
        let all: Vec<&PathBuf> = paths[1..].iter().chain(&files).collect();
        all.get(numbers.below(all.len().max(1) as u64) as usize)
            .map(|path| (*path).clone())
    };
    let name = directory.join(["p", "q", "r", "one", "e"][numbers.below(5) as usize]);
    let what = numbers.below(9);
    let _ = match (what, any(numbers)) {
        (0, _) => std::fs::create_dir(&name),
        (1, _) => std::fs::write(
            &name,
            vec![numbers.below(256) as u8; numbers.below(9000) as usize],
        ),
        (2, _) => symlink("somewhere", &name),
        (3, Some(path)) if path.is_dir() => std::fs::remove_dir_all(path),
        (3 | 4, Some(path)) => std::fs::remove_file(path),
        // Links within the image are broken by a change, which overlayfs and layers see alike only for new ones.
        (5, Some(path)) if path.starts_with(root.join("made")) => std::fs::hard_link(path, &name),
        (6, Some(path)) => std::fs::rename(path, &name),
        (7, Some(path)) if !path.is_symlink() => {
            let mode = 0o400 | numbers.below(0o1000) as u32;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        }
        (8, Some(path)) if path.is_file() && !path.is_symlink() => {
            set(&path, "user.number", &[numbers.below(256) as u8]);
            Ok(())
        }
        _ => Ok(()),
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_give_the_tree_that_the_guest_saw() {
    let test = "random_changes_give_the_tree_that_the_guest_saw";
    for seed in 0..12 {
        let work = tempfile::tempdir().unwrap();
        let images = store(&work.path().join("data"));
        let (base, image) = load(&images, work.path(), &[base_layer()]).await;
        let Some(instance) = Instance::start(test, work.path(), &image) else {
            return;
        };
        let mut numbers = Numbers::new(seed);
        std::fs::create_dir(instance.root().join("made")).unwrap();
        std::fs::write(instance.root().join("made/first"), "first").unwrap();
        for round in 0..2 {
            for _ in 0..20 {
                change(&mut numbers, &instance.root());
            }
            let mut expected = instance.shown();
            let name = format!("localhost/new:{round}");
            let record = commit(&images, request(&name), &base, &instance.disk())
                .await
                .unwrap();
            let disk = images.disk(&record.digest).await.unwrap();
            let mut found = plain(scan_image(&disk));
            for tree in [&mut found, &mut expected] {
                tree.remove(b"".as_slice());
                tree.remove(b"etc".as_slice());
            }
            assert_same_tree(&format!("seed {seed}, round {round}"), &found, &expected);
        }
    }
}

/// A disk with this in its upper directory, made without a mount; `None` (and a skip) where there is no mkfs.ext4.
fn disk(test: &str, work: &Path, fill: impl Fn(&Path)) -> Option<PathBuf> {
    if !have(test, &["mkfs.ext4"]) {
        return None;
    }
    let (tree, path) = (work.join("tree"), work.join("disk.ext4"));
    std::fs::create_dir_all(&tree).unwrap();
    fill(&tree);
    let _ = std::fs::remove_file(&path);
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .args([&tree, &path]));
    std::fs::remove_dir_all(&tree).unwrap();
    Some(path)
}

/// What a boot alone leaves behind.
fn booted(tree: &Path) {
    for directory in ["upper/etc", "upper/proc", "upper/tmp", "work"] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        std::fs::write(tree.join("upper/etc").join(name), "by the boot\n").unwrap();
    }
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(tree.join("upper/tmp"), mode).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_changed_nothing_gives_its_own_layers_again() {
    let test = "an_instance_that_changed_nothing_gives_its_own_layers_again";
    let work = tempfile::tempdir().unwrap();
    let images = store(&work.path().join("data"));
    let (base, image) = load(&images, work.path(), &[one_file("a", 3000)]).await;
    let before = std::fs::read(image).unwrap();
    for fill in [booted, |_: &Path| {}] {
        let Some(path) = disk(test, work.path(), fill) else {
            return;
        };
        let wanted = CommitRequest {
            changes: vec!["CMD [\"/a\"]".into(), "ENV B=c".into()],
            ..request("localhost/same:1")
        };
        let record = commit(&images, wanted, &base, &path).await.unwrap();
        assert_ne!(record.digest, base);
        assert_eq!(
            (record.config.cmd, record.config.entrypoint),
            (vec!["/a".to_owned()], vec!["/bin/sh".to_owned()])
        );
        assert_eq!(record.config.env, ["A=b", "B=c"]);
        let after = std::fs::read(images.disk(&record.digest).await.unwrap()).unwrap();
        assert!(after == before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_committed_is_refused_in_words_and_leaves_nothing() {
    let test = "what_cannot_be_committed_is_refused_in_words_and_leaves_nothing";
    let work = tempfile::tempdir().unwrap();
    let data = work.path().join("data");
    let images = store(&data);
    let (base, _) = load(&images, work.path(), &[one_file("a", 3000)]).await;
    let Some(path) = disk(test, work.path(), |tree| {
        booted(tree);
        std::fs::write(tree.join("upper/.wh.this"), "").unwrap();
    }) else {
        return;
    };
    let refused = async |request, base: &str, path: &Path| {
        let error = commit(&images, request, base, path).await.unwrap_err();
        assert_eq!(leftovers(&data), 0);
        error
    };
    let named = || request("localhost/new:1");
    let odd = CommitRequest {
        changes: vec!["RUN make".into()],
        ..named()
    };
    let elsewhere = Digest::of(b"another").to_string();
    for (request, base, path, code) in [
        (
            named(),
            base.as_str(),
            path.as_path(),
            "change_unrepresentable",
        ),
        (
            named(),
            base.as_str(),
            Path::new("/no/disk"),
            "disk_not_here",
        ),
        (
            named(),
            elsewhere.as_str(),
            path.as_path(),
            "image_layers_gone",
        ),
        (
            request("Not A Name"),
            base.as_str(),
            path.as_path(),
            "image_reference_invalid",
        ),
        (odd, base.as_str(), path.as_path(), "image_malformed"),
        (
            named(),
            base.as_str(),
            Path::new("/dev/null"),
            "disk_damaged",
        ),
    ] {
        let error = refused(request, base, path).await;
        assert_eq!(error.code, code, "{}", error.sentence());
    }
    let error = refused(named(), &base, &path).await;
    assert!(error.message.contains(".wh.this"), "{}", error.sentence());
    // Its layers are gone: only the disk is left.
    let layer = Digest::of(&one_file("a", 3000).0);
    std::fs::remove_file(data.join("images/blobs/sha256").join(layer.hex())).unwrap();
    let error = refused(named(), &base, &path).await;
    assert_eq!(error.code, "image_layers_gone");
    assert!(
        error.sentence().contains("pull or load"),
        "{}",
        error.sentence()
    );
    assert_eq!(images.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_disk_is_an_error_and_nothing_else() {
    let test = "a_hostile_disk_is_an_error_and_nothing_else";
    let work = tempfile::tempdir().unwrap();
    let data = work.path().join("data");
    let images = store(&data);
    let (base, _) = load(&images, work.path(), &[one_file("a", 3000)]).await;
    let fill = |tree: &Path| {
        booted(tree);
        for number in 0..40 {
            let name = tree.join(format!("upper/file-{number}"));
            std::fs::write(&name, vec![number; 300 * usize::from(number)]).unwrap();
        }
    };
    let Some(path) = disk(test, work.path(), fill) else {
        return;
    };
    let sound = std::fs::read(&path).unwrap();
    // Where the file system keeps its own.
    let used: Vec<usize> = (0..512 << 10).filter(|at| sound[*at] != 0).collect();
    let mut numbers = Numbers::new(7);
    let mut refused = 0;
    for _ in 0..40 {
        let mut bytes = sound.clone();
        for _ in 0..=numbers.below(4) {
            let at = used[numbers.below(used.len() as u64) as usize];
            bytes[at] = numbers.below(256) as u8;
        }
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = commit(&images, request("localhost/new:1"), &base, &path).await {
            assert_ne!(error.class, ErrorClass::Bug, "{}", error.sentence());
            refused += 1;
        }
        assert_eq!(leftovers(&data), 0);
    }
    assert!(refused > 0, "none of the damages was noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_cancelled_leaves_nothing() {
    let test = "a_commit_that_is_cancelled_leaves_nothing";
    let work = tempfile::tempdir().unwrap();
    let data = work.path().join("data");
    let images = store(&data);
    let (base, _) = load(&images, work.path(), &[one_file("a", 3000)]).await;
    let fill = |tree: &Path| {
        booted(tree);
        std::fs::write(tree.join("upper/large"), one_file("b", 6 << 20).1).unwrap();
    };
    let Some(path) = disk(test, work.path(), fill) else {
        return;
    };
    let blobs = || {
        std::fs::read_dir(data.join("images/blobs/sha256"))
            .unwrap()
            .count()
    };
    let before = blobs();
    for step in 0..4 {
        let captured = images.capture(&path).await.unwrap();
        let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let progress = std::sync::Arc::new(move |_| {
            let _ = sender.send(());
        });
        let work = images.commit(request("localhost/new:1"), &base, captured, progress);
        tokio::select! {
            _ = work => {}
            () = async {
                for _ in 0..=step {
                    if steps.recv().await.is_none() {
                        std::future::pending::<()>().await;
                    }
                }
            } => {}
        }
        assert_eq!(leftovers(&data), 0, "step {step}");
        if images.list().await.unwrap().len() == 1 {
            assert_eq!(blobs(), before, "step {step}");
        }
    }
}

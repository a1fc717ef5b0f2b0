//! Archives, layouts, registries and mounts for the tests of this crate.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]
#![expect(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part of this module"
)]

pub mod archive;
pub mod ext4;
pub mod pushing;
pub mod reading;
pub mod registry;
#[path = "../../../../tests/skip.rs"]
mod skip;
pub mod small;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use warren_image::erofs::FileType;
use warren_image::pipeline::{ConvertError, Converted, LayerInput, convert};
use warren_image::{Digest, ImageStore, Limits, Options};

pub use archive::{Archive, gzip};
pub(crate) use skip::skip;

/// Whether all tools are installed; says so if not.
pub fn have(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
        });
        if !found {
            skip(test, &format!("{tool} is not installed"));
            return false;
        }
    }
    true
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A layer as the pipeline takes it, with nothing promised.
pub fn layer(bytes: Vec<u8>) -> LayerInput {
    LayerInput {
        digest: None,
        size: None,
        diff_id: None,
        open: Box::new(move |_| Ok(Box::new(std::io::Cursor::new(bytes)))),
    }
}

/// Converts layers into a file of their own.
pub fn convert_layers(
    layers: Vec<LayerInput>,
    out: &Path,
    limits: &Limits,
) -> Result<Converted, ConvertError> {
    let file = std::fs::File::create_new(out).unwrap();
    convert(
        layers,
        file,
        Some([7; 16]),
        limits,
        &CancellationToken::new(),
        &|_, _| {},
    )
}

/// Converts archives with the default limits.
pub fn convert_archives(archives: Vec<Vec<u8>>, out: &Path) -> Result<Converted, ConvertError> {
    convert_layers(
        archives.into_iter().map(layer).collect(),
        out,
        &Limits::default(),
    )
}

/// A layer with one file of some size that does not compress to nothing: compressed, uncompressed.
pub fn one_file(name: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
    let data: Vec<u8> = (0..size as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8 ^ name.as_bytes()[0])
        .collect();
    let plain = Archive::new().file(name.as_bytes(), &data).end();
    (gzip(&plain), plain)
}

/// A store that uses nobody's credentials.
pub fn store(data: &Path) -> ImageStore {
    let options = Options {
        docker_config: Some(data.join("no-config.json")),
        ..Options::default()
    };
    ImageStore::open(data, options).unwrap()
}

/// Temporary files below a directory.
pub fn temporaries(data: &Path) -> usize {
    let listing = run(Command::new("find").arg(data).args(["-name", ".tmp-*"]));
    listing.iter().filter(|b| **b == b'\n').count()
}

/// Temporary files that stay: what was cancelled takes its own away a moment later.
pub fn leftovers(data: &Path) -> usize {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let left = temporaries(data);
        if left == 0 || std::time::Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Writes an OCI layout of layers (compressed bytes, uncompressed bytes).
pub fn write_layout(at: &Path, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Digest {
    let blobs = at.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest
    };
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(_, plain)| Digest::of(plain).to_string())
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"], "Env": ["A=b"], "User": "1:2",
            "WorkingDir": "/w", "StopSignal": "SIGINT", "ExposedPorts": { "80/tcp": {} }, "Labels": { "l": "v" } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(stored, _)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": put(stored).to_string(), "size": stored.len(),
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": put(config.as_bytes()).to_string(), "size": config.len() },
        "layers": descriptors,
    })
    .to_string();
    let digest = put(manifest.as_bytes());
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest.to_string(), "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": tag },
    }] });
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
    std::fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digest
}

/// The disk of an instance that has written a file.
pub fn changed_disk(work: &Path) -> PathBuf {
    let (tree, disk) = (work.join("tree"), work.join("changed.ext4"));
    std::fs::create_dir_all(tree.join("upper")).unwrap();
    std::fs::write(tree.join("upper/written"), one_file("c", 20_000).1).unwrap();
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .args([&tree, &disk]));
    disk
}

/// Mounts it; `false` (and a skip) where mounting is not allowed.
pub fn mount(test: &str, options: &[&str], what: &Path, at: &Path) -> bool {
    let output = Command::new("mount")
        .args(options)
        .args([what, at])
        .output()
        .unwrap();
    if output.status.success() {
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // What is damaged must not look like a missing privilege.
    let missing = ["permi", "loop device", "unknown filesystem"];
    assert!(missing.iter().any(|words| said.contains(words)), "{said}");
    skip(
        test,
        &format!("mounting is not possible here: {}", said.trim()),
    );
    false
}

/// Makes what skopeo calls `to` of what it calls `from`.
pub fn copy_image(from: &str, to: &str) {
    run(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", from, to]));
}

/// A mounted image.
pub struct Mount(pub PathBuf);

impl Mount {
    /// Mounts read-only through a loop device, `None` (and a skip) where that is not allowed.
    pub fn new(test: &str, image: &Path, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = ["-t", "erofs", "-o", "loop,ro"];
        mount(test, &options, image, &at).then(|| Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

/// All that a tree is, by path; hard links by the first of their names.
pub fn scan(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut groups: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .to_vec();
        let kind = meta.file_type();
        let mut line = format!(
            "{:o} {}:{} {}.{:09} links={}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink()
        );
        if kind.is_dir() {
            pending.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            groups.entry(meta.ino()).or_default().push(name.clone());
        }
        if kind.is_file() {
            line += &format!(" size={} {}", meta.len(), Digest::of(&read_bounded(&path)));
        }
        if kind.is_symlink() {
            line += &format!(" -> {:?}", std::fs::read_link(&path).unwrap());
        }
        if kind.is_char_device() || kind.is_block_device() {
            line += &format!(" rdev={:x}", meta.rdev());
        }
        line += &format!(" {:?}", xattrs(&path));
        found.insert(name, line);
    }
    tell_links(&mut found, groups.into_values());
    found
}

/// Each name of a file is told of with the first of its names.
fn tell_links(found: &mut BTreeMap<Vec<u8>, String>, groups: impl Iterator<Item = Vec<Vec<u8>>>) {
    for mut names in groups {
        names.sort();
        let first = String::from_utf8_lossy(&names[0]);
        for name in &names {
            *found.get_mut(name).unwrap() += &format!(" same-as={first:?}");
        }
    }
}

/// A `st_mode`, as inode(7) has it.
fn mode(file_type: FileType, permissions: u16) -> u32 {
    let kind = match file_type {
        FileType::Regular => 0o100_000,
        FileType::Directory => 0o040_000,
        FileType::Character => 0o020_000,
        FileType::Block => 0o060_000,
        FileType::Fifo => 0o010_000,
        FileType::Socket => 0o140_000,
        FileType::Symlink => 0o120_000,
    };
    kind | u32::from(permissions)
}

/// Large sparse files are compared by their first bytes and size only.
pub const READ_AT_MOST: u64 = 64 << 20;

fn read_bounded(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .unwrap()
        .take(READ_AT_MOST)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// A progress sink that nobody looks at.
pub fn quiet() -> warren_core::ports::images::ProgressSink {
    Arc::new(|_| {})
}

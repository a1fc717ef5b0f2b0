//! Finding the guest kernel.
//!
//! In the cache a kernel is a directory `kernels/<tuned|distro>-<version>` with an uncompressed `vmlinux` (booted
//! directly by its PVH entry: unpacking a bzImage costs an emulated guest seconds), `meta.json`, and `modules/`
//! where it needs some. `./dev kernel` makes tuned ones, `scripts/fetch-kernel` takes the distribution's. A user's
//! own file, vmlinux or bzImage, works as well.

pub(crate) mod bzimage;

use crate::cache::{Cache, digest};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use warren_core::PortError;

pub use bzimage::BzImageError;

/// The most a kernel file may have.
const MAX_KERNEL: u64 = 512 << 20;

/// Which kernel guests boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The newest tuned one in the cache, else the newest of the distribution.
    #[default]
    Auto,
    /// The newest tuned one.
    Tuned,
    /// The distribution's newest.
    Distro,
    /// The user's own.
    File {
        /// A vmlinux or bzImage.
        image: PathBuf,
        /// A directory with `order` and the modules it names, if it needs any.
        modules: Option<PathBuf>,
    },
}

/// A kernel, ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// For `-kernel`.
    pub image: PathBuf,
    /// Modules for the initramfs.
    pub modules: Option<PathBuf>,
    /// Which it is and where it came from, in a sentence.
    pub description: String,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// None in the cache.
    #[error("there is no {which}guest kernel in {}", directories.join(", "))]
    Missing {
        /// `tuned `, `distribution's `, or nothing.
        which: &'static str,
        /// Where it was looked for.
        directories: Vec<String>,
    },
    /// The user's file.
    #[error("could not read the guest kernel {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither an ELF nor a bzImage.
    #[error("{} is neither a vmlinux (ELF) nor a bzImage", .0.display())]
    UnknownFormat(PathBuf),
    /// A bzImage that cannot be used.
    #[error("the guest kernel {} cannot be unpacked: {reason}", path.display())]
    BzImage {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: BzImageError,
    },
    /// The unpacked kernel could not be written to the cache.
    #[error("could not write the unpacked guest kernel to {}", directory.display())]
    Write {
        /// The cache.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl From<KernelError> for PortError {
    fn from(error: KernelError) -> Self {
        let message = error.to_string();
        match error {
            KernelError::Missing { .. } => PortError::unsupported("guest_kernel_missing", message)
                .with_hint(
                    "run `scripts/fetch-kernel` (the distribution's) or `./dev kernel` (a tuned one), \
                     or set WARREN_KERNEL to a vmlinux or bzImage",
                ),
            KernelError::Read { source, .. } => {
                PortError::unsupported("guest_kernel_unreadable", format!("{message}: {source}"))
                    .with_hint("set WARREN_KERNEL to a vmlinux or bzImage that exists")
                    .with_source(source)
            }
            KernelError::UnknownFormat(_) | KernelError::BzImage { .. } => {
                PortError::unsupported("guest_kernel_unusable", message)
                    .with_hint("set WARREN_KERNEL to an uncompressed vmlinux")
            }
            KernelError::Write { source, .. } => PortError::io(message, source),
        }
    }
}

/// `meta.json` of a kernel in the cache.
#[derive(Debug, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    version: String,
    #[serde(default)]
    source: String,
}

/// Finds the kernel that was chosen.
pub fn find(choice: &KernelChoice, cache: &Cache) -> Result<Kernel, KernelError> {
    let cached = |prefixes: &[&str], which| {
        prefixes
            .iter()
            .find_map(|prefix| newest(cache, prefix))
            .ok_or_else(|| KernelError::Missing {
                which,
                directories: cache
                    .readable()
                    .map(|directory| directory.join("kernels").display().to_string())
                    .collect(),
            })
    };
    match choice {
        KernelChoice::Auto => cached(&["tuned", "distro"], ""),
        KernelChoice::Tuned => cached(&["tuned"], "tuned "),
        KernelChoice::Distro => cached(&["distro"], "distribution's "),
        KernelChoice::File { image, modules } => own(image, modules.clone(), cache),
    }
}

/// The newest whole kernel of a sort, by when its `vmlinux` was made.
fn newest(cache: &Cache, sort: &str) -> Option<Kernel> {
    let start = format!("{sort}-");
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for directory in cache.readable() {
        let Ok(entries) = std::fs::read_dir(directory.join("kernels")) else {
            continue;
        };
        found.extend(entries.flatten().filter_map(|entry| {
            let fits = entry.file_name().to_str()?.starts_with(&start);
            let made = std::fs::metadata(entry.path().join("vmlinux")).ok()?;
            let whole = made.is_file() && entry.path().join("meta.json").is_file();
            (fits && whole).then_some((made.modified().ok()?, entry.path()))
        }));
    }
    let (_, directory) = found.into_iter().max()?;
    let meta: Meta = std::fs::read(directory.join("meta.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let modules = directory.join("modules");
    let sort = if sort == "tuned" {
        "Warren's tuned kernel"
    } else {
        "the distribution's kernel"
    };
    Some(Kernel {
        image: directory.join("vmlinux"),
        modules: modules.join("order").is_file().then_some(modules),
        description: format!(
            "{sort} {} from {} in {}",
            meta.version,
            meta.source,
            directory.display()
        ),
    })
}

fn own(path: &Path, modules: Option<PathBuf>, cache: &Cache) -> Result<Kernel, KernelError> {
    use std::io::Read;
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let described = |image: PathBuf, how: &str| Kernel {
        image,
        modules: modules.clone(),
        description: format!("the user's own kernel {}{how}", path.display()),
    };
    let path = &path.canonicalize().map_err(read)?;
    let mut file = std::fs::File::open(path).map_err(read)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(read)?;
    if &magic == b"\x7fELF" {
        return Ok(described(path.clone(), ""));
    }
    let mut bytes = magic.to_vec();
    file.take(MAX_KERNEL)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if !bzimage::is_bzimage(&bytes) {
        return Err(KernelError::UnknownFormat(path.clone()));
    }
    let name = format!("{}.vmlinux", digest(&bytes));
    let unpacked = cache.directory().join("unpacked").join(&name);
    if unpacked.is_file() {
        return Ok(described(unpacked, ", unpacked"));
    }
    match bzimage::unpack(&bytes, MAX_KERNEL) {
        Ok(vmlinux) => cache
            .store("unpacked", &name, &vmlinux)
            .map(|image| described(image, ", unpacked"))
            .map_err(|source| KernelError::Write {
                directory: cache.directory().to_owned(),
                source,
            }),
        // QEMU boots these as well; the guest then unpacks itself, slowly.
        Err(BzImageError::Compression(_)) => Ok(described(path.clone(), " (unpacks itself: slow)")),
        Err(reason) => Err(KernelError::BzImage {
            path: path.clone(),
            reason,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn kernel(cache: &Path, name: &str, age: u64) {
        let directory = cache.join("kernels").join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(
            directory.join("meta.json"),
            r#"{"version":"6.1","source":"s"}"#,
        )
        .unwrap();
        let file = std::fs::File::create(directory.join("vmlinux")).unwrap();
        let made = SystemTime::now() - std::time::Duration::from_secs(age);
        file.set_modified(made).unwrap();
    }

    #[test]
    fn tuned_before_distro_and_newest_first() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path());
        let found = |choice| {
            find(&choice, &cache).map(|kernel| {
                kernel
                    .image
                    .parent()
                    .unwrap()
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
        };
        let missing = PortError::from(found(KernelChoice::Auto).unwrap_err());
        assert_eq!(missing.code, "guest_kernel_missing");
        assert!(missing.sentence().contains("./dev kernel"));
        kernel(root.path(), "distro-1", 1);
        assert_eq!(found(KernelChoice::Auto).unwrap(), "distro-1");
        kernel(root.path(), "tuned-new", 10);
        kernel(root.path(), "tuned-old", 20);
        assert_eq!(found(KernelChoice::Auto).unwrap(), "tuned-new");
        assert_eq!(found(KernelChoice::Distro).unwrap(), "distro-1");
        std::fs::remove_file(root.path().join("kernels/tuned-new/meta.json")).unwrap();
        assert_eq!(found(KernelChoice::Tuned).unwrap(), "tuned-old");
    }

    #[test]
    fn own_files_are_told_apart_by_content() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("cache"));
        let path = root.path().join("kernel");
        let find = || {
            find(
                &KernelChoice::File {
                    image: path.clone(),
                    modules: None,
                },
                &cache,
            )
        };
        assert!(matches!(find(), Err(KernelError::Read { .. })));
        std::fs::write(&path, b"\x7fELFwhatever").unwrap();
        assert_eq!(find().unwrap().image, path.canonicalize().unwrap());
        std::fs::write(&path, b"#!/bin/sh").unwrap();
        assert!(matches!(find(), Err(KernelError::UnknownFormat(_))));
        let payload = zstd::encode_all(&b"\x7fELFinside"[..], 1).unwrap();
        std::fs::write(&path, bzimage::tests::image(&payload)).unwrap();
        let unpacked = find().unwrap().image;
        assert_eq!(std::fs::read(unpacked).unwrap(), b"\x7fELFinside");
        std::fs::write(&path, bzimage::tests::image(b"\xfd7zXZ\0rest")).unwrap();
        assert_eq!(find().unwrap().image, path.canonicalize().unwrap());
    }
}

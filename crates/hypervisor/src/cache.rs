//! The machine-wide cache: guest kernels, initramfs archives, and what was found out about this host.
//!
//! Everything in it can be made again. It is shared by all installations on the machine, so that a kernel is
//! built once; nothing in it belongs to an instance.

use std::io;
use std::path::{Path, PathBuf};

/// Where root keeps it (`./dev kernel` and `scripts/fetch-kernel` write kernels there).
const SYSTEM: &str = "/var/cache/warren";

/// Directories to read from and the one to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    directory: PathBuf,
    also_read: Vec<PathBuf>,
}

impl Cache {
    /// A cache in this directory alone.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Cache {
            directory: directory.into(),
            also_read: Vec::new(),
        }
    }

    /// `WARREN_CACHE_DIR` alone when set; else `/var/cache/warren` for root and `$XDG_CACHE_HOME/warren`
    /// (`~/.cache/warren`) for others, who also read the system's; else, when none of these can be written to,
    /// `fallback` (a directory in the data directory).
    pub fn from_environment(fallback: &Path) -> Self {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(directory) = set("WARREN_CACHE_DIR") {
            return Cache::at(directory);
        }
        let preferred = if rustix::process::geteuid().is_root() {
            Some(PathBuf::from(SYSTEM))
        } else {
            set("XDG_CACHE_HOME")
                .or_else(|| set("HOME").map(|home| home.join(".cache")))
                .map(|base| base.join("warren"))
        };
        let mut also_read = vec![PathBuf::from(SYSTEM)];
        let directory = match preferred {
            Some(directory) if writable(&directory) => directory,
            Some(directory) => {
                also_read.insert(0, directory);
                fallback.to_owned()
            }
            None => fallback.to_owned(),
        };
        also_read.retain(|other| *other != directory);
        also_read.dedup();
        Cache {
            directory,
            also_read,
        }
    }

    /// The directory that is written to.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Every directory to read from, best first.
    pub fn readable(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.directory.as_path()).chain(self.also_read.iter().map(PathBuf::as_path))
    }

    /// Writes a file of the cache whole or not at all, and returns its path. One that is there with as many
    /// bytes is left alone: names carry digests.
    pub(crate) fn store(&self, folder: &str, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let directory = self.directory.join(folder);
        let path = directory.join(name);
        let there = std::fs::File::open(&path).and_then(|file| file.metadata());
        if there.is_ok_and(|found| found.len() == bytes.len() as u64) {
            return Ok(path);
        }
        std::fs::create_dir_all(&directory)?;
        write(&path, bytes, 0o644)?;
        Ok(path)
    }
}

/// Writes a private file by a temporary name and renames it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    warren_crashpoint::reached("qemu.file-written-aside");
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// SHA-256, in lower-case hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    use std::fmt::Write;
    sha2::Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

fn writable(directory: &Path) -> bool {
    std::fs::create_dir_all(directory).is_ok()
        && rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn a_stored_file_is_whole_and_written_once() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("cache"));
        let path = cache.store("initramfs", "abc.cpio", b"content").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o644, "other users' VMMs read it too");
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        cache.store("initramfs", "abc.cpio", b"content").unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().modified().unwrap(),
            before
        );
        cache.store("initramfs", "abc.cpio", b"cut").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"cut");
    }
}

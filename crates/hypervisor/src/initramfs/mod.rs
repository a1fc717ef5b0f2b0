//! The initramfs of every guest: the static agent as `/init`, a console, and the modules a distribution's kernel
//! needs, with the order to load them in.
//!
//! The same content is the same file, named by its digest in the cache. Uncompressed: unpacking costs the guest
//! more than reading does.

mod cpio;

use crate::cache::{Cache, digest};
use cpio::Archive;
use std::path::{Path, PathBuf};
use warren_core::PortError;

/// How many archives are kept in the cache: one per kernel and version of the agent that is in use.
const KEEP: usize = 8;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The module directory of the kernel is not as it should be.
    #[error("could not read kernel module file {}", path.display())]
    Modules {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `order` names something that is not a file of its directory.
    #[error("{0:?} is not the name of a kernel module")]
    ModuleName(String),
    /// It could not be written to the cache.
    #[error("could not write the initramfs to {}", directory.display())]
    Write {
        /// The cache.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no agent to put into it.
    #[error("the guest agent is empty: this binary was built without it")]
    NoAgent,
}

impl From<InitramfsError> for PortError {
    fn from(error: InitramfsError) -> Self {
        let message = error.to_string();
        match error {
            InitramfsError::Write { source, .. } => PortError::io(message, source),
            InitramfsError::Modules { .. } | InitramfsError::ModuleName(_) => {
                PortError::unsupported("guest_kernel_broken", message)
                    .with_hint("fetch the guest kernel again with `scripts/fetch-kernel`")
                    .with_source(error)
            }
            InitramfsError::NoAgent => PortError::unsupported("guest_agent_missing", message)
                .with_hint("build `warren` with `cargo build --release --locked`"),
        }
    }
}

/// A finished archive.
#[derive(Debug)]
pub struct Initramfs {
    bytes: Vec<u8>,
}

impl Initramfs {
    /// Puts it together: `/init` is `agent`; `/lib/modules/order` and `/lib/modules/*.ko` come from the kernel's
    /// module directory, whose `order` has one file name per line, dependencies first.
    pub fn build(agent: &[u8], modules: Option<&Path>) -> Result<Self, InitramfsError> {
        if agent.is_empty() {
            return Err(InitramfsError::NoAgent);
        }
        let mut archive = Archive::default();
        archive.directory("dev");
        // What the kernel opens as stdin, stdout and stderr of /init.
        archive.character_device("dev/console", 0o600, 5, 1);
        for directory in ["proc", "sys", "run", "lib", "lib/modules"] {
            archive.directory(directory);
        }
        if let Some(modules) = modules {
            let read = |name: &str| {
                let path = modules.join(name);
                std::fs::read(&path).map_err(|source| InitramfsError::Modules { path, source })
            };
            let order = read("order")?;
            archive.file("lib/modules/order", 0o644, &order);
            for name in String::from_utf8_lossy(&order)
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
            {
                if name.contains('/') || name.starts_with('.') || !name.is_ascii() {
                    return Err(InitramfsError::ModuleName(name.to_owned()));
                }
                archive.file(&format!("lib/modules/{name}"), 0o644, &read(name)?);
            }
        }
        archive.file("init", 0o755, agent);
        Ok(Initramfs {
            bytes: archive.finish(),
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts it into the cache, once.
    pub fn store(&self, cache: &Cache) -> Result<PathBuf, InitramfsError> {
        let path = cache
            .store(
                "initramfs",
                &format!("{}.cpio", digest(&self.bytes)),
                &self.bytes,
            )
            .map_err(|source| InitramfsError::Write {
                directory: cache.directory().to_owned(),
                source,
            })?;
        forget_oldest(&path);
        Ok(path)
    }
}

/// Removes old archives but the newest few and `keep`. A VMM has read its own before the guest runs, and a driver
/// whose archive has gone makes it again.
fn forget_oldest(keep: &Path) {
    let Some(entries) = keep
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok())
    else {
        return;
    };
    let mut others: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path() != keep)
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "cpio"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(KEEP);
    for (_, path) in &others[..surplus] {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "could not forget an old initramfs");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn modules() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("order"), "b.ko\na.ko\n\n").unwrap();
        std::fs::write(root.path().join("a.ko"), "AAA").unwrap();
        std::fs::write(root.path().join("b.ko"), "B").unwrap();
        std::fs::write(root.path().join("unused.ko"), "U").unwrap();
        root
    }

    /// A reader of its own, written from the format's description.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |number: usize| {
                let start = 6 + number * 8;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16)
                    .unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let content = (110 + name_size).next_multiple_of(4);
            let end = (content + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(end, bytes.len());
                assert_eq!(whole % 4, 0);
                return found;
            }
            found.push((name, mode, bytes[content..content + size].to_vec()));
            bytes = &bytes[end..];
        }
    }

    #[test]
    fn an_archive_has_the_agent_a_console_and_modules_in_order() {
        let modules = modules();
        let archive = Initramfs::build(b"agent", Some(modules.path())).unwrap();
        let entries = entries(archive.bytes());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "dev",
                "dev/console",
                "proc",
                "sys",
                "run",
                "lib",
                "lib/modules",
                "lib/modules/order",
                "lib/modules/b.ko",
                "lib/modules/a.ko",
                "init"
            ]
        );
        assert_eq!(entries[1].1, 0o020_600);
        assert_eq!(entries[9].2, b"AAA");
        assert_eq!(entries[10].1, 0o100_755);
        assert_eq!(entries[10].2, b"agent");
    }

    #[test]
    fn cpio_itself_reads_it() {
        let Ok(mut child) = std::process::Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            crate::testing::skip("cpio_itself_reads_it", "cpio is not installed");
            return;
        };
        use std::io::Write;
        let archive = Initramfs::build(b"agent", None).unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(archive.bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .ends_with("init\n")
        );
    }

    #[test]
    fn a_module_list_cannot_leave_its_directory() {
        let modules = modules();
        std::fs::write(modules.path().join("order"), "../../etc/passwd\n").unwrap();
        assert!(matches!(
            Initramfs::build(b"agent", Some(modules.path())),
            Err(InitramfsError::ModuleName(_))
        ));
        assert!(matches!(
            Initramfs::build(b"", None),
            Err(InitramfsError::NoAgent)
        ));
    }

    #[test]
    fn the_cache_holds_one_file_per_content_and_forgets_the_oldest() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path());
        let first = Initramfs::build(b"0", None).unwrap();
        let path = first.store(&cache).unwrap();
        assert_eq!(path, first.store(&cache).unwrap());
        for number in 1..=20 {
            let archive = Initramfs::build(format!("{number}").as_bytes(), None).unwrap();
            assert!(archive.store(&cache).unwrap().is_file());
        }
        let kept = std::fs::read_dir(root.path().join("initramfs"))
            .unwrap()
            .count();
        assert_eq!(kept, KEEP + 1);
    }
}

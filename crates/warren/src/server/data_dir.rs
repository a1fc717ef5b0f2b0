//! The data directory: its layout, the id that everything of this installation carries, and the lock
//! that keeps a second server out.
//!
//! ```text
//! <data>/installation      4 characters, made once
//! <data>/lock              held by the running server
//! <data>/store.db          intent (SQLite); store.db.seen: the last commit that was made here
//! <data>/store.db.schema-N as it was before an upgrade from schema N: what an older Warren can be given
//! <data>/host-secret       what the keys of instances' SSH servers and of what is saved of machines are made of, once
//! <data>/uptime            seconds that servers have run here: the monotonic clock of leases
//! <data>/instances/<h>/    one directory per instance: record, disk, logs, sockets
//! <data>/images/           blobs, disks and records of images
//! <data>/volumes/          ready-made empty disks
//! <data>/uploads/          archives on their way in; emptied at start
//! <data>/set-aside/        what was replaced or can no longer be told whose it is: old stores, disks
//! ```

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use warren_core::InstallationId;
use warren_crashpoint::reached;
use warren_ssh::HostSecret;

/// An opened, locked data directory.
pub(crate) struct DataDir {
    root: PathBuf,
    pub(crate) installation: InstallationId,
    /// Held as long as this lives.
    _lock: File,
}

/// A server runs on it.
#[derive(Debug, thiserror::Error)]
#[error(
    "another Warren server (pid {pid}) uses {root}: stop it, or give this one its own --data-dir",
    root = .root.display()
)]
pub(crate) struct Served {
    pid: String,
    root: PathBuf,
}

impl DataDir {
    /// Whether there is an installation in `root`, served or not. Changes nothing.
    pub(crate) fn exists(root: &Path) -> bool {
        root.join("installation").is_file()
    }

    /// Makes what is missing, reads the installation's id, takes the lock.
    ///
    /// # Errors
    /// Another server runs on it, or the file system refuses.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(root)
            .with_context(|| format!("cannot make the data directory {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot open the data directory {}", root.display()))?;
        let lock_path = root.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| {
                format!(
                    "cannot open {}: choose another place with --data-dir or DATA_DIR",
                    lock_path.display()
                )
            })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(Served {
                pid: pid.trim().to_owned(),
                root,
            }
            .into());
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .context("cannot write the lock file")?;
        let installation = installation_id(&root)?;
        let data = DataDir {
            root,
            installation,
            _lock: lock,
        };
        match std::fs::remove_dir_all(data.uploads()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("cannot empty the uploads directory");
            }
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new()
            .mode(0o700)
            .create(data.uploads())
            .context("cannot make the uploads directory")?;
        Ok(data)
    }

    /// What the keys of instances' SSH servers and the seal of saved machines are made of: 64 hexadecimal digits, made the first time.
    ///
    /// # Errors
    /// It is damaged, or the file system refuses.
    pub(crate) fn host_secret(&self) -> anyhow::Result<HostSecret> {
        let text = made_once(
            &self.root,
            "host-secret",
            0o600,
            || {
                let secret = HostSecret::random();
                let digits = secret.bytes().iter().map(|byte| format!("{byte:02x}"));
                Ok(digits.collect())
            },
            [
                || reached("start.host-secret-written-aside"),
                || reached("start.host-secret-named"),
            ],
        )?;
        secret_of(&text).with_context(|| {
            format!(
                "{} is damaged: put it back from a backup, or remove it, and every instance gets a new SSH host key, and none \
                 can be restored from standby",
                self.root.join("host-secret").display()
            )
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What the network needs to know.
    pub(crate) fn place(&self) -> Place {
        Place {
            installation: self.installation.clone(),
            instances: self.instances(),
        }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store.db")
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// How long servers have run here.
    pub(crate) fn uptime(&self) -> PathBuf {
        self.root.join("uptime")
    }

    /// Used where the machine-wide cache cannot be written to.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn set_aside(&self) -> PathBuf {
        self.root.join("set-aside")
    }
}

/// What a network needs to know of the data directory.
pub(crate) struct Place {
    pub(crate) installation: InstallationId,
    pub(crate) instances: PathBuf,
}

fn secret_of(text: &str) -> anyhow::Result<HostSecret> {
    let mut bytes = [0; 32];
    anyhow::ensure!(
        text.len() == 64 && text.is_ascii(),
        "it is not 64 digits long"
    );
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    Ok(HostSecret::new(bytes))
}

/// The text of a file that is made the first time it is asked for, whole or not at all. `steps` are told when it has been
/// written, and when it has its name.
fn made_once(
    root: &Path,
    name: &str,
    mode: u32,
    make: impl FnOnce() -> anyhow::Result<String>,
    steps: [fn(); 2],
) -> anyhow::Result<String> {
    let path = root.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let [written, named] = steps;
            let text = make()?;
            let aside = root.join(format!(".{name}.new"));
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&aside)
                .and_then(|mut file| {
                    writeln!(file, "{text}")?;
                    file.sync_all()
                })
                .with_context(|| format!("cannot write {}", aside.display()))?;
            written();
            std::fs::rename(&aside, &path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            named();
            File::open(root)
                .and_then(|directory| directory.sync_all())
                .with_context(|| format!("cannot write to {}", root.display()))?;
            Ok(text)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The id in `<data>/installation`, made the first time.
fn installation_id(root: &Path) -> anyhow::Result<InstallationId> {
    let text = made_once(
        root,
        "installation",
        0o644,
        || {
            let mut entropy = [0; 3];
            rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
                .context("the kernel gave no random bytes")?;
            Ok(InstallationId::from_entropy(entropy).to_string())
        },
        [
            || reached("start.installation-written-aside"),
            || reached("start.installation-named"),
        ],
    )?;
    text.parse()
        .with_context(|| format!("{} is damaged", root.join("installation").display()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_id_stays_and_a_second_server_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let id = first.installation.clone();
        let refused = DataDir::open(dir.path()).err().unwrap().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        assert_eq!(DataDir::open(dir.path()).unwrap().installation, id);
    }

    #[test]
    fn a_damaged_id_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("installation"), "not an id").unwrap();
        assert!(DataDir::open(dir.path()).is_err());
        assert_eq!(
            std::fs::read_to_string(dir.path().join("installation")).unwrap(),
            "not an id"
        );
    }
}

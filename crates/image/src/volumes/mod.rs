//! Writable disks: an empty ext4 made once for each size, then cloned in milliseconds.
//!
//! Owns: `<data>/volumes/templates/` and the disks it is asked for. Must never: touch a disk that exists, but to remove it;
//! need root (mkfs.ext4 writes into a regular file). Called through the port `Volumes`.

mod clone;
mod template;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use warren_core::ports::{Presence, Volumes};
use warren_core::units::ByteSize;
use warren_core::{ErrorClass, PortError};

use crate::store::publish::{self, Temporary};

/// Smaller ones have no room for a journal and a root file system's changes.
const SMALLEST: u64 = 16 << 20;
/// ext4 with 4 KiB blocks, without the 64-bit feature's extra.
const LARGEST: u64 = 16 << 40;

/// Why a writable disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The file system below.
    #[error("{what} failed")]
    Disk {
        /// At what.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing that makes an ext4.
    #[error("mkfs.ext4 is not installed on this host")]
    NoMkfs,
    /// mkfs.ext4 did not like it.
    #[error("mkfs.ext4 failed: {0}")]
    Mkfs(String),
    /// A size no ext4 here has.
    #[error("a disk of {0} is too small or too large: it can have 16 MiB to 16 TiB")]
    Size(ByteSize),
}

impl From<VolumeError> for PortError {
    fn from(error: VolumeError) -> Self {
        let text = error.to_string();
        match &error {
            VolumeError::Disk { what, source } => {
                let copy = match source.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                PortError::io(what, copy).with_source(error)
            }
            VolumeError::NoMkfs => PortError::unsupported("mkfs_missing", text)
                .with_hint("install it: `apt-get install e2fsprogs`"),
            VolumeError::Mkfs(_) => PortError::new(ErrorClass::Bug, "mkfs_failed", text),
            VolumeError::Size(_) => PortError::invalid("disk_size_invalid", text),
        }
    }
}

/// The writable disks of a host.
#[derive(Debug)]
pub struct WritableDisks {
    templates: PathBuf,
    making: tokio::sync::Mutex<()>,
}

impl WritableDisks {
    /// Uses `<data>/volumes`, and removes what a killed process left half-made there.
    ///
    /// # Errors
    /// [`VolumeError::Disk`] when the directory cannot be made or read.
    pub fn open(data: &Path) -> Result<Self, VolumeError> {
        let templates = data.join("volumes").join("templates");
        std::fs::create_dir_all(&templates)
            .and_then(|()| publish::clean(&templates))
            .map_err(|source| VolumeError::Disk {
                what: "opening the disk templates",
                source,
            })?;
        Ok(WritableDisks {
            templates,
            making: tokio::sync::Mutex::new(()),
        })
    }

    /// The empty disk of a size; made when it is wanted first.
    async fn template(&self, size: ByteSize) -> Result<PathBuf, VolumeError> {
        // The name says how it was made: another recipe gives other names.
        let path = self
            .templates
            .join(format!("ext4-{}-{}.img", template::RECIPE, size.0));
        let _making = self.making.lock().await;
        if !path.is_file() {
            let target = path.clone();
            blocking("making an empty disk", move || {
                Ok(template::make(&target, size.0))
            })
            .await??;
        }
        Ok(path)
    }
}

/// A copy of a disk without a name of its own: gone with the last handle on it, and with the process.
pub(crate) fn nameless_copy(disk: &Path) -> io::Result<std::fs::File> {
    let directory = disk.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let from = std::fs::File::open(disk)?;
    let mut copy = tempfile::tempfile_in(directory)?;
    clone::sparse(&from, &mut copy)?;
    Ok(copy)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|source| VolumeError::Disk { what, source })
}

#[async_trait]
impl Volumes for WritableDisks {
    async fn ensure_empty(&self, path: &Path, size: ByteSize) -> Result<(), PortError> {
        if self.observe(path).await? == Presence::Present {
            return Ok(());
        }
        // ext4 counts whole blocks.
        let size = ByteSize(size.0 / 4096 * 4096);
        if !(SMALLEST..=LARGEST).contains(&size.0) {
            return Err(VolumeError::Size(size).into());
        }
        let template = self.template(size).await?;
        let target = path.to_owned();
        let work = move || {
            let mut temporary = Temporary::beside(&target)?;
            clone::sparse(&std::fs::File::open(&template)?, temporary.file())?;
            temporary.publish_new(&target)
        };
        Ok(blocking("cloning an empty disk", work).await?)
    }

    async fn observe(&self, path: &Path) -> Result<Presence, PortError> {
        match tokio::fs::symlink_metadata(path).await {
            Ok(found) if found.is_file() => Ok(Presence::Present),
            Ok(_) => Err(PortError::conflict(
                "disk_not_a_file",
                "something else than a disk is in its place",
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Presence::Absent),
            Err(error) => Err(PortError::io("looking at a disk", error)),
        }
    }

    async fn remove(&self, path: &Path) -> Result<(), PortError> {
        let path = path.to_owned();
        Ok(blocking("removing a disk", move || publish::remove(&path)).await?)
    }

    async fn usage(&self, path: &Path) -> Result<ByteSize, PortError> {
        match tokio::fs::metadata(path).await {
            // st_blocks counts 512 bytes whatever the file system's blocks are.
            Ok(found) => Ok(ByteSize(found.blocks() * 512)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PortError::not_found(
                "disk_not_here",
                "the disk is not on this host",
            )),
            Err(error) => Err(PortError::io("looking at a disk", error)),
        }
    }

    async fn ready_made(&self) -> Result<ByteSize, PortError> {
        let templates = self.templates.clone();
        let sum = move || {
            let mut bytes = 0;
            for entry in std::fs::read_dir(templates)? {
                // One that is just being made may be gone again.
                bytes += entry?.metadata().map_or(0, |found| found.blocks() * 512);
            }
            Ok(ByteSize(bytes))
        };
        Ok(blocking("looking at the empty disks", sum).await?)
    }
}

//! What is the same for all machines of a driver: binary, accelerator, kernel, initramfs. Found once and kept.

use super::argv::Board;
use super::{QemuConfig, QemuError, timestamp};
use crate::accelerator::{self, Decision};
use crate::initramfs::Initramfs;
use crate::kernel::{self, Kernel};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// The answer.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) binary: PathBuf,
    pub(crate) decision: Decision,
    pub(crate) kernel: Kernel,
    pub(crate) board: Board,
    pub(crate) initramfs: PathBuf,
    /// See [`timestamp::frequency`].
    pub(crate) timestamp: Option<u32>,
}

impl Resolved {
    /// Whether its files are still there: a cache may be emptied at any time.
    fn stands(&self) -> bool {
        [&self.binary, &self.kernel.image, &self.initramfs]
            .iter()
            .all(|path| path.is_file())
    }
}

/// Resolves at most once at a time and remembers success.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    known: RwLock<Option<Arc<Resolved>>>,
    resolving: tokio::sync::Mutex<()>,
}

impl Resolver {
    fn known(&self) -> Option<Arc<Resolved>> {
        self.known
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
            .filter(|resolved| resolved.stands())
    }

    /// What is remembered, or found out now.
    pub(crate) async fn get(&self, config: &Arc<QemuConfig>) -> Result<Arc<Resolved>, QemuError> {
        if let Some(resolved) = self.known() {
            return Ok(resolved);
        }
        let _one = self.resolving.lock().await;
        if let Some(resolved) = self.known() {
            return Ok(resolved);
        }
        let resolved = Arc::new(resolve(config).await?);
        *self
            .known
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(resolved.clone());
        Ok(resolved)
    }
}

async fn resolve(config: &Arc<QemuConfig>) -> Result<Resolved, QemuError> {
    let binary = find_binary(config.binary.as_deref())?;
    let decision = accelerator::decide(&binary, config.accel, &config.cache).await?;
    let config = config.clone();
    let (kernel, board, initramfs) = tokio::task::spawn_blocking(move || {
        let kernel = kernel::find(&config.kernel, &config.cache)?;
        let initramfs = Initramfs::build(&config.guest_agent, kernel.modules.as_deref())?
            .store(&config.cache)?;
        let board = board(&kernel.image)?;
        Ok::<_, QemuError>((kernel, board, initramfs))
    })
    .await
    .map_err(|error| QemuError::Unusable {
        binary: binary.clone(),
        reason: error.to_string(),
    })??;
    Ok(Resolved {
        binary,
        decision,
        kernel,
        board,
        initramfs,
        timestamp: timestamp::frequency(),
    })
}

/// Which machine suits a kernel: its parameter for devices on the command line is there by name, or it is not.
fn board(kernel: &Path) -> Result<Board, QemuError> {
    let image = std::fs::read(kernel).map_err(|error| QemuError::Unusable {
        binary: kernel.to_owned(),
        reason: format!("the guest kernel cannot be read: {error}"),
    })?;
    Ok(match memchr::memmem::find(&image, b"virtio_mmio.device") {
        Some(_) => Board::Microvm,
        None => Board::Pc,
    })
}

fn find_binary(configured: Option<&Path>) -> Result<PathBuf, QemuError> {
    let name = configured.map_or_else(
        || PathBuf::from(format!("qemu-system-{}", std::env::consts::ARCH)),
        Path::to_owned,
    );
    if name.components().count() > 1 {
        return if name.is_file() {
            Ok(name)
        } else {
            Err(QemuError::Unusable {
                binary: name,
                reason: "there is no such file".to_owned(),
            })
        };
    }
    let paths = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/usr/local/bin".into());
    std::env::split_paths(&paths)
        .map(|directory| directory.join(&name))
        .find(|candidate| {
            candidate.is_file()
                && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
        })
        .ok_or_else(|| QemuError::Missing(name.display().to_string()))
}

//! QEMU: its `microvm` machine with a directly booted kernel.
//!
//! One QEMU process per machine, detached ([`crate::process`]). The sockets for QMP, the guest channel and the
//! console are bound and listened on here and inherited by QEMU, so that a connect right after the start never
//! comes too early. Called by the host agent through [`Hypervisor`].

mod argv;
mod driver;
mod platform;
pub(crate) mod qmp;
mod suspend;
mod timestamp;

pub use argv::CHANNEL_PORT;
pub use driver::Qemu;
pub use qmp::QmpError;

use crate::accelerator::{AccelChoice, AcceleratorError};
use crate::cache::Cache;
use crate::initramfs::InitramfsError;
use crate::kernel::{KernelChoice, KernelError};
use bytes::Bytes;
use std::path::PathBuf;
use warren_core::PortError;
#[cfg(doc)]
use warren_core::ports::Hypervisor;

/// How to run QEMU.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// QEMU's binary; `qemu-system-<arch>` on `PATH` when absent.
    pub binary: Option<PathBuf>,
    /// How instructions are executed.
    pub accel: AccelChoice,
    /// Where kernels are found, and what is found out is kept.
    pub cache: Cache,
    /// Which guest kernel.
    pub kernel: KernelChoice,
    /// The static guest agent: `/init` of every guest.
    pub guest_agent: Bytes,
    /// Words added to every guest kernel's command line.
    pub extra_cmdline: Vec<String>,
}

/// Why QEMU cannot be used, or not for this machine.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// There is no such binary.
    #[error("{0} is not on PATH")]
    Missing(String),
    /// The binary does not run.
    #[error("{} does not run: {reason}", binary.display())]
    Unusable {
        /// Which binary.
        binary: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A path that cannot be an argument.
    #[error("the path {0:?} is not valid UTF-8")]
    Path(PathBuf),
    /// A word that would be several, or none, on the kernel's command line.
    #[error("{0:?} cannot be a word of the guest kernel's command line")]
    BootArgument(String),
    /// More devices than the machine has room for.
    #[error("{disks} disks are too many: this machine takes {most}")]
    TooManyDevices {
        /// How many were asked for.
        disks: usize,
        /// How many fit.
        most: usize,
    },
    /// The accelerator.
    #[error(transparent)]
    Accelerator(#[from] AcceleratorError),
    /// The guest kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
}

impl From<QemuError> for PortError {
    fn from(error: QemuError) -> Self {
        match error {
            QemuError::Missing(_) => PortError::unsupported("vmm_missing", error.to_string())
                .with_hint(
                    "install QEMU (`apt install qemu-system-x86`) or set the path of its binary",
                ),
            QemuError::Unusable { .. } => PortError::unsupported("vmm_unusable", error.to_string())
                .with_hint("reinstall QEMU or set the path of another binary"),
            QemuError::Path(_) => PortError::invalid("bad_path", error.to_string()),
            QemuError::BootArgument(_) => {
                PortError::invalid("bad_boot_argument", error.to_string())
            }
            QemuError::TooManyDevices { .. } => {
                PortError::invalid("too_many_devices", error.to_string())
            }
            QemuError::Accelerator(error) => error.into(),
            QemuError::Kernel(error) => error.into(),
            QemuError::Initramfs(error) => error.into(),
        }
    }
}

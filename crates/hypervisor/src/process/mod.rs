//! Detached VMM processes: how they are started, recognised, waited for and ended.
//!
//! A VMM outlives the process that started it. Three things in its home directory let another process find it:
//!
//! - `vmm.lock`, an flock(2) that the VMM inherits and thereby holds until it is gone, however it goes;
//! - `vmm.json`, its [`Record`]: written as an intent before the VMM exists, and with its identity right after;
//! - the `-name` token in its arguments, which holds installation and handle and is looked for in `/proc` when
//!   the lock is held (or gone) and the record does not name a live process.
//!
//! Must never signal by bare pid: every signal goes through a pidfd whose process was identified after the
//! pidfd was opened. Called by the drivers only.

mod discovery;
mod home;
mod identity;
mod log;
mod pidfd;
mod record;
mod spawn;

pub(crate) use discovery::guest_name;
pub(crate) use home::{Files, Found, Lock, locate};
pub(crate) use identity::usage;
pub use identity::{Liveness, boot_id, identify, liveness};
pub(crate) use log::trim;
pub(crate) use pidfd::Watched;
pub use record::{Record, Stage};
pub(crate) use spawn::{HugePages, Launch, launch, reap_at_end};

use std::path::PathBuf;
use warren_core::PortError;

/// What can go wrong with a VMM process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Reading or writing in the home directory or `/proc`.
    #[error("could not {what} {}", path.display())]
    File {
        /// `read`, `write`, …
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The VMM's program could not be started.
    #[error("could not start {}", program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pidfd could not be opened, waited on or signalled.
    #[error("could not {what} process {pid}")]
    Pidfd {
        /// `watch`, `end`, …
        what: &'static str,
        /// Which.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// A killed process is still there.
    #[error("process {pid} was killed and is still there after {seconds} s")]
    Undying {
        /// Which.
        pid: u32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Another VMM of this home runs.
    #[error("a VMM of this instance already runs")]
    Busy,
}

impl ProcessError {
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| ProcessError::File { what, path, source }
    }
}

impl From<ProcessError> for PortError {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Busy => PortError::conflict("vmm_running", error.to_string()),
            ProcessError::File { what, path, source } => PortError::io(
                format_args!(
                    "could not {what} {} of the instance",
                    path.file_name().unwrap_or_default().to_string_lossy()
                ),
                source,
            ),
            ProcessError::Spawn { program, source } => {
                let message = format!("could not start {}: {source}", program.display());
                match source.kind() {
                    std::io::ErrorKind::NotFound => PortError::unsupported("vmm_missing", message)
                        .with_hint("install it or set the path of its binary"),
                    _ => PortError::retry("vmm_start_failed", message),
                }
                .with_source(source)
            }
            ProcessError::Pidfd { .. } | ProcessError::Undying { .. } => {
                PortError::retry("vmm_process", error.to_string()).with_source(error)
            }
        }
    }
}

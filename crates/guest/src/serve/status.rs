//! How far the boot has come. Written by the machine, read by sessions, which send what changed and, after
//! an attach, everything that is still of interest.
//!
//! ```text
//! (new) ─► booting ─► ready ─► started ─► exited ─► exit acknowledged
//!             └──────────┴─► failed
//! ```

use tokio::sync::watch;

use crate::protocol::{ExitReport, ReadyReport};

/// Why a guest cannot become what it was told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub stage: String,
    /// What went wrong.
    pub message: String,
}

/// What is true of the guest. Fields are set once and never taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The instance it was booted as.
    pub instance_id: Option<String>,
    /// Configured, with timings.
    pub ready: Option<ReadyReport>,
    /// The workload's pid.
    pub started: Option<i32>,
    /// How the workload ended.
    pub exited: Option<ExitReport>,
    /// The host has the exit status.
    pub exit_acknowledged: bool,
    /// The boot went wrong; also set before a boot, when there is no root file system.
    pub failed: Option<Failure>,
}

/// The one [`Status`] of a guest.
#[derive(Debug)]
pub struct StatusCell {
    sender: watch::Sender<Status>,
}

impl Default for StatusCell {
    fn default() -> Self {
        Self {
            sender: watch::Sender::new(Status::default()),
        }
    }
}

impl StatusCell {
    /// Changes it and tells all sessions.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.sender.send_modify(change);
    }

    /// What is true now.
    #[must_use]
    pub fn get(&self) -> Status {
        self.sender.borrow().clone()
    }

    /// Follows changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.sender.subscribe()
    }
}

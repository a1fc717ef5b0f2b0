//! A process held by a pidfd (pidfd_open(2)): waited for without polling, signalled without races, reaped.
#![expect(
    unsafe_code,
    reason = "tokio wants a promise that a registered descriptor stays open"
)]

use super::{Liveness, ProcessError, liveness};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use warren_core::ports::hypervisor::ProcessIdentity;

/// An identified process.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: u32,
    pidfd: OwnedFd,
}

impl Watched {
    /// Takes hold of `process`; `None` when it has gone or its pid is somebody else's.
    ///
    /// The identity is checked after the pidfd is open: if it matches then, the pidfd is of this process, or
    /// of one that had its pid before and is dead, which no signal reaches.
    pub(crate) fn open(process: &ProcessIdentity) -> Result<Option<Self>, ProcessError> {
        let fail = |source: rustix::io::Errno| ProcessError::Pidfd {
            what: "watch",
            pid: process.pid,
            source: source.into(),
        };
        let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        match liveness(process) {
            Liveness::Alive | Liveness::Zombie => Ok(Some(Watched {
                pid: process.pid,
                pidfd,
            })),
            Liveness::Gone | Liveness::Stranger => Ok(None),
        }
    }

    /// Sends SIGKILL; nothing to do when it has ended.
    pub(crate) fn kill(&self) -> Result<(), ProcessError> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(source) => Err(ProcessError::Pidfd {
                what: "end",
                pid: self.pid,
                source: source.into(),
            }),
        }
    }

    /// Returns once the process has ended, and reaps it if it is a child of ours. No deadline: the caller has one,
    /// or waits for as long as the machine runs.
    pub(crate) async fn exited(&self) -> Result<(), ProcessError> {
        let fail = |source| ProcessError::Pidfd {
            what: "watch",
            pid: self.pid,
            source,
        };
        // SAFETY: the pidfd is open and stays the same one for as long as `self` is borrowed, which is longer
        // than `watched` lives.
        let watched =
            unsafe { AsyncFd::register_with_interest(self.pidfd.as_fd(), Interest::READABLE) }
                .map_err(|error| fail(error.into()))?;
        // A pidfd is readable from the process's end on, for ever.
        let _ready = watched.readable().await.map_err(fail)?;
        self.reap();
        Ok(())
    }

    /// Like [`Watched::exited`], for a process that was killed.
    pub(crate) async fn exited_within(&self, deadline: Duration) -> Result<(), ProcessError> {
        tokio::time::timeout(deadline, self.exited())
            .await
            .map_err(|_| ProcessError::Undying {
                pid: self.pid,
                seconds: deadline.as_secs(),
            })?
    }

    /// Takes the exit status if this is an ended child of ours (also one we adopted as a subreaper or as pid 1).
    pub(crate) fn reap(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // No status: it still runs, or is not our child, and its own parent reaps it.
        if let Ok(Some(status)) = waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            tracing::debug!(
                pid = self.pid,
                code = status.exit_status(),
                signal = status.terminating_signal(),
                "VMM ended"
            );
        }
    }
}

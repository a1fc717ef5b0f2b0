//! Collects the exit of every process. As PID 1 the agent inherits all orphans; whoever waits for a child
//! registers it here, and everybody else's is just taken away.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::protocol::ExitStatus;

/// Whose exits are collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All: for PID 1.
    EveryChild,
    /// Those that were registered: for a process that has other children too (tests).
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests are not PID 1"))]
    Registered,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Reaper {
    scope: Scope,
    waiting: Mutex<HashMap<i32, oneshot::Sender<ExitStatus>>>,
}

impl Reaper {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            scope,
            waiting: Mutex::default(),
        }
    }

    /// Collects in the background from now on.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Arc::clone(self);
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reaper.reap();
            }
        });
        Ok(())
    }

    /// Starts a process and registers it in one step: it cannot be collected in between.
    pub(super) fn spawn(
        &self,
        start: impl FnOnce() -> io::Result<i32>,
    ) -> io::Result<(i32, oneshot::Receiver<ExitStatus>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = start()?;
        let (sender, exit) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok((pid, exit))
    }

    fn reap(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match self.scope {
            Scope::EveryChild => {
                while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                    if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
                        let _ = sender.send(exit_status(status));
                    }
                }
            }
            Scope::Registered => {
                let pids: Vec<i32> = waiting.keys().copied().collect();
                for raw in pids {
                    let exited = rustix::process::waitpid(Pid::from_raw(raw), WaitOptions::NOHANG);
                    if let Ok(Some((_, status))) = exited
                        && let Some(sender) = waiting.remove(&raw)
                    {
                        let _ = sender.send(exit_status(status));
                    }
                }
            }
        }
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        // Only with options that are not asked for.
        (None, None) => ExitStatus::Code(u8::MAX),
    }
}

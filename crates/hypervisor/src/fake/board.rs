//! What fake machines have in this process: who waits for them, and the lines to their guests. Shared by all
//! drivers of the process, so that one sees what another does.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Default)]
struct Machine {
    changes: watch::Sender<u64>,
    lines: Vec<OwnedFd>,
}

static MACHINES: LazyLock<Mutex<HashMap<PathBuf, Machine>>> = LazyLock::new(Mutex::default);
static TURN: Mutex<()> = Mutex::new(());

/// The lines that are kept for hanging up; closed ones are thrown away above this.
const MANY_LINES: usize = 16;

/// Each is looked at less often when there are more.
const MANY_MACHINES: usize = 500;

pub(super) struct Board;

impl Board {
    /// Makes read-change-write of a machine's file one thing. Never held across an await.
    pub(super) fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(home: &Path, act: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
        act(machines.entry(home.to_owned()).or_default())
    }

    /// How long to wait between two looks at one of so many machines: thousands of them must not keep a processor busy.
    pub(super) fn share(look: Duration) -> Duration {
        let machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
        look * (1 + u32::try_from(machines.len() / MANY_MACHINES).unwrap_or(u32::MAX - 1))
    }

    /// Tells whoever waits.
    pub(super) fn changed(home: &Path) {
        Self::with(home, |machine| {
            machine.changes.send_modify(|count| *count += 1)
        });
    }

    /// Resolves at the next change.
    pub(super) fn watch(home: &Path) -> watch::Receiver<u64> {
        Self::with(home, |machine| machine.changes.subscribe())
    }

    /// Keeps a guest's end, to be cut when the machine ends.
    pub(super) fn keep(home: &Path, line: OwnedFd) {
        Self::with(home, |machine| {
            if machine.lines.len() >= MANY_LINES {
                machine.lines.retain(|line| !hung_up(line));
            }
            machine.lines.push(line);
        });
    }

    /// After the machine's file is gone: whoever waits hears of it, and nothing is kept.
    pub(super) fn forget(home: &Path) {
        Self::hang_up(home);
        let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
        machines.remove(home);
    }

    /// Cuts all lines: both ends read the end of the stream.
    pub(super) fn hang_up(home: &Path) {
        let lines = Self::with(home, |machine| std::mem::take(&mut machine.lines));
        for line in lines {
            // An error means that it is cut already.
            let _cut = rustix::net::shutdown(&line, rustix::net::Shutdown::Both);
        }
    }
}

fn hung_up(line: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut polled = [PollFd::new(line, PollFlags::empty())];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

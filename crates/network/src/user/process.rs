//! Processes that outlive us: told apart by pid, start time and boot, and never signalled without checking.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::AsFd;
use warren_core::ports::hypervisor::ProcessIdentity;

/// How long a killed process may take to go, in milliseconds.
const GONE: u16 = 5_000;

/// The calling process.
pub(super) fn own_identity() -> io::Result<ProcessIdentity> {
    identity(std::process::id())
}

fn identity(pid: u32) -> io::Result<ProcessIdentity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; field 3 is the first after the last of them (proc(5)).
    let start_time = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned();
    Ok(ProcessIdentity {
        pid,
        start_time,
        boot_id,
    })
}

/// A handle on the very process, if it still runs.
fn open(wanted: &ProcessIdentity) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(wanted.pid).ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Checked after opening: the descriptor cannot come to mean another process.
    (identity(wanted.pid).ok().as_ref() == Some(wanted) && !ended(&handle, 0)).then_some(handle)
}

pub(super) fn is_alive(wanted: &ProcessIdentity) -> bool {
    open(wanted).is_some()
}

/// Kills the process, if it still is the one, and waits until it is gone.
pub(super) fn kill(wanted: &ProcessIdentity) -> io::Result<()> {
    let Some(handle) = open(wanted) else {
        return Ok(());
    };
    match pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    if ended(&handle, GONE) {
        Ok(())
    } else {
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// The user that guards of a privileged server become.
const NOBODY: u32 = 65_534;

/// Processes of ours that have an argument of which `wanted` says so. Others' could only pretend.
pub(super) fn find(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<ProcessIdentity>> {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid();
    let ours = |owner: u32| owner == user.as_raw() || (user.is_root() && owner == NOBODY);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(before) = pid.and_then(|pid| identity(pid).ok()) else {
            continue;
        };
        let fits = entry.metadata().is_ok_and(|metadata| ours(metadata.uid()))
            && fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .filter_map(|argument| std::str::from_utf8(argument).ok())
                    .any(&wanted)
            });
        // The same before and after: all of it was about one process.
        if fits && identity(before.pid).ok().as_ref() == Some(&before) {
            found.push(before);
        }
    }
    Ok(found)
}

/// A pidfd becomes readable when its process has ended.
fn ended(handle: &OwnedFd, milliseconds: u16) -> bool {
    let mut polled = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::from(milliseconds)), Ok(1..))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;

    #[test]
    fn only_the_very_process_is_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let right = identity(child.id()).unwrap();
        let other = ProcessIdentity {
            start_time: right.start_time + 1,
            ..right.clone()
        };
        kill(&other).unwrap();
        assert!(is_alive(&right) && !is_alive(&other));
        kill(&right).unwrap();
        assert!(!is_alive(&right));
        child.wait().unwrap();
        kill(&right).unwrap();
    }
}

//! Holding the writable file system still (ioctl_fsfreeze in the kernel: everything is written, the journal is emptied, and
//! whoever writes waits).
//!
//! The agent itself writes to that file system at boot alone, so that it never waits for itself.
#![expect(
    unsafe_code,
    reason = "freezing and thawing are ioctls that no crate here wraps"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::serve::{Hold, hold};

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`, linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Freezes the file system that `directory` is on.
pub(super) async fn freeze(directory: File, deadline: Duration) -> Result<Hold, String> {
    let again = directory.try_clone().map_err(|error| error.to_string())?;
    let freeze = move || {
        ask(&directory, FIFREEZE).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => "something in the guest has frozen it already".to_owned(),
            Some(libc::EOPNOTSUPP) => "its file system cannot be frozen".to_owned(),
            _ => format!("freezing failed: {error}"),
        })
    };
    let thaw = move || {
        thaw_now(&again).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => "something in the guest has thawed it".to_owned(),
            _ => format!("thawing failed: {error}"),
        })
    };
    hold(deadline, freeze, thaw).await
}

/// Thaws the file system that `directory` is on; an error where it is not frozen.
pub(super) fn thaw_now(directory: &File) -> io::Result<()> {
    ask(directory, FITHAW)
}

fn ask(directory: &File, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open; these requests read and write no memory of ours.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), request, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

//! The end of the VM.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use super::{freeze, process};

/// How long killed processes may take to let go of the file system.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// Kills every process, makes the disks clean and ends the VM. Never returns.
///
/// The VM ends by a *restart*: without ACPI a power-off only halts the CPU, and QEMU stays. With `-no-reboot`
/// (and `reboot=t` on the kernel's command line, a triple fault) a restart makes it exit.
pub(super) fn off(writable: Option<File>) -> ! {
    if let Some(directory) = &writable {
        // Whoever waits to write could not be killed. It is not frozen, most of the time.
        let _ = freeze::thaw_now(directory);
    }
    process::kill_everything();
    let deadline = Instant::now() + KILL_DEADLINE;
    while Instant::now() < deadline {
        // Not the event loop's business any more: there is none. Ends when there is no child left.
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::yield_now(),
            Err(_) => break,
        }
    }
    rustix::fs::sync();
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    if let Some(directory) = &writable {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let _ = mount_remount(path.as_str(), MountFlags::RDONLY, c"");
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    // Not reached unless the kernel refuses: then the panic that follows init's exit ends the VM.
    std::process::exit(1)
}

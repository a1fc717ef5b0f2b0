//! Starting a detached process.
#![expect(
    unsafe_code,
    reason = "what a child does between fork and exec is set up through pre_exec"
)]

use super::identity::identify_child;
use super::{ProcessError, Watched, log};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use warren_core::ports::hypervisor::ProcessIdentity;

/// Whether the kernel may back the VMM's memory with transparent huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// As the host is set up.
    AsHost,
    /// Never: what a guest does not touch then costs nothing (PR_SET_THP_DISABLE, prctl(2)).
    Never,
}

/// A VMM to start.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [std::ffi::OsString],
    /// Gets stdout and stderr.
    pub(crate) log: &'a Path,
    /// Descriptors that the VMM keeps, under the numbers they have here. Everything else is closed.
    pub(crate) inherited: &'a [RawFd],
    /// A file that gets one byte as soon as there is a process, whatever becomes of the two of us after that.
    pub(crate) begun: RawFd,
    pub(crate) huge_pages: HugePages,
}

/// Starts it in a session of its own, with `/` as its directory and nearly no environment. Whoever calls this
/// must watch the process, so that it is reaped.
pub(crate) fn launch(launch: &Launch<'_>) -> Result<ProcessIdentity, ProcessError> {
    let output = log::trim(launch.log)
        .and_then(|()| log::open(launch.log))
        .map_err(ProcessError::file("open", launch.log))?;
    let errors = output
        .try_clone()
        .map_err(ProcessError::file("open", launch.log))?;
    let mut command = Command::new(launch.program);
    command
        .args(launch.arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let inherited = launch.inherited.to_vec();
    let huge_pages = launch.huge_pages;
    let begun = launch.begun;
    // SAFETY: the closure runs in the forked child and makes system calls only; it allocates nothing and takes
    // no lock, and what it captured was allocated before the fork.
    unsafe {
        command.pre_exec(move || prepare(&inherited, begun, huge_pages));
    }
    let fail = |source| ProcessError::Spawn {
        program: launch.program.to_owned(),
        source,
    };
    let child = command.spawn().map_err(fail)?;
    // The child is not reaped before the caller watches it, so its pid cannot be another's here.
    identify_child(child.id()).ok_or_else(|| fail(std::io::Error::other("it vanished at once")))
}

/// Runs between fork and exec: async-signal-safe calls only.
fn prepare(inherited: &[RawFd], begun: RawFd, huge_pages: HugePages) -> std::io::Result<()> {
    // SAFETY: plain system calls on numbers. close_range marks every descriptor above stderr close-on-exec
    // (std's own error pipe among them, which is so already); then those that are meant are unmarked.
    unsafe {
        if libc::setsid() < 0 {
            return Err(std::io::Error::last_os_error());
        }
        if libc::pwrite(begun, c"1".as_ptr().cast(), 1, 0) < 1 {
            return Err(std::io::Error::last_os_error());
        }
        let marked = libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        // A kernel before 5.11 does not know the flag; std and we open everything close-on-exec anyway.
        if marked < 0
            && *libc::__errno_location() != libc::EINVAL
            && *libc::__errno_location() != libc::ENOSYS
        {
            return Err(std::io::Error::last_os_error());
        }
        for descriptor in inherited {
            if libc::fcntl(*descriptor, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        if huge_pages == HugePages::Never {
            // Only memory is at stake: a kernel without it runs the VMM all the same.
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        }
    }
    Ok(())
}

/// Reaps the VMM when it ends, whatever else is waited for: no zombies. Needs a runtime.
pub(crate) fn reap_at_end(process: &ProcessIdentity, runtime: &tokio::runtime::Handle) {
    match Watched::open(process) {
        Ok(Some(watched)) => {
            runtime.spawn(async move {
                if let Err(error) = watched.exited().await {
                    tracing::warn!(%error, "could not watch a VMM");
                }
            });
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "could not watch a VMM"),
    }
}

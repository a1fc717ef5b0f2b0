//! What a VMM has in its home directory, and from that: whether one runs, and which.

use super::discovery;
use super::record::{self, Record, Stage};
use super::{Liveness, ProcessError, liveness};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::ProcessIdentity;

/// The files of a VMM, by name.
pub(crate) struct Files;

impl Files {
    pub(crate) const LOCK: &'static str = "vmm.lock";
    pub(crate) const LOG: &'static str = "vmm.log";
    pub(crate) const QMP: &'static str = "qmp.sock";
    pub(crate) const EVENTS: &'static str = "events.sock";
    pub(crate) const CHANNEL: &'static str = "channel.sock";
    pub(crate) const CONSOLE: &'static str = "console.sock";
    /// What is removed with the VMM. The log stays; the record goes last but one and the lock last, so that an
    /// interrupted removal is still seen as something left.
    const LEFT: [&'static str; 6] = [
        Self::QMP,
        Self::EVENTS,
        Self::CHANNEL,
        Self::CONSOLE,
        record::FILE,
        Self::LOCK,
    ];

    /// Removes what a dead VMM left.
    pub(crate) fn clear(directory: &Path) -> Result<(), ProcessError> {
        for name in Self::LEFT {
            let path = directory.join(name);
            crate::sockets::remove(&path).map_err(ProcessError::file("remove", &path))?;
        }
        Ok(())
    }

    fn any_left(directory: &Path) -> bool {
        Self::LEFT
            .iter()
            .any(|name| directory.join(name).symlink_metadata().is_ok())
    }
}

/// The right to be the VMM of a home. The VMM inherits the descriptor and with it the lock (flock(2): it belongs
/// to the open file, and goes when the last copy is closed).
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

enum Held {
    Free,
    Taken,
    NoFile,
}

impl Lock {
    fn path(directory: &Path) -> PathBuf {
        directory.join(Files::LOCK)
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`ProcessError::Busy`] when a VMM, or another start, holds it.
    pub(crate) fn take(directory: &Path) -> Result<Self, ProcessError> {
        let path = Self::path(directory);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(ProcessError::file("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Of an earlier process: see `begun`.
                file.set_len(0)
                    .map_err(ProcessError::file("empty", &path))?;
                Ok(Lock(file.into()))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ProcessError::Busy),
            Err(error) => Err(ProcessError::file("lock", path)(error.into())),
        }
    }

    /// The descriptor for the VMM.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Whether a process ever had it: one leaves a byte in it before it does anything else.
    fn begun(directory: &Path) -> bool {
        std::fs::metadata(Self::path(directory)).is_ok_and(|file| file.len() > 0)
    }

    fn held(directory: &Path) -> Result<Held, ProcessError> {
        let path = Self::path(directory);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Held::NoFile),
            Err(error) => return Err(ProcessError::file("open", path)(error)),
        };
        // Shared, so that two observers do not see each other.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Held::Free),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Held::Taken),
            Err(error) => Err(ProcessError::file("lock", path)(error.into())),
        }
    }
}

/// What was found of a home's VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It runs.
    Alive(ProcessIdentity),
    /// There was none: a start was broken off before.
    NeverStarted,
    /// It does not run and has left something.
    Remains,
    /// There is nothing.
    Nothing,
}

/// Finds the VMM of `home`. Reads only. Reads all of `/proc` when the lock is held or gone and the record does
/// not name a live process.
pub(crate) fn locate(home: &InstanceHome) -> Result<Found, ProcessError> {
    let directory = &home.directory;
    let record = Record::read(directory)?;
    let identified = matches!(
        record.as_ref().map(|record| &record.stage),
        Some(Stage::Started { .. })
    );
    if let Some(Stage::Started { process }) = record.map(|record| record.stage) {
        match liveness(&process) {
            Liveness::Alive => return Ok(Found::Alive(process)),
            Liveness::Zombie => {
                if let Some(watched) = super::Watched::open(&process)? {
                    watched.reap();
                }
                return Ok(Found::Remains);
            }
            Liveness::Gone | Liveness::Stranger => {}
        }
    }
    match Lock::held(directory)? {
        Held::Free => {}
        Held::Taken | Held::NoFile => {
            let found = discovery::find(home).map_err(ProcessError::file("read", "/proc"))?;
            if let Some(process) = found {
                return Ok(Found::Alive(process));
            }
        }
    }
    Ok(if !Files::any_left(directory) {
        Found::Nothing
    } else if identified || Lock::begun(directory) {
        Found::Remains
    } else {
        Found::NeverStarted
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_start_that_came_to_no_process_is_told_from_one_that_did() {
        let root = tempfile::tempdir().unwrap();
        let home = InstanceHome {
            id: "web".parse().unwrap(),
            handle: "aaaabbbb".parse().unwrap(),
            installation: "wxyz".parse().unwrap(),
            directory: root.path().to_owned(),
        };
        assert_eq!(locate(&home).unwrap(), Found::Nothing);
        let lock = Lock::take(root.path()).unwrap();
        drop(lock);
        assert_eq!(locate(&home).unwrap(), Found::NeverStarted);
        std::fs::write(root.path().join(record::FILE), "{").unwrap();
        assert_eq!(locate(&home).unwrap(), Found::NeverStarted);
        let lock = Lock::take(root.path()).unwrap();
        File::from(lock.0).write_all_at(b"1", 0).unwrap();
        assert_eq!(locate(&home).unwrap(), Found::Remains);
        // The next start begins anew.
        drop(Lock::take(root.path()).unwrap());
        assert_eq!(locate(&home).unwrap(), Found::NeverStarted);
        Files::clear(root.path()).unwrap();
        assert_eq!(locate(&home).unwrap(), Found::Nothing);
    }
}

//! Why something could not be done with a file.

use std::path::Path;

use rustix::io::Errno;

use crate::protocol::files::FileFault;

/// Words of a path that are told at most.
const TOLD: usize = 300;

/// A fault, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of reason.
    pub fault: FileFault,
    /// In words.
    pub message: String,
}

impl Failure {
    /// With words of our own.
    pub(super) fn new(fault: FileFault, path: &Path, problem: impl std::fmt::Display) -> Self {
        let path: String = path.to_string_lossy().chars().take(TOLD).collect();
        Failure {
            fault,
            message: format!("{path}: {problem}"),
        }
    }

    /// What the kernel said about `path`.
    pub(super) fn of(path: &Path, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let fault = error.raw_os_error().map_or(FileFault::Failed, |number| {
            fault_of(Errno::from_raw_os_error(number))
        });
        // The number is dropped: "(os error 2)" helps nobody.
        let words = error.to_string().to_lowercase();
        let words = words.split(" (os error").next().unwrap_or_default();
        Self::new(fault, path, words)
    }

    /// Nobody waits for the outcome any more.
    pub(super) fn nobody() -> Self {
        Failure {
            fault: FileFault::Failed,
            message: "the host has gone".to_owned(),
        }
    }
}

fn fault_of(error: Errno) -> FileFault {
    match error {
        Errno::NOENT => FileFault::NotFound,
        Errno::NOTDIR => FileFault::NotADirectory,
        Errno::ISDIR => FileFault::IsADirectory,
        Errno::EXIST => FileFault::Exists,
        Errno::NOTEMPTY => FileFault::NotEmpty,
        Errno::PERM | Errno::ACCESS | Errno::BUSY | Errno::TXTBSY => FileFault::NotPermitted,
        Errno::ROFS => FileFault::ReadOnly,
        Errno::NOSPC | Errno::DQUOT => FileFault::NoSpace,
        Errno::FBIG | Errno::OVERFLOW => FileFault::TooLarge,
        Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV => FileFault::InvalidPath,
        Errno::NXIO | Errno::OPNOTSUPP => FileFault::Unsuitable,
        _ => FileFault::Failed,
    }
}

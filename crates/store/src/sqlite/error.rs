//! What SQLite's failures mean to callers of the port.

use rusqlite::ffi;
use warren_core::{ErrorClass, PortError};

/// `SQLITE_IOERR_SHMSIZE` (sqlite.org/rescode.html): the WAL index could not grow, which is how a full
/// disk shows before the first page is written.
const IOERR_SHMSIZE: i32 = ffi::SQLITE_IOERR | (19 << 8);

/// The code of a failure over damage in the file.
pub(super) const STORE_CORRUPT: &str = "store_corrupt";

/// A failure while doing `what`.
pub(super) fn from_sqlite(what: &str, error: rusqlite::Error) -> PortError {
    let (class, code, hint) = match error.sqlite_error() {
        Some(cause) if cause.extended_code == IOERR_SHMSIZE => disk_full(),
        Some(cause) => match cause.code {
            ffi::ErrorCode::DiskFull => disk_full(),
            ffi::ErrorCode::DatabaseBusy | ffi::ErrorCode::DatabaseLocked => {
                (ErrorClass::Retry, "store_busy", None)
            }
            ffi::ErrorCode::DatabaseCorrupt | ffi::ErrorCode::NotADatabase => (
                ErrorClass::Bug,
                STORE_CORRUPT,
                Some("the file's structure is damaged: restore a backup"),
            ),
            ffi::ErrorCode::SystemIoFailure => (ErrorClass::Retry, "store_io_error", None),
            ffi::ErrorCode::PermissionDenied
            | ffi::ErrorCode::ReadOnly
            | ffi::ErrorCode::CannotOpen => (
                ErrorClass::Denied,
                "store_not_accessible",
                Some("check the owner and mode of the data directory"),
            ),
            _ => (ErrorClass::Bug, "store_failed", None),
        },
        None => (ErrorClass::Bug, "store_failed", None),
    };
    let failure =
        PortError::new(class, code, format!("the store could not {what}")).with_source(error);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

/// Whether a page of the file could not be made sense of.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ffi::ErrorCode::DatabaseCorrupt)
}

fn disk_full() -> (ErrorClass, &'static str, Option<&'static str>) {
    (
        ErrorClass::NoSpace,
        "disk_full",
        Some("free some space on the data directory's file system and try again"),
    )
}

/// The store was closed, or its threads are gone.
pub(super) fn closed() -> PortError {
    PortError::retry("store_closed", "the store is closed")
}

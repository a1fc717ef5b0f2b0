//! One process at a time: an advisory lock on a file beside the store, which the kernel lets go of when
//! its holder dies. The file names the holder, so that a second opener can.

use super::beside;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use warren_core::PortError;

/// Held as long as any connection is open.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

/// Of its name. The file is never removed, because a lock on a removed one keeps nobody out.
const ENDING: &str = ".lock";

impl StoreLock {
    /// Takes the lock or says who has it.
    pub(super) fn take(store: &Path) -> Result<Self, PortError> {
        let failed = |error| PortError::io("cannot lock the store", error);
        let mut file = beside::open(store, ENDING).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(taken(&mut file)),
            Err(error) => return Err(failed(error.into())),
        }
        // The name is a courtesy: where the disk is full, the lock still holds.
        let named = file
            .set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        if let Err(error) = named {
            tracing::warn!(%error, "the store's lock is held, but does not name its holder");
        }
        Ok(StoreLock { _file: file })
    }
}

fn taken(file: &mut File) -> PortError {
    let mut holder = String::new();
    // The holder may not have written its pid yet.
    let read = file
        .rewind()
        .and_then(|()| file.take(32).read_to_string(&mut holder));
    let who = match (read, holder.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    PortError::conflict("store_locked", format!("the store is in use by {who}"))
        .with_hint("use that one, or end it first")
}

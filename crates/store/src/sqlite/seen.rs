//! The last commit that was made here, in a file beside the store: so that an older copy, put in the store's
//! place behind our back, is known for one. A number and nothing else, written over itself after each commit
//! and not synced: after a power failure it may be too low, which doubts too little and never too much.

use super::beside;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use warren_core::PortError;
use warren_core::ports::store::Revision;

/// Of its name.
const ENDING: &str = ".seen";

/// The open file.
pub(super) struct Seen {
    file: File,
    last: Option<Revision>,
}

impl Seen {
    pub(super) fn open(store: &Path) -> Result<Self, PortError> {
        let failed = |error| PortError::io("cannot open the note beside the store", error);
        let mut file = beside::open(store, ENDING).map_err(failed)?;
        let mut text = String::new();
        // Not readable is as good as not there.
        let last = file
            .by_ref()
            .take(64)
            .read_to_string(&mut text)
            .ok()
            .and_then(|_| text.trim().parse().ok());
        Ok(Seen { file, last })
    }

    /// What was noted when it was opened.
    pub(super) fn last(&self) -> Option<Revision> {
        self.last
    }

    /// Always as many bytes, so that one write is all of it.
    pub(super) fn note(&mut self, revision: Revision) {
        if let Err(error) = self
            .file
            .write_all_at(format!("{revision:020}\n").as_bytes(), 0)
        {
            tracing::debug!(%error, "the last commit could not be noted");
        }
    }
}

/// When it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noting {
    /// After each commit.
    EachCommit,
    /// Not before the store has been accepted: an older copy is not what was seen here.
    NotYet,
}

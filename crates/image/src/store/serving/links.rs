//! Blobs that were just uploaded to a repository, or mounted into it, and that no manifest names yet. A manifest is expected
//! within an hour; so long the blob is shown, and kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::Digest;

/// How long a blob waits for its manifest.
pub(super) const GRACE: Duration = Duration::from_secs(3600);
/// More than any push has.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<(String, Digest), Instant>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Digest), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a blob in a repository.
    pub(super) fn add(&self, repository: &str, digest: &Digest) {
        let now = Instant::now();
        let mut all = self.lock();
        if all.len() >= MOST {
            all.retain(|_, until| *until > now);
        }
        all.insert((repository.to_owned(), digest.clone()), now + GRACE);
    }

    /// Whether it is shown.
    pub(super) fn has(&self, repository: &str, digest: &Digest) -> bool {
        self.lock()
            .get(&(repository.to_owned(), digest.clone()))
            .is_some_and(|until| *until > Instant::now())
    }

    /// Shows it no longer; whether it was.
    pub(super) fn remove(&self, repository: &str, digest: &Digest) -> bool {
        self.lock()
            .remove(&(repository.to_owned(), digest.clone()))
            .is_some_and(|until| until > Instant::now())
    }
}

//! Manifests and configurations that a pull needs: from the blobs that are here, or asked for once, whoever wants them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;

use super::content::{Content, Lease};
use crate::digest::{Digest, Hasher};
use crate::source::SourceError;
use crate::source::manifest::{Descriptor, Fetch, Verbatim};

/// The documents that are being asked for, by digest: a holder of the lock asks, the others wait and find it here.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Asked {
    fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// The documents of one pull. What it has found stays here as long as it lives.
pub(super) struct Documents<'a> {
    content: &'a Content,
    asked: &'a Asked,
    from: &'a dyn Fetch,
    lease: Mutex<Lease>,
}

impl<'a> Documents<'a> {
    pub(super) fn new(content: &'a Content, asked: &'a Asked, from: &'a dyn Fetch) -> Self {
        Documents {
            content,
            asked,
            from,
            lease: Mutex::new(content.lease([])),
        }
    }

    fn here(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        // A damaged one is asked for again, and replaced.
        let bytes = self.content.document(digest).ok().flatten()?;
        (bytes.len() as u64 <= limit).then(|| bytes.into())
    }
}

#[async_trait]
impl Fetch for Documents<'_> {
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.digest()?;
        self.lease
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend([&digest]);
        let asking = self.asked.lock_of(&digest);
        let _asking = asking.lock().await;
        if let Some(bytes) = self.here(&digest, limit) {
            return Ok(bytes);
        }
        let bytes = self.from.fetch(descriptor, limit).await?;
        let mut hasher = Hasher::like(Some(&digest));
        hasher.update(&bytes);
        if hasher.finish() == digest {
            let document = Verbatim {
                digest,
                bytes: bytes.clone().into(),
            };
            // Whoever needs it on disk writes it again, and says why that fails.
            if let Err(error) = self.content.put(vec![document]).await {
                tracing::debug!(%error, "a document was not kept");
            }
        }
        Ok(bytes)
    }
}

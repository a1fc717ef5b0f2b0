//! The downloads under way: one a digest, whoever wants it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

use super::content::Content;
use crate::digest::Digest;
use crate::source::registry::{Client, Download};

#[derive(Debug)]
pub(super) struct Downloads {
    under_way: Mutex<HashMap<Digest, Weak<Download>>>,
    slots: Arc<Semaphore>,
}

/// Where a layer is.
pub(super) enum Layer {
    /// On disk.
    Here(PathBuf),
    /// On its way.
    Coming(Arc<Download>),
}

impl Downloads {
    pub(super) fn new(parallel: usize) -> Self {
        Downloads {
            under_way: Mutex::default(),
            slots: Arc::new(Semaphore::new(parallel.max(1))),
        }
    }

    /// The layer, or a download of it into `content`: the one under way, or a new one.
    pub(super) fn get_or_start(
        &self,
        content: &Content,
        digest: &Digest,
        size: u64,
        client: &Arc<Client>,
    ) -> Layer {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = under_way.get(digest).and_then(Weak::upgrade)
            && !download.is_finished()
        {
            return Layer::Coming(download);
        }
        let path = content.path(digest);
        if content.size(digest) == Some(size) {
            return Layer::Here(path);
        }
        under_way.retain(|_, download| download.strong_count() > 0);
        let download = Download::start(
            Arc::clone(client),
            digest.clone(),
            size,
            path,
            Arc::clone(&self.slots),
        );
        under_way.insert(digest.clone(), Arc::downgrade(&download));
        Layer::Coming(download)
    }
}

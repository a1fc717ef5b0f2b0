//! Verified layers on disk, and the downloads under way: one a digest, whoever wants it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

use super::{StoreError, publish};
use crate::digest::Digest;
use crate::source::registry::{Client, Download};

#[derive(Debug)]
pub(super) struct Blobs {
    directory: PathBuf,
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

impl Blobs {
    pub(super) fn new(directory: PathBuf, parallel: usize) -> Self {
        Blobs {
            directory,
            under_way: Mutex::default(),
            slots: Arc::new(Semaphore::new(parallel.max(1))),
        }
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.algorithm()).join(digest.hex())
    }

    /// The layer, or a download of it: the one under way, or a new one.
    pub(super) fn get_or_start(&self, digest: &Digest, size: u64, client: &Arc<Client>) -> Layer {
        let path = self.path(digest);
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = under_way.get(digest).and_then(Weak::upgrade)
            && !download.is_finished()
        {
            return Layer::Coming(download);
        }
        if path
            .metadata()
            .is_ok_and(|found| found.is_file() && found.len() == size)
        {
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

    pub(super) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        publish::remove(&self.path(digest)).map_err(|source| StoreError::Disk {
            what: "removing a layer",
            source,
        })
    }
}

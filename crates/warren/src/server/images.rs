//! The image store and the writable disks.

use super::config::Config;
use super::data_dir::DataDir;
use std::sync::Arc;
use warren_core::ports::Volumes;
use warren_image::{ImageStore, Options, WritableDisks};

/// Opens the image store, which reaches registries as they are configured.
pub(crate) fn open(config: &Config, data: &DataDir) -> anyhow::Result<Arc<ImageStore>> {
    let options = Options {
        limits: config.image_limits.limits(),
        budget: config.image_budget()?,
        registries: super::registries::settings(config)?,
        containerd: config.containerd_socket.clone(),
        stall: config.image_limits.stall(),
        uploads: config.push_limits.limits(),
        ..Options::default()
    };
    Ok(Arc::new(ImageStore::open(data.root(), options)?))
}

/// Opens the writable disks.
pub(crate) fn volumes(data: &DataDir) -> anyhow::Result<Arc<dyn Volumes>> {
    Ok(Arc::new(WritableDisks::open(data.root())?))
}

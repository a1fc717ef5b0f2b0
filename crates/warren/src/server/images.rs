//! The image store and the writable disks, and the rule which registries may be reached.

use super::config::Config;
use super::data_dir::DataDir;
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::Arc;
use warren_core::PortError;
use warren_core::error::ErrorClass;
use warren_core::image::ImageRecord;
use warren_core::ports::images::{ImageUpkeep, LoadRequest, ProgressSink, PullRequest};
use warren_core::ports::{Images, Volumes};
use warren_image::source::Reference;
use warren_image::{ImageStore, Options, WritableDisks};

/// Opens the image store, behind the configured list of registries if there is one.
pub(crate) fn open(config: &Config, data: &DataDir) -> anyhow::Result<Arc<dyn Images>> {
    let options = Options {
        limits: config.image_limits.limits(),
        budget: config.image_budget()?,
        ..Options::default()
    };
    let store: Arc<dyn Images> = Arc::new(ImageStore::open(data.root(), options)?);
    if config.registries.is_empty() {
        return Ok(store);
    }
    Ok(Arc::new(OnlyFrom {
        registries: config.registries.clone(),
        store,
    }))
}

/// Opens the writable disks.
pub(crate) fn volumes(data: &DataDir) -> anyhow::Result<Arc<dyn Volumes>> {
    Ok(Arc::new(WritableDisks::open(data.root())?))
}

/// Pulls from the listed registries only.
struct OnlyFrom {
    registries: Vec<String>,
    store: Arc<dyn Images>,
}

#[async_trait]
impl Images for OnlyFrom {
    async fn pull(
        &self,
        request: PullRequest,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError> {
        let reference: Reference = request
            .reference
            .parse()
            .map_err(|error| PortError::invalid("bad_reference", format!("{error}")))?;
        let registry = reference.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        if !self
            .registries
            .iter()
            .any(|allowed| allowed == registry || allowed == host)
        {
            return Err(PortError::new(
                ErrorClass::Denied,
                "registry_not_allowed",
                format!(
                    "this server pulls from {} only, not from {registry}",
                    self.registries.join(", ")
                ),
            ));
        }
        self.store.pull(request, progress).await
    }

    async fn load(
        &self,
        request: LoadRequest,
        progress: ProgressSink,
    ) -> Result<Vec<ImageRecord>, PortError> {
        self.store.load(request, progress).await
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        self.store.list().await
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        self.store.find(wanted).await
    }

    async fn disk(&self, digest: &str) -> Result<PathBuf, PortError> {
        self.store.disk(digest).await
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        self.store.remove(id, in_use).await
    }

    fn upkeep(&self) -> &dyn ImageUpkeep {
        self.store.upkeep()
    }
}

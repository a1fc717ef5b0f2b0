//! The registry client against a registry that does what each test tells it to, and against a real one.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod auth;
mod docker;
mod mirrors;
mod platforms;
mod proxies;
mod pull;
mod push;
mod refusals;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::path::Path;
use std::time::Duration;

use server::Server;
use warren_core::PortError;
use warren_core::image::ImageRecord;
use warren_core::ports::Images as _;
use warren_core::ports::images::{PullRequest, Transport};
use warren_image::source::registry::RegistrySettings;
use warren_image::{ImageStore, Options};

/// A registry that is silent for so long is asked again.
const STALL: Duration = Duration::from_millis(400);

/// A store that knows nothing of this machine's own settings.
struct Host {
    images: ImageStore,
    data: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Host::with(RegistrySettings::default(), None)
    }

    /// With settings, and the text of a `config.json`.
    fn with(registries: RegistrySettings, config: Option<&str>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("config.json");
        if let Some(text) = config {
            std::fs::write(&path, text).unwrap();
        }
        let options = Options {
            docker_config: Some(path),
            registries,
            stall: STALL,
            ..Options::default()
        };
        Host {
            images: ImageStore::open(data.path(), options).unwrap(),
            data,
        }
    }

    async fn pull(&self, request: PullRequest) -> Result<ImageRecord, PortError> {
        self.images.pull(request, support::quiet()).await
    }

    /// The pull fails with this code and leaves nothing that could be booted, nor anything half-made.
    async fn refused(&self, request: PullRequest, code: &str) -> PortError {
        let error = self.pull(request).await.unwrap_err();
        assert_eq!(error.code, code, "{error} ({:?})", error.source);
        // The last writer ends on a thread of its own.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !self.temporaries().is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "{:?}",
                self.temporaries()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            files(&self.data.path().join("images/disks")),
            Vec::<String>::new()
        );
        assert_eq!(self.images.list().await.unwrap(), []);
        error
    }

    fn temporaries(&self) -> Vec<String> {
        ["disks", "blobs/sha256", "refs"]
            .iter()
            .flat_map(|directory| files(&self.data.path().join("images").join(directory)))
            .filter(|name| name.starts_with(".tmp-"))
            .collect()
    }
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A pull from a server that speaks plain HTTP.
fn plain(server: &Server, name: &str) -> PullRequest {
    PullRequest {
        reference: format!("{}/{name}", server.host()),
        transport: Transport::PlainHttp,
        ..PullRequest::default()
    }
}

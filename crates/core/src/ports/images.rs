//! Images on a host: how they come in, what is there, and the disk an instance boots from.

use crate::PortError;
use crate::image::{ImageProgress, ImageRecord};
use crate::storage::{ImagesUsage, PruneMode, PruneScope, Pruned, Repair, Verification};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Where progress goes. Called often and from any thread; must not block.
pub type ProgressSink = Arc<dyn Fn(ImageProgress) + Send + Sync>;

/// How to reach a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Transport {
    /// HTTPS only.
    #[default]
    Https,
    /// Plain HTTP, because the user asked for it.
    PlainHttp,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryCredentials {
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A bearer token.
    Token(String),
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryCredentials(…)")
    }
}

/// A pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// As the user wrote it: `nginx`, `localhost:5000/web:1`, `x@sha256:…`.
    pub reference: String,
    /// The user's own id for it; made from the digest when absent.
    pub id: Option<String>,
    /// `os/arch[/variant]`; this host's when absent.
    pub platform: Option<String>,
    /// Plain HTTP only where asked.
    pub transport: Transport,
    /// Given with the request; else those of the configuration file.
    pub credentials: Option<RegistryCredentials>,
    /// The user's labels.
    pub tags: BTreeMap<String, String>,
}

/// A load from this host's file system.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    /// An OCI layout directory, an OCI or docker archive (plain or compressed), or a
    /// root-file-system tarball (plain or compressed); told apart by content.
    pub path: PathBuf,
    /// The reference to give it; needed where the source has none.
    pub name: Option<String>,
    /// The user's own id for it.
    pub id: Option<String>,
    /// Which platform of an index.
    pub platform: Option<String>,
}

/// A push.
#[derive(Debug, Clone, Default)]
pub struct PushRequest {
    /// The id of the image's record.
    pub id: String,
    /// The reference to give it in its registry.
    pub target: String,
    /// Plain HTTP only where asked.
    pub transport: Transport,
    /// Given with the request; else those of the configuration file.
    pub credentials: Option<RegistryCredentials>,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The reference it has there, normalised.
    pub target: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of the blobs that had to be sent.
    pub sent_bytes: u64,
}

/// The image store. Dropping a future of it cancels the work and leaves nothing but verified layers.
#[async_trait]
pub trait Images: Send + Sync {
    /// Whether a pull may be begun at all: its words mean something, and its registry may be reached. Asks nobody.
    fn check_pull(&self, request: &PullRequest) -> Result<(), PortError>;
    /// Resolves a reference, fetches what is missing, converts, records. Pulls of one image at once share the work.
    async fn pull(
        &self,
        request: PullRequest,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError>;
    /// Loads from a path on this host. Several images in one archive give several records.
    async fn load(
        &self,
        request: LoadRequest,
        progress: ProgressSink,
    ) -> Result<Vec<ImageRecord>, PortError>;
    /// Sends what a registry lacks of an image, byte for byte as it came, and names it there. NotFound (`image_not_here`)
    /// without such a record.
    async fn push(&self, request: PushRequest, progress: ProgressSink)
    -> Result<Pushed, PortError>;
    /// All records, by name.
    async fn list(&self) -> Result<Vec<ImageRecord>, PortError>;
    /// The record a user means: an id, a reference (normalised first), a digest, or an unambiguous
    /// prefix of at least four characters of an id or digest.
    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError>;
    /// The read-only disk of an image, by digest: whole, durable, ready to boot. NotFound
    /// (`image_not_here`) if it is not.
    async fn disk(&self, digest: &str) -> Result<PathBuf, PortError>;
    /// Removes the record `id`; its disk too when no other record has the digest and `in_use` does not name it.
    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError>;
    /// Looking after what is there.
    fn upkeep(&self) -> &dyn ImageUpkeep;
}

/// A prune. What nobody has a record of, but an instance runs from, stays.
#[derive(Debug, Clone)]
pub struct PruneRequest {
    /// How much may go.
    pub scope: PruneScope,
    /// Whether it goes.
    pub mode: PruneMode,
    /// The digests of the images of all instances, once for each.
    pub in_use: Vec<String>,
}

/// Looking after the images that are there.
#[async_trait]
pub trait ImageUpkeep: Send + Sync {
    /// Notes that an instance starts from the image `digest`, for the order in which images go when there is no room.
    async fn mark_used(&self, digest: &str) -> Result<(), PortError>;
    /// What the images take. `in_use` are the digests of the images of all instances, once for each.
    async fn usage(&self, in_use: &[String]) -> Result<ImagesUsage, PortError>;
    /// Removes what nothing needs. A Conflict (`image_record_damaged`) while a record cannot be read, because nobody knows
    /// what that one needs.
    async fn prune(&self, request: PruneRequest) -> Result<Pruned, PortError>;
    /// Reads everything again that the image of the record `id` is made of, and hashes it. NotFound (`image_not_here`)
    /// without such a record.
    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError>;
}

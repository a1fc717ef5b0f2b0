//! What goes wrong with content that is served, and what its clients are told.

use warren_core::ports::registry::code;
use warren_core::{ErrorClass, PortError};

use super::described::NoManifest;
use crate::digest::{Digest, DigestError};
use crate::store::{StoreError, UploadError};

/// Why a registry does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// A blob that the repository does not have.
    #[error("there is no blob {digest} in the repository {repository}")]
    BlobUnknown { repository: String, digest: Digest },
    /// A blob that a manifest of the repository names.
    #[error("a manifest of the repository {repository} needs the blob {digest}: delete that first")]
    BlobNeeded { repository: String, digest: Digest },
    /// No such session.
    #[error("there is no such upload: it has ended, or nothing came for too long")]
    UploadUnknown,
    /// Another request.
    #[error("the upload is being written by another request")]
    UploadBusy,
    /// A piece from somewhere else.
    #[error("the next piece must begin at {expected}")]
    OutOfOrder { expected: u64 },
    /// A piece of another length than its headers say.
    #[error("the body does not have the length it was announced with")]
    Size,
    /// Over the limit.
    #[error("a blob may have at most {0} bytes here")]
    BlobTooLarge(u64),
    /// Over the limit, together.
    #[error("the uploads that are not finished have more than {0} bytes together")]
    TooMuchPending(u64),
    /// The body itself.
    #[error("{}", .0.message)]
    Body(PortError),
    /// A digest that is none. Control has checked it.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A manifest that the repository does not have.
    #[error("there is no manifest {name} in the repository {repository}")]
    ManifestUnknown { repository: String, name: String },
    /// A manifest that is none.
    #[error("the manifest cannot be kept: {0}")]
    NoManifest(#[from] NoManifest),
    /// A manifest with another digest than it was pushed by.
    #[error("the manifest has the digest {actual}, not {expected}")]
    ManifestDigest { expected: Digest, actual: Digest },
    /// Content that should have come before.
    #[error("the manifest names {0}, which is not here: push it first")]
    NamedUnknown(Digest),
    /// Content of another size than the manifest says.
    #[error("the manifest says that {digest} has {said} bytes; it has {actual}")]
    NamedSize {
        digest: Digest,
        said: u64,
        actual: u64,
    },
    /// A repository that is full.
    #[error("the repository has more than {0} manifests: delete some first")]
    TooManyManifests(usize),
    /// An image whose layers are no file system.
    #[error("the image cannot be made")]
    Image(#[source] StoreError),
    /// An image that an instance runs from.
    #[error("the image {0} is used by an instance")]
    InUse(String),
    /// A repository without anything.
    #[error("there is no repository {0}")]
    RepositoryUnknown(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An upload.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The disk.
    #[error("a blob cannot be read")]
    Read(#[source] std::io::Error),
}

impl From<ServeError> for PortError {
    fn from(error: ServeError) -> Self {
        let text = error.to_string();
        let not_found = |code| PortError::not_found(code, text.clone());
        let invalid = |code| PortError::invalid(code, text.clone());
        let conflict = |code| PortError::conflict(code, text.clone());
        match error {
            ServeError::BlobUnknown { .. } => not_found(code::BLOB_UNKNOWN),
            ServeError::BlobNeeded { .. } => conflict(code::BLOB_NEEDED),
            ServeError::UploadUnknown | ServeError::Upload(UploadError::Unknown) => {
                not_found(code::UPLOAD_UNKNOWN)
            }
            ServeError::UploadBusy | ServeError::Upload(UploadError::Busy) => {
                conflict(code::UPLOAD_BUSY)
            }
            ServeError::OutOfOrder { .. } | ServeError::Upload(UploadError::Offset { .. }) => {
                conflict(code::OUT_OF_ORDER)
            }
            ServeError::Size => invalid(code::SIZE_INVALID),
            ServeError::BlobTooLarge(_) => invalid(code::BLOB_TOO_LARGE)
                .with_hint("raise push_limits.blob_size in the configuration"),
            ServeError::TooMuchPending(_) | ServeError::Upload(UploadError::TooMany) => {
                PortError::new(ErrorClass::NoCapacity, "too_many_uploads", text)
                    .with_hint("try again when they are finished")
            }
            ServeError::Body(error) => error,
            ServeError::Digest(_)
            | ServeError::ManifestDigest { .. }
            | ServeError::Upload(UploadError::Digest { .. }) => invalid(code::DIGEST_INVALID),
            ServeError::ManifestUnknown { .. } => not_found(code::MANIFEST_UNKNOWN),
            ServeError::NoManifest(_) | ServeError::NamedSize { .. } => {
                invalid(code::MANIFEST_INVALID)
            }
            ServeError::NamedUnknown(_) => not_found(code::MANIFEST_BLOB_UNKNOWN),
            ServeError::TooManyManifests(_) => {
                PortError::new(ErrorClass::NoCapacity, "too_many_manifests", text)
            }
            ServeError::Image(error) => {
                // In the words, and with the code, of a pull that meets the same.
                let mut described = PortError::from(error);
                described.message = format!("the image cannot be made: {}", described.message);
                described
            }
            ServeError::InUse(_) => {
                conflict("image_in_use").with_hint("remove the instances that use it first")
            }
            ServeError::RepositoryUnknown(_) => not_found(code::REPOSITORY_UNKNOWN),
            ServeError::Store(error) => error.into(),
            ServeError::Upload(UploadError::Disk(source)) => {
                PortError::io("an upload cannot be written", source)
            }
            ServeError::Read(source) => PortError::io("a blob cannot be read", source),
        }
    }
}

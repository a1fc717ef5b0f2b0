//! What goes wrong with images, and what users are told of it.

use std::path::PathBuf;
use std::sync::Arc;

use warren_core::PortError;

use super::keep::KeepError;
use crate::changes::ChangesError;
use crate::digest::Digest;
use crate::erofs::ErofsError;
use crate::ext4::{Ext4Error, WriteError};
use crate::merge::MergeError;
use crate::pipeline::ConvertError;
use crate::source::SourceError;
use crate::source::containerd::ContainerdError;
use crate::source::registry::RegistryError;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory.
    #[error("{what} failed")]
    Disk {
        /// At what.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Where the image should come from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its layers.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A failure that several callers share.
    #[error(transparent)]
    Shared(Arc<StoreError>),
    /// An id that cannot be one.
    #[error("{0:?} is not an image id: use letters, digits, dots, dashes and underscores")]
    Id(String),
    /// A source without a name.
    #[error("the source does not say what the image is called")]
    NameNeeded,
    /// One id for several images.
    #[error("the archive has {0} images, which cannot all have one id")]
    OneIdForMany(usize),
    /// An image of which there is no record.
    #[error("the image {0} is not on this host")]
    NotHere(String),
    /// An image whose blobs were never kept.
    #[error("the image {0} cannot go out: only its disk is kept")]
    NotKept(String),
    /// A blob that is needed.
    #[error("the blob {0} is not here")]
    BlobMissing(Digest),
    /// An image that is no longer here as a whole.
    #[error("the image {name} is not whole: its blob {digest} is gone")]
    BlobGone {
        /// The image.
        name: String,
        /// Which blob.
        digest: Digest,
    },
    /// An image whose disk is gone.
    #[error("the disk of the image {0} is gone")]
    DiskGone(String),
    /// An image that cannot be a disk for others.
    #[error("the image {name} cannot be exported")]
    Export {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// The image that an instance runs from, as it came.
    #[error("the layers of {0}, which the instance runs from, are not here any more")]
    BaseGone(Digest),
    /// What an instance has changed.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// A record that cannot be read: nobody knows what it reached.
    #[error("the image record {} is damaged", .0.display())]
    RecordDamaged(PathBuf),
}

impl From<StoreError> for PortError {
    fn from(error: StoreError) -> Self {
        let described = describe(&error);
        described.with_source(error)
    }
}

fn describe(error: &StoreError) -> PortError {
    let text = error.to_string();
    match error {
        StoreError::Shared(shared) => describe(shared),
        StoreError::Disk { what, source } => io(what, source),
        StoreError::Source(source) => describe_source(source),
        StoreError::Convert(convert) => describe_convert(convert),
        StoreError::Id(_) => PortError::invalid("image_id_invalid", text),
        StoreError::NameNeeded => PortError::invalid("image_name_needed", text)
            .with_hint("give it a name: `warren load PATH --name REF`"),
        StoreError::OneIdForMany(_) => {
            PortError::invalid("image_id_ambiguous", text).with_hint("load it without an id")
        }
        StoreError::NotHere(_) => PortError::not_found("image_not_here", text),
        StoreError::NotKept(_) => PortError::conflict("image_not_kept", text)
            .with_hint("pull or load it again"),
        StoreError::BlobMissing(_) => PortError::not_found("blob_not_here", text),
        StoreError::BlobGone { name, .. } => PortError::conflict("blob_missing", text).with_hint(
            format!("bring it in again, with `warren pull {name}` or `warren load`, as it first came"),
        ),
        StoreError::DiskGone(name) => PortError::conflict("image_disk_missing", text)
            .with_hint(format!("`warren image verify --repair {name}` makes it again")),
        StoreError::Export { name, source } => super::export::describe(name, source),
        StoreError::BaseGone(_) => PortError::conflict("image_layers_gone", text).with_hint(
            "pull or load that image again, the very same one, then commit again",
        ),
        StoreError::Changes(changes) => describe_changes(changes),
        StoreError::RecordDamaged(_) => PortError::conflict("image_record_damaged", text)
            .with_hint("nothing is removed while it is there: restore it from a backup, or delete the file and pull its image again"),
    }
}

/// The next step where an image is not what it should be.
const MAKE_ANEW: &str = "build or save the image anew, or get it from elsewhere";

/// The port's own reading of an I/O error; the error itself stays the source.
fn io(what: &str, source: &std::io::Error) -> PortError {
    let copy = match source.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(source.kind(), source.to_string()),
    };
    PortError::io(what, copy)
}

fn describe_source(error: &SourceError) -> PortError {
    let text = error.to_string();
    match error {
        SourceError::Read { what, source } => match source.kind() {
            std::io::ErrorKind::NotFound => {
                PortError::not_found("image_source_not_found", format!("{what} is not there"))
                    .with_hint(
                        "check the path; an OCI layout that is not whole has to be made again",
                    )
            }
            _ => io(&text, source),
        },
        SourceError::NotAnImage => PortError::invalid("not_an_image", text).with_hint(
            "give an OCI layout, the output of `docker save`, or a tarball of a root file system",
        ),
        SourceError::Malformed { .. } => {
            PortError::invalid("image_malformed", text).with_hint(MAKE_ANEW)
        }
        SourceError::Digest { .. } => {
            PortError::retry("image_damaged", text).with_hint("try again, or get it elsewhere")
        }
        SourceError::TooLarge { .. } => PortError::invalid("image_limit_exceeded", text)
            .with_hint("no image needs as much there: make it anew, or get it from elsewhere"),
        SourceError::Limit(_) => limit(text),
        SourceError::Spool(source) => io("laying the archive out on disk", source),
        SourceError::Cancelled => PortError::retry("cancelled", text),
        SourceError::NotRunnable(_) => PortError::invalid("image_not_runnable", text)
            .with_hint("name an image of a root file system: other artifacts cannot be started"),
        SourceError::Platform { .. } => PortError::invalid("image_platform_missing", text)
            .with_hint("choose one of them with `--platform`"),
        SourceError::Reference(_) => PortError::invalid("image_reference_invalid", text)
            .with_hint("write it as in `nginx:1.27` or `registry.example/team/app@sha256:…`"),
        SourceError::Registry(registry) => registry.describe(),
        SourceError::Containerd(_) => PortError::retry("containerd_failed", text)
            .with_hint("look whether containerd runs, or unset CONTAINERD_SOCKET"),
    }
}

fn describe_convert(error: &ConvertError) -> PortError {
    let text = error.to_string();
    match error {
        ConvertError::Read { source, .. } => {
            let inner = source.get_ref();
            // A layer that is still being downloaded fails with the download's own error.
            let registry = inner.and_then(|it| it.downcast_ref::<Arc<RegistryError>>());
            let keep = inner.and_then(|it| it.downcast_ref::<KeepError>());
            let containerd = inner.and_then(|it| it.downcast_ref::<ContainerdError>());
            if let Some(changes) = inner.and_then(|it| it.downcast_ref::<ChangesError>()) {
                return describe_changes(changes);
            }
            match (registry, keep, containerd) {
                (Some(registry), _, _) => registry.describe(),
                (None, Some(KeepError(source)), _) => io("writing a layer", source),
                (None, None, Some(error)) => {
                    PortError::retry("containerd_failed", format!("{text}: {error}"))
                        .with_hint("try again")
                }
                (None, None, None) => io(&text, source),
            }
        }
        ConvertError::Decompress { .. }
        | ConvertError::Size { .. }
        | ConvertError::Digest { .. }
        | ConvertError::DiffId { .. } => PortError::invalid("image_damaged", text)
            .with_hint("get the image again, or from elsewhere"),
        ConvertError::Layer { source, .. } | ConvertError::Finish(source) => {
            describe_merge(&text, source)
        }
        ConvertError::Limit(_) => limit(text),
        ConvertError::Cancelled => PortError::retry("cancelled", text),
    }
}

fn describe_changes(error: &ChangesError) -> PortError {
    let text = error.to_string();
    let because = |why: &dyn std::error::Error| format!("{text}: {why}");
    match error {
        ChangesError::Disk(Ext4Error::Read(source)) => io(&text, source),
        ChangesError::Disk(source @ Ext4Error::Unsupported(_)) => {
            PortError::unsupported("disk_unreadable", because(source))
        }
        ChangesError::Disk(source @ (Ext4Error::NotExt4 | Ext4Error::Damaged(_))) => {
            PortError::invalid("disk_damaged", because(source)).with_hint(
                "stop the instance, start it again, and commit it then: its guest repairs its disk",
            )
        }
        ChangesError::Base(source) => PortError::invalid("image_damaged", because(source))
            .with_hint("`warren image verify --repair` puts it right"),
        ChangesError::Unspeakable { .. } => PortError::invalid("change_unrepresentable", text)
            .with_hint("rename or remove it, then commit again"),
        ChangesError::Limit(_) => limit(text),
        ChangesError::Write(source) => io(&text, source),
    }
}

fn describe_merge(what: &str, error: &MergeError) -> PortError {
    let text = format!("{what}: {error}");
    match error {
        MergeError::Erofs(ErofsError::Write(source)) => io("writing the disk", source),
        MergeError::Erofs(ErofsError::TooLarge { .. }) | MergeError::Limit(_) => limit(text),
        MergeError::HostileName(_) => PortError::invalid("image_hostile", text)
            .with_hint("no tool makes such names by itself: do not trust where the image is from"),
        MergeError::Tar(_)
        | MergeError::Erofs(_)
        | MergeError::HardLink { .. }
        | MergeError::NotADirectory(_)
        | MergeError::SymlinkLoop(_)
        | MergeError::Root => PortError::invalid("image_malformed", text).with_hint(MAKE_ANEW),
    }
}

fn limit(text: String) -> PortError {
    PortError::invalid("image_limit_exceeded", text)
        .with_hint("raise the limit in the configuration if you trust the image")
}

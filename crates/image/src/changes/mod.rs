//! What an instance has changed, as a layer on top of its image.
//!
//! The writable disk of an instance is an ext4 whose directory `upper` is the upper directory of an overlayfs over the image
//! (the guest's agent mounts it with the kernel's own options). This module walks it and writes an OCI layer: what is there as
//! it is, what was removed as whiteouts, what replaced a directory as an opaque one. Entries are sorted, and nothing of now is
//! in it: the same disk always gives the same layer.
//!
//! Left out is what is Warren's and not the user's: `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, which every boot
//! writes anew, and the mount points it makes where the image has none. Sockets are left out too, because no archive holds them.
//!
//! Sources: Linux, `Documentation/filesystems/overlayfs.rst`; OCI image-spec v1.1, `layer.md`.

mod overlay;
mod stream;
mod walk;

use std::fs::File;

use crate::erofs;
use crate::ext4::Ext4Error;
use crate::limits::{LimitExceeded, Limits};

pub(crate) use stream::open;
pub(crate) use walk::{is_empty, write_layer};

/// What changes are read from.
#[derive(Debug)]
pub(crate) struct Changed {
    /// A writable disk that nobody writes to any more.
    pub(crate) disk: File,
    /// The image it was over, where that is still here.
    pub(crate) base: Option<erofs::Reader>,
    /// Entries, depth and lengths have bounds.
    pub(crate) limits: Limits,
}

/// Why no layer can be made of an instance's changes.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The instance's disk.
    #[error("the instance's changes cannot be read")]
    Disk(#[from] Ext4Error),
    /// The image below.
    #[error("the image that the instance runs from cannot be read")]
    Base(#[from] erofs::ReadError),
    /// What a layer has no words for.
    #[error("{path:?} cannot be in an image: {why}")]
    Unspeakable {
        /// Which file.
        path: String,
        /// What about it.
        why: &'static str,
    },
    /// Too much of something.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// Whoever takes the layer.
    #[error("the layer cannot be written")]
    Write(#[source] std::io::Error),
}

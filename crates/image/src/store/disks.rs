//! The disks of a store: one a manifest, shared by all its names.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Behind the digest in a disk's name.
const SUFFIX: &str = ".erofs";

#[derive(Debug)]
pub(super) struct Disks {
    directory: PathBuf,
}

impl Disks {
    pub(super) fn new(directory: PathBuf) -> Self {
        Disks { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the disk of a manifest is, or would be.
    pub(super) fn path(&self, manifest: &Digest) -> PathBuf {
        let name = format!("{}-{}{SUFFIX}", manifest.algorithm(), manifest.hex());
        self.directory.join(name)
    }

    /// A place beside the disks, for what becomes one.
    pub(super) fn beside(&self) -> PathBuf {
        self.directory.join("new")
    }

    pub(super) fn is_here(&self, manifest: &Digest) -> bool {
        self.path(manifest).is_file()
    }

    /// Its size, holes included.
    pub(super) fn size(&self, manifest: &Digest) -> io::Result<u64> {
        Ok(self.path(manifest).metadata()?.len())
    }
}

/// The manifest whose disk has this name.
pub(super) fn manifest_of(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

//! Ways in for `fuzz/`: private decoders of what registries, archives and guests' disks say. Not part of the API.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use async_trait::async_trait;
use futures::executor::block_on;
use warren_core::image::ImageConfig;

use crate::changes::{self, Changed};
use crate::erofs;
use crate::source::SourceError;
use crate::source::archive::ArchiveIndex;
use crate::source::layout::{self, Files};
use crate::source::manifest::{self, Configuration, Descriptor, Fetch, Platform, Wanted};
use crate::source::registry::token::{Challenge, TokenAnswer};
use crate::{Digest, Limits};

/// Follows the first document to an image; the others are what can be fetched. Gives the number of its layers.
pub fn resolve(mut documents: Vec<Vec<u8>>) -> Option<usize> {
    if documents.is_empty() {
        return None;
    }
    let first = documents.swap_remove(0);
    let blobs = Blobs(documents.into_iter().map(|d| (Digest::of(&d), d)).collect());
    let host = Platform::host();
    let image = manifest::resolve(&blobs, first, &host, Wanted::ByHost);
    block_on(image).ok().map(|image| image.layers.len())
}

struct Blobs(HashMap<Digest, Vec<u8>>);

#[async_trait]
impl Fetch for Blobs {
    async fn fetch(&self, descriptor: &Descriptor, _limit: u64) -> Result<Vec<u8>, SourceError> {
        let found = self.0.get(&descriptor.digest()?).cloned();
        found.ok_or(SourceError::NotAnImage)
    }
}

/// What a configuration says is to be run, and the diff-ids of its layers.
pub fn configuration(bytes: &[u8]) -> Option<(ImageConfig, Vec<Digest>)> {
    let configuration = Configuration::parse(bytes).ok()?;
    Some((configuration.run, configuration.diff_ids))
}

/// Parses the index of a layout, a platform and a token server's answer.
pub fn documents(bytes: &[u8]) {
    drop(manifest::parse_index(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(Platform::parse(text));
    }
    if let Ok(answer) = serde_json::from_slice::<TokenAnswer>(bytes) {
        drop(answer.bearer());
    }
}

/// The realm that a `WWW-Authenticate` header names.
pub fn challenge(header: &str) -> Option<String> {
    match Challenge::parse(header)? {
        Challenge::Basic => None,
        Challenge::Bearer { realm, .. } => Some(realm),
    }
}

/// Looks for images in an uncompressed archive. Gives, for each, the promised sizes of its layers and what can be read
/// of them.
pub fn archive(file: File) -> Vec<Vec<(Option<u64>, u64)>> {
    let Ok(Some(index)) = ArchiveIndex::read(file) else {
        return Vec::new();
    };
    let files = Files::Archive(Arc::new(index));
    let in_layout = block_on(layout::read_layout(
        &files,
        &Platform::host(),
        Wanted::ByHost,
    ));
    let found = in_layout
        .ok()
        .flatten()
        .or_else(|| layout::read_docker(&files).ok().flatten());
    let readable = |input: crate::pipeline::LayerInput| {
        let opened = (input.open)(&tokio_util::sync::CancellationToken::new());
        let mut bytes = Vec::new();
        let read = opened.and_then(|from| from.take(1 << 20).read_to_end(&mut bytes));
        (input.size, read.unwrap_or_default() as u64)
    };
    found
        .unwrap_or_default()
        .into_iter()
        .map(|image| image.inputs.into_iter().map(readable).collect())
        .collect()
}

/// Writes the layer of what is on an instance's disk. `None` where that cannot be one.
pub fn write_changes<W: Write>(
    disk: File,
    base: Option<erofs::Reader>,
    limits: Limits,
    to: W,
) -> Option<W> {
    let changed = Changed { disk, base, limits };
    changes::write_layer(&changed, to).ok()
}

/// Whether there is anything in that layer, as it is known before it is made.
pub fn has_changes(disk: File, base: Option<erofs::Reader>, limits: Limits) -> Option<bool> {
    let changed = Changed { disk, base, limits };
    changes::is_empty(&changed).ok().map(|empty| !empty)
}

//! Layers that are written down while they are read for the first time.
//!
//! ```text
//! source ──► Tee ──► conversion (digest, size, diff-id)
//!             └──► temporary file ──► syncing thread ──► blob, once the conversion has found it right
//! ```
//!
//! One pass over the bytes: what a conversion reads from an archive is copied into the page cache on its way, and made
//! durable by a thread of its own while the next layer is read.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use super::content::Content;
use super::publish::Temporary;
use crate::decompress::Compression;
use crate::digest::{Digest, Hasher};
use crate::pipeline::{ConvertError, LayerInput, OpenLayer};

/// A copy that could not be written, told apart from a source that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("a layer cannot be written to disk")]
pub(super) struct KeepError(#[source] pub(super) io::Error);

/// A copy, durable, not verified.
#[derive(Debug)]
pub(super) struct Copy {
    temporary: Temporary,
    /// From its first bytes.
    pub(super) compression: Compression,
}

impl Copy {
    /// Shows it under its digest, which the conversion has found.
    pub(super) fn publish(self, content: &Content, digest: &Digest) -> io::Result<()> {
        self.temporary.show(&content.path(digest))
    }
}

/// What became of the copies, by layer.
type Synced = Vec<(usize, io::Result<Copy>)>;

/// Takes the copies of one conversion.
pub(super) struct Keeper {
    into: Option<Sender<(usize, Temporary)>>,
    syncing: Option<JoinHandle<Synced>>,
}

impl Keeper {
    pub(super) fn start() -> io::Result<Self> {
        let (into, copies) = channel();
        let syncing = std::thread::Builder::new()
            .name("layer-sync".into())
            .spawn(move || sync_all(&copies))?;
        Ok(Keeper {
            into: Some(into),
            syncing: Some(syncing),
        })
    }

    /// Makes an input leave a copy beside the blobs of `content`.
    pub(super) fn tee(&self, layer: usize, input: LayerInput, content: &Content) -> LayerInput {
        let Some(into) = self.into.clone() else {
            return input;
        };
        let beside = content.path(&Digest::of(b""));
        let open = input.open;
        let teed: OpenLayer = Box::new(move |stop: &CancellationToken| {
            let from = open(stop)?;
            let temporary = Temporary::beside(&beside).map_err(failed)?;
            Ok(Box::new(Tee {
                from,
                copy: Some(temporary),
                layer,
                into,
            }))
        });
        LayerInput {
            open: teed,
            ..input
        }
    }

    /// Waits until all copies are durable. Every one of a layer that was read to its end is among them.
    pub(super) fn finish(mut self) -> io::Result<Vec<(usize, Copy)>> {
        self.join()
            .into_iter()
            .map(|(layer, copy)| Ok((layer, copy?)))
            .collect()
    }

    fn join(&mut self) -> Synced {
        self.into = None;
        match self.syncing.take() {
            Some(syncing) => syncing
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Vec::new(),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // No temporary file is left when a failure is told.
        drop(self.join());
    }
}

fn sync_all(copies: &Receiver<(usize, Temporary)>) -> Synced {
    copies
        .iter()
        .map(|(layer, temporary)| (layer, make_durable(temporary)))
        .collect()
}

fn make_durable(mut temporary: Temporary) -> io::Result<Copy> {
    use std::os::unix::fs::FileExt;
    temporary.sync()?;
    let mut start = [0; 4];
    let count = temporary.file().read_at(&mut start, 0)?;
    Ok(Copy {
        temporary,
        compression: Compression::of(&start[..count]),
    })
}

fn failed(source: io::Error) -> io::Error {
    io::Error::other(KeepError(source))
}

/// Copies what passes; hands the copy on at the end.
struct Tee {
    from: Box<dyn Read + Send>,
    copy: Option<Temporary>,
    layer: usize,
    into: Sender<(usize, Temporary)>,
}

impl Read for Tee {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        if let Some(copy) = &mut self.copy {
            copy.file().write_all(&into[..count]).map_err(failed)?;
        }
        if count == 0
            && !into.is_empty()
            && let Some(copy) = self.copy.take()
        {
            // A conversion that has failed wants it no more.
            let _ = self.into.send((self.layer, copy));
        }
        Ok(count)
    }
}

/// Reads a layer of an image whose disk is here already, for its blob alone.
pub(super) fn only_keep(
    layer: usize,
    input: LayerInput,
    content: &Content,
    stop: &CancellationToken,
) -> Result<(), ConvertError> {
    let read = |source| ConvertError::Read { layer, source };
    let (Some(expected), Some(size)) = (input.digest, input.size) else {
        return Err(read(io::ErrorKind::InvalidInput.into()));
    };
    let mut from = (input.open)(stop)
        .map_err(read)?
        .take(size.saturating_add(1));
    let path = content.path(&expected);
    let write = |source| read(failed(source));
    let mut temporary = Temporary::beside(&path).map_err(write)?;
    let mut hasher = Hasher::like(Some(&expected));
    let mut buffer = vec![0; 256 << 10];
    let mut actual = 0;
    loop {
        if stop.is_cancelled() {
            return Err(ConvertError::Cancelled);
        }
        let count = from.read(&mut buffer).map_err(read)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        temporary
            .file()
            .write_all(&buffer[..count])
            .map_err(write)?;
        actual += count as u64;
    }
    if actual != size {
        return Err(ConvertError::Size {
            layer,
            expected: size,
            actual,
        });
    }
    let actual = hasher.finish();
    if actual != expected {
        return Err(ConvertError::Digest {
            layer,
            expected,
            actual,
        });
    }
    temporary.publish(&path).map_err(write)
}

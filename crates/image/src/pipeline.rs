//! Layers in, one verified image out.
//!
//! Two threads: one reads, hashes and decompresses, and runs ahead into the next layer; the other hashes the
//! uncompressed bytes, parses, merges and writes. Between them go buffers over a bounded channel, so memory does not
//! depend on the image. Nothing is published here: what comes out is a complete, unsynced file whose every
//! layer had the digest, the size and the diff-id that were promised, or an error.
//!
//! Called by `store`; blocking, to be run on a thread that may block.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use tokio_util::sync::CancellationToken;

use crate::decompress::Decoder;
use crate::digest::{Digest, Hasher};
use crate::limits::{LimitExceeded, Limits, Meter, Stop};
use crate::merge::{Merge, MergeError, Merged};
use warren_tar::TarError;

/// Uncompressed bytes in one message, and messages under way.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 8;

/// Opens a layer's compressed bytes. The token says when to give up waiting for more of them.
pub type OpenLayer = Box<dyn FnOnce(&CancellationToken) -> io::Result<Box<dyn Read + Send>> + Send>;

/// One layer, and what is promised about it.
pub struct LayerInput {
    /// Of the compressed bytes.
    pub digest: Option<Digest>,
    /// Compressed bytes.
    pub size: Option<u64>,
    /// Of the uncompressed bytes.
    pub diff_id: Option<Digest>,
    /// Where the bytes are.
    pub open: OpenLayer,
}

/// What was found out about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerOutput {
    /// Of the compressed bytes.
    pub digest: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Of the uncompressed bytes.
    pub diff_id: Digest,
    /// Uncompressed bytes.
    pub unpacked: u64,
}

/// A converted image.
#[derive(Debug)]
pub struct Converted {
    /// The image's file, complete, not synced.
    pub file: File,
    /// Its counts.
    pub merged: Merged,
    /// Its layers.
    pub layers: Vec<LayerOutput>,
}

/// Why an image could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A layer's bytes could not be had.
    #[error("layer {layer} cannot be read")]
    Read {
        /// Which, counted from 0.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer's compressed bytes are damaged or end early.
    #[error("layer {layer} cannot be decompressed: it is damaged or cut off")]
    Decompress {
        /// Which.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer's size is not the promised one.
    #[error("layer {layer} has {actual} bytes instead of {expected}")]
    Size {
        /// Which.
        layer: usize,
        /// Promised.
        expected: u64,
        /// Found (at least).
        actual: u64,
    },
    /// A layer's digest is not the promised one.
    #[error("layer {layer} has the digest {actual} instead of {expected}")]
    Digest {
        /// Which.
        layer: usize,
        /// Promised.
        expected: Digest,
        /// Found.
        actual: Digest,
    },
    /// The digest of a layer's uncompressed bytes is not the one in the image's configuration.
    #[error("layer {layer} unpacks to {actual} instead of {expected}")]
    DiffId {
        /// Which.
        layer: usize,
        /// Promised.
        expected: Digest,
        /// Found.
        actual: Digest,
    },
    /// A layer's contents.
    #[error("layer {layer} cannot be applied")]
    Layer {
        /// Which.
        layer: usize,
        /// Why.
        #[source]
        source: MergeError,
    },
    /// The end of the image.
    #[error("the image cannot be finished")]
    Finish(#[source] MergeError),
    /// Too much of something.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The caller does not want it any more.
    #[error("the conversion was cancelled")]
    Cancelled,
}

impl From<Stop> for ConvertError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Limit(limit) => limit.into(),
            Stop::Cancelled => ConvertError::Cancelled,
        }
    }
}

/// Called with the layer and its compressed bytes so far; the last call for a layer has `Done`.
pub type Watch<'a> = &'a (dyn Fn(usize, Step) + Sync);

/// Progress of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many compressed bytes are read.
    Read(u64),
    /// It is applied.
    Done,
}

/// Converts layers, oldest first, into an image in `out`, which is empty. `uuid` is derived from the layers' digests
/// where it is `None`.
///
/// # Errors
/// See [`ConvertError`]. What is in `out` is then of no use.
pub fn convert(
    layers: Vec<LayerInput>,
    out: File,
    uuid: Option<[u8; 16]>,
    limits: &Limits,
    cancel: &CancellationToken,
    watch: Watch<'_>,
) -> Result<Converted, ConvertError> {
    if layers.len() > limits.layers {
        return Err(LimitExceeded::Layers(limits.layers).into());
    }
    let (to_merge, from_decoder) = sync_channel(BUFFERS);
    let (recycle, recycled) = channel();
    // Whatever ends this function ends the thread that may wait for a download.
    let stop = cancel.child_token();
    let _stop_on_return = stop.clone().drop_guard();
    let diff_ids: Vec<Option<Digest>> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    std::thread::scope(|scope| {
        let producer = Producer {
            to_merge,
            recycled,
            meter: Meter::new(limits, &stop),
            stop: &stop,
            watch,
        };
        let spawned = std::thread::Builder::new()
            .name("layer-decoder".into())
            .spawn_scoped(scope, move || producer.run(layers));
        if let Err(source) = spawned {
            return Err(ConvertError::Read { layer: 0, source });
        }
        let stream = Stream {
            from_decoder,
            recycle,
            buffer: Vec::new(),
            position: 0,
            hasher: Hasher::default(),
            unpacked: 0,
            ended: None,
            failure: None,
        };
        let result = merge_all(stream, &diff_ids, out, uuid, limits, watch);
        // The scope waits for the producer, which may be waiting for bytes.
        stop.cancel();
        result
    })
}

enum Message {
    Data(Vec<u8>),
    End { digest: Digest, size: u64 },
    Failed(ConvertError),
}

struct Producer<'a> {
    to_merge: SyncSender<Message>,
    recycled: Receiver<Vec<u8>>,
    meter: Meter<'a>,
    stop: &'a CancellationToken,
    watch: Watch<'a>,
}

impl Producer<'_> {
    fn run(mut self, layers: Vec<LayerInput>) {
        for (index, layer) in layers.into_iter().enumerate() {
            let message = match self.layer(index, layer) {
                Ok(Some((digest, size))) => Message::End { digest, size },
                Ok(None) => return,
                Err(error) => Message::Failed(error),
            };
            let failed = matches!(message, Message::Failed(_));
            if self.to_merge.send(message).is_err() || failed {
                return;
            }
        }
    }

    /// `None` when nobody listens any more.
    fn layer(
        &mut self,
        layer: usize,
        input: LayerInput,
    ) -> Result<Option<(Digest, u64)>, ConvertError> {
        let read = |source| ConvertError::Read { layer, source };
        let hashing = Hashing {
            from: (input.open)(self.stop).map_err(read)?,
            hasher: Hasher::like(input.digest.as_ref()),
            size: 0,
            at_most: input.size.unwrap_or(u64::MAX),
            failure: None,
        };
        let mut compressed = BufReader::with_capacity(128 << 10, hashing);
        if let Err(source) = compressed.fill_buf() {
            return Err(explain_read(layer, source, compressed.get_ref(), self.stop));
        }
        let mut decoder = Decoder::new(&mut compressed).map_err(read)?;
        let mut unpacked = 0u64;
        loop {
            self.meter.check()?;
            let mut buffer = self
                .recycled
                .try_recv()
                .unwrap_or_else(|_| Vec::with_capacity(BUFFER));
            buffer.resize(BUFFER, 0);
            let mut filled = 0;
            let mut failure = None;
            while filled < BUFFER {
                match decoder.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
            if let Some(source) = failure {
                drop(decoder);
                return Err(compressed.into_inner().explain(layer, source, self.stop));
            }
            if filled == 0 {
                break;
            }
            buffer.truncate(filled);
            unpacked += filled as u64;
            let size = inner_of(&decoder).size;
            self.meter.count(filled, unpacked, size)?;
            let Ok(()) = self.to_merge.send(Message::Data(buffer)) else {
                return Ok(None);
            };
            (self.watch)(layer, Step::Read(size));
        }
        // A decoder may stop before the file does.
        io::copy(decoder.into_inner(), &mut io::sink())
            .map_err(|source| explain_read(layer, source, compressed.get_ref(), self.stop))?;
        let hashing = compressed.into_inner();
        if let Some(expected) = input.size
            && hashing.size != expected
        {
            return Err(ConvertError::Size {
                layer,
                expected,
                actual: hashing.size,
            });
        }
        let (actual, size) = (hashing.hasher.finish(), hashing.size);
        (self.watch)(layer, Step::Read(size));
        match input.digest {
            Some(expected) if expected != actual => Err(ConvertError::Digest {
                layer,
                expected,
                actual,
            }),
            _ => Ok(Some((actual, size))),
        }
    }
}

type Compressed<'a> = &'a mut BufReader<Hashing>;

fn inner_of<'a>(decoder: &'a Decoder<Compressed<'_>>) -> &'a Hashing {
    match decoder {
        Decoder::Gzip(decoder) => decoder.get_ref().get_ref(),
        Decoder::Zstd(decoder) => decoder.get_ref().get_ref(),
        Decoder::Plain(from) => from.get_ref(),
    }
}

/// Counts and hashes what passes, and remembers whether the source itself failed: a decoder reports both its own
/// failures and the source's as one kind of error.
struct Hashing {
    from: Box<dyn Read + Send>,
    hasher: Hasher,
    size: u64,
    at_most: u64,
    failure: Option<Failure>,
}

#[derive(Clone, Copy)]
enum Failure {
    Source,
    TooLong,
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = match self.from.read(into) {
            Ok(count) => count,
            Err(error) => {
                self.failure = Some(Failure::Source);
                return Err(error);
            }
        };
        self.size += count as u64;
        if self.size > self.at_most {
            self.failure = Some(Failure::TooLong);
            return Err(io::Error::other("longer than promised"));
        }
        self.hasher.update(&into[..count]);
        Ok(count)
    }
}

impl Hashing {
    fn explain(&self, layer: usize, source: io::Error, stop: &CancellationToken) -> ConvertError {
        match self.failure {
            None => ConvertError::Decompress { layer, source },
            Some(_) => explain_read(layer, source, self, stop),
        }
    }
}

fn explain_read(
    layer: usize,
    source: io::Error,
    hashing: &Hashing,
    stop: &CancellationToken,
) -> ConvertError {
    match hashing.failure {
        Some(Failure::TooLong) => ConvertError::Size {
            layer,
            expected: hashing.at_most,
            actual: hashing.size,
        },
        _ if stop.is_cancelled() => ConvertError::Cancelled,
        _ => ConvertError::Read { layer, source },
    }
}

fn merge_all(
    mut stream: Stream,
    diff_ids: &[Option<Digest>],
    out: File,
    uuid: Option<[u8; 16]>,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Converted, ConvertError> {
    let mut merge = Merge::new(out, *limits);
    let mut outputs = Vec::with_capacity(diff_ids.len());
    let mut chain = Hasher::default();
    for (layer, expected) in diff_ids.iter().enumerate() {
        stream.hasher = Hasher::like(expected.as_ref());
        (stream.unpacked, stream.ended) = (0, None);
        let merged = merge.layer(&mut stream).map(|_| ());
        if let Err(source) = merged {
            return Err(stream.explain(layer, source));
        }
        let (digest, size) = stream.drain()?;
        let diff_id = std::mem::take(&mut stream.hasher).finish();
        match expected {
            Some(expected) if *expected != diff_id => {
                return Err(ConvertError::DiffId {
                    layer,
                    expected: expected.clone(),
                    actual: diff_id,
                });
            }
            _ => {}
        }
        watch(layer, Step::Done);
        chain.update(diff_id.to_string().as_bytes());
        outputs.push(LayerOutput {
            digest,
            size,
            diff_id,
            unpacked: stream.unpacked,
        });
    }
    let uuid = uuid.unwrap_or_else(|| chain.finish().prefix());
    let (file, merged) = merge.finish(uuid).map_err(ConvertError::Finish)?;
    Ok(Converted {
        file,
        merged,
        layers: outputs,
    })
}

/// The uncompressed bytes of one layer after the other, hashed as they pass.
struct Stream {
    from_decoder: Receiver<Message>,
    recycle: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    hasher: Hasher,
    unpacked: u64,
    ended: Option<(Digest, u64)>,
    failure: Option<ConvertError>,
}

impl Stream {
    /// Reads what the archive's reader left.
    fn drain(&mut self) -> Result<(Digest, u64), ConvertError> {
        loop {
            match self.fill_buf().map(<[u8]>::len) {
                Ok(0) => break,
                Ok(count) => self.consume(count),
                Err(_) => return Err(self.failure.take().unwrap_or(ConvertError::Cancelled)),
            }
        }
        self.ended.take().ok_or(ConvertError::Cancelled)
    }

    /// A layer that ends early is most often a damaged one: then the decoder's finding counts.
    fn explain(&mut self, layer: usize, source: MergeError) -> ConvertError {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        if matches!(
            source,
            MergeError::Tar(TarError::Read(_) | TarError::Checksum)
        ) && let Err(failure) = self.drain()
        {
            return failure;
        }
        ConvertError::Layer { layer, source }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.buffer.len() && self.ended.is_none() {
            match self.from_decoder.recv() {
                Ok(Message::Data(data)) => {
                    self.hasher.update(&data);
                    self.unpacked += data.len() as u64;
                    let used = std::mem::replace(&mut self.buffer, data);
                    self.position = 0;
                    if used.capacity() >= BUFFER {
                        // Nobody to recycle for at the end.
                        let _ = self.recycle.send(used);
                    }
                }
                Ok(Message::End { digest, size }) => self.ended = Some((digest, size)),
                Ok(Message::Failed(error)) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("the layer's source failed"));
                }
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

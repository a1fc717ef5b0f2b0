//! A layer on its way from a registry to a file, read by a conversion while it still grows.
//!
//! ```text
//! registry ──► attempts (Range, backoff) ──► writer (hash, write, publish) ──► <blob>
//!                                                └─► Feed, Feed, … follow it
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::RegistryError;
use super::client::Client;
use super::endpoint::{Patience, Retries};
use crate::digest::{Digest, Hasher};
use crate::store::publish;

/// How often a reader looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// A download that runs until it is done, fails, or nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Download {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    written: u64,
    /// Readable from the start; `None` until the first byte.
    file: Option<Arc<File>>,
    outcome: Option<Result<(), Arc<RegistryError>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Result<(), RegistryError>) {
        let mut state = self.lock();
        if state.outcome.is_none() {
            state.outcome = Some(outcome.map_err(Arc::new));
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Download {
    /// Starts a download to `path`, which appears when its digest is verified.
    pub(crate) fn start(
        client: Arc<Client>,
        digest: Digest,
        total: u64,
        path: PathBuf,
        slots: Arc<Semaphore>,
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                written: 0,
                file: None,
                outcome: None,
            }),
            changed: Condvar::new(),
        });
        let download = Arc::new(Download {
            shared: Arc::clone(&shared),
            _stop: stop.clone().drop_guard(),
        });
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = in_turn(slots, run(&client, &digest, total, &path, &shared)) => outcome,
                () = stop.cancelled() => Err(RegistryError::Cancelled),
            };
            shared.finish(outcome);
        });
        download
    }

    /// Bytes so far.
    pub(crate) fn written(&self) -> u64 {
        self.shared.lock().written
    }

    /// Whether it has ended, well or not.
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.lock().outcome.is_some()
    }

    /// A reader from the start, which waits for bytes that are not there yet.
    pub(crate) fn feed(self: &Arc<Self>, stop: CancellationToken) -> Feed {
        Feed {
            download: Arc::clone(self),
            stop,
            position: 0,
        }
    }
}

/// See [`Download::feed`].
pub(crate) struct Feed {
    download: Arc<Download>,
    stop: CancellationToken,
    position: u64,
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let shared = &self.download.shared;
        let mut state = shared.lock();
        // The download has deadlines of its own: it ends in any case.
        loop {
            if self.stop.is_cancelled() {
                return Err(io::Error::other(RegistryError::Cancelled));
            }
            if state.written > self.position
                && let Some(file) = state.file.clone()
            {
                let ready = usize::try_from(state.written - self.position).unwrap_or(usize::MAX);
                drop(state);
                let want = into.len().min(ready);
                let count = file.read_at(&mut into[..want], self.position)?;
                self.position += count as u64;
                return Ok(count);
            }
            match &state.outcome {
                Some(Ok(())) => return Ok(0),
                Some(Err(error)) => return Err(io::Error::other(Arc::clone(error))),
                None => {}
            }
            state = shared
                .changed
                .wait_timeout(state, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Waits for a slot: those who came first go first.
async fn in_turn(
    slots: Arc<Semaphore>,
    work: impl Future<Output = Result<(), RegistryError>>,
) -> Result<(), RegistryError> {
    let _slot = slots
        .acquire_owned()
        .await
        .map_err(|_| RegistryError::Cancelled)?;
    work.await
}

async fn run(
    client: &Client,
    digest: &Digest,
    total: u64,
    path: &Path,
    shared: &Arc<Shared>,
) -> Result<(), RegistryError> {
    let (to_writer, pieces) = mpsc::channel::<Bytes>(8);
    let writer = {
        let (shared, digest, path) = (Arc::clone(shared), digest.clone(), path.to_owned());
        let registry = client.registry().to_owned();
        tokio::task::spawn_blocking(move || write(pieces, &digest, total, &path, &shared, registry))
    };
    let mut transfer = Transfer {
        client,
        digest,
        total,
        received: 0,
        resume: Resume::Range,
        to_writer,
    };
    let mut retries = Retries::new(Patience::Origin);
    let mut ended_short = 0;
    loop {
        let before = transfer.received;
        let outcome = transfer.attempt(retries.failures()).await;
        if transfer.received > before {
            retries.forgive();
            ended_short = 0;
        }
        match outcome {
            Ok(Attempt::Done) => break,
            Ok(Attempt::Refused) => transfer.resume = Resume::Whole,
            // A whole answer that ends too early is a server's mistake, or a proxy's: once more, and no more.
            Ok(Attempt::Short) if ended_short > 0 => {
                return Err(transfer.wrong("a layer that is shorter than its manifest says"));
            }
            Ok(Attempt::Short) => ended_short += 1,
            Err(error) => {
                tracing::debug!(%digest, received = transfer.received, %error, "a layer's download was interrupted");
                tokio::time::sleep(retries.after(error)?).await;
            }
        }
    }
    drop(transfer);
    writer
        .await
        .map_err(|error| RegistryError::Write(io::Error::other(error)))?
}

/// How a download goes on after an interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// From where it ended.
    Range,
    /// From the start, because the server refuses ranges; what is known is passed over.
    Whole,
}

/// How one request for a layer ended.
enum Attempt {
    /// All is there, or nobody writes it any more.
    Done,
    /// The answer was whole, and less than the rest of the layer.
    Short,
    /// The server has nothing from there on.
    Refused,
}

struct Transfer<'a> {
    client: &'a Client,
    digest: &'a Digest,
    total: u64,
    received: u64,
    resume: Resume,
    to_writer: mpsc::Sender<Bytes>,
}

impl Transfer<'_> {
    /// One request, from where the last one ended.
    async fn attempt(&mut self, failures: u32) -> Result<Attempt, RegistryError> {
        let offset = match self.resume {
            Resume::Range => self.received,
            Resume::Whole => 0,
        };
        let asked = self.client.blob(self.digest, offset, failures).await;
        let (endpoint, mut response) = match asked {
            Ok(answer) => answer,
            Err(RegistryError::Status { status: 416, .. }) if offset > 0 => {
                return Ok(Attempt::Refused);
            }
            Err(error) => return Err(error),
        };
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => start_of_range(response.headers())
                .filter(|start| *start == offset)
                .ok_or_else(|| endpoint.wrong("a part of a layer that was not asked for"))?,
            // A registry without ranges sends it all again.
            _ => 0,
        };
        let mut skip = self.received - start;
        loop {
            let mut piece = match endpoint.piece(&mut response).await {
                Ok(Some(piece)) => piece,
                // What comes behind the last byte is of no interest.
                Ok(None) | Err(_) if self.received == self.total => return Ok(Attempt::Done),
                Ok(None) => return Ok(Attempt::Short),
                Err(error) => return Err(error),
            };
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= known as u64;
            let piece = piece.split_off(known);
            if self.received + piece.len() as u64 > self.total {
                return Err(endpoint.wrong("a layer that is larger than its manifest says"));
            }
            self.received += piece.len() as u64;
            if !piece.is_empty() && self.to_writer.send(piece).await.is_err() {
                return Ok(Attempt::Done);
            }
        }
    }

    fn wrong(&self, why: &str) -> RegistryError {
        RegistryError::Wrong {
            registry: self.client.registry().to_owned(),
            why: why.to_owned(),
        }
    }
}

/// Where a part begins: `Content-Range: bytes 5-9/10` (RFC 9110, 14.4).
fn start_of_range(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

/// The writing end: blocking. A temporary file that is not published is gone when it is dropped.
fn write(
    mut pieces: mpsc::Receiver<Bytes>,
    digest: &Digest,
    total: u64,
    path: &Path,
    shared: &Shared,
    registry: String,
) -> Result<(), RegistryError> {
    let mut temporary = publish::Temporary::beside(path).map_err(RegistryError::Write)?;
    let readable = temporary.file().try_clone().map_err(RegistryError::Write)?;
    shared.lock().file = Some(Arc::new(readable));
    let mut hasher = Hasher::like(Some(digest));
    let mut written = 0;
    while let Some(piece) = pieces.blocking_recv() {
        hasher.update(&piece);
        temporary
            .file()
            .write_all(&piece)
            .map_err(RegistryError::Write)?;
        written += piece.len() as u64;
        shared.lock().written = written;
        shared.changed.notify_all();
    }
    if written != total {
        // The sender went away: its own error is the one that counts.
        return Err(RegistryError::Cancelled);
    }
    let actual = hasher.finish();
    if actual != *digest {
        return Err(RegistryError::Wrong {
            registry,
            why: format!("a layer with the digest {actual} instead of {digest}"),
        });
    }
    temporary.publish(path).map_err(RegistryError::Write)?;
    warren_crashpoint::reached("pull.layer-published");
    Ok(())
}

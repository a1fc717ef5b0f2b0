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
use reqwest::header::CONTENT_RANGE;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::RegistryError;
use super::client::{Client, backoff};
use crate::digest::{Digest, Hasher};
use crate::store::publish;

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 5;
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
    let mut received = 0u64;
    let mut failures = 0;
    while received < total || total == 0 {
        let before = received;
        let outcome = attempt(client, digest, total, &mut received, &to_writer).await;
        if to_writer.is_closed() {
            break;
        }
        match outcome {
            Ok(()) => break,
            Err(RegistryError::Unreachable { source, registry }) => {
                failures = if received > before { 1 } else { failures + 1 };
                if failures >= ATTEMPTS {
                    return Err(RegistryError::Unreachable { source, registry });
                }
                tracing::debug!(%digest, received, failures, "layer download interrupted, resuming");
                tokio::time::sleep(backoff(failures)).await;
            }
            Err(error) => return Err(error),
        }
    }
    drop(to_writer);
    writer
        .await
        .map_err(|error| RegistryError::Write(io::Error::other(error)))?
}

/// One request, from where the last one ended.
async fn attempt(
    client: &Client,
    digest: &Digest,
    total: u64,
    received: &mut u64,
    to_writer: &mpsc::Sender<Bytes>,
) -> Result<(), RegistryError> {
    let wrong = |why: &str| RegistryError::Wrong {
        registry: client.registry().to_owned(),
        why: why.to_owned(),
    };
    let mut response = client.blob(digest, *received).await?;
    let mut skip = *received;
    if *received > 0 && response.status() == StatusCode::PARTIAL_CONTENT {
        let start = response.headers().get(CONTENT_RANGE).and_then(|value| {
            value
                .to_str()
                .ok()?
                .strip_prefix("bytes ")?
                .split('-')
                .next()?
                .parse()
                .ok()
        });
        if start != Some(*received) {
            return Err(wrong("a part of a layer that was not asked for"));
        }
        skip = 0;
    }
    while let Some(mut piece) = response
        .chunk()
        .await
        .map_err(|error| client.unreachable(error))?
    {
        // A registry without ranges sends it all again.
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= known as u64;
        let piece = piece.split_off(known);
        if *received + piece.len() as u64 > total {
            return Err(wrong("a layer that is larger than its manifest says"));
        }
        *received += piece.len() as u64;
        if to_writer.send(piece).await.is_err() {
            return Ok(());
        }
    }
    if *received == total {
        return Ok(());
    }
    Err(RegistryError::Unreachable {
        registry: client.registry().to_owned(),
        source: "the connection ended before the layer did".into(),
    })
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
    temporary.publish(path).map_err(RegistryError::Write)
}

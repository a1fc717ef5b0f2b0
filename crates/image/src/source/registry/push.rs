//! Pushing to one repository: blobs that it lacks, then the manifest (distribution-spec v1.1, "Push").
//!
//! A blob is sent whole, in one request, streamed from its file. A request that fails is begun anew: what a registry
//! keeps of half an upload is its own affair.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc;

use super::RegistryError;
use super::endpoint::{Endpoint, Retries, authorized, cause};
use crate::digest::{Digest, Hasher};

/// Read from a file at once.
const PIECE: usize = 256 << 10;
/// A registry moves what it was sent to its storage before it answers.
const COMMIT_TIME: Duration = Duration::from_secs(300);

/// A blob on this host.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    /// A repository of the same registry that has it, most likely.
    pub(crate) also_in: Option<String>,
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// It was there.
    Held,
    /// From another repository of the registry.
    Mounted,
    /// It was sent.
    Sent,
}

/// One repository to push to.
#[derive(Debug)]
pub(crate) struct Pusher {
    endpoint: Endpoint,
}

impl Pusher {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Pusher { endpoint }
    }

    /// Brings a blob into the repository. `sent` hears of the bytes of the attempt under way.
    pub(crate) async fn deliver(
        &self,
        part: &Part,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Delivered, RegistryError> {
        let mut retries = Retries::new(self.endpoint.patience());
        loop {
            match self.try_to_deliver(part, sent).await {
                Ok(delivered) => return Ok(delivered),
                Err(error) => tokio::time::sleep(retries.after(error)?).await,
            }
        }
    }

    /// Puts the manifest under `name`, a tag or its own digest.
    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        digest: &Digest,
        media_type: &str,
        manifest: &Bytes,
    ) -> Result<(), RegistryError> {
        let path = format!("manifests/{name}");
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| self.endpoint.wrong("a manifest of no media type"))?;
        let request = || {
            let request = self.endpoint.http().put(self.endpoint.url(&path));
            request
                .header(CONTENT_TYPE, media_type.clone())
                .body(manifest.clone())
        };
        let mut retries = Retries::new(self.endpoint.patience());
        let response = loop {
            match self.endpoint.ask(&path, request).await {
                Ok(response) => break response,
                Err(error) => tokio::time::sleep(retries.after(error)?).await,
            }
        };
        let stored = response.headers().get("docker-content-digest");
        match stored.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok()) {
            // Another algorithm says nothing about ours.
            Some(stored) if stored.algorithm() == digest.algorithm() && stored != *digest => {
                Err(self.endpoint.wrong(format!(
                    "it has stored the manifest as {stored} instead of {digest}"
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn try_to_deliver(
        &self,
        part: &Part,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Delivered, RegistryError> {
        if self.has(&part.digest).await? {
            return Ok(Delivered::Held);
        }
        let begun = match &part.also_in {
            // Not every registry mounts, and not everybody may read the other repository.
            Some(other) => match self.begin(Some((&part.digest, other))).await {
                Err(RegistryError::Denied { .. } | RegistryError::Status { .. }) => {
                    self.begin(None).await?
                }
                begun => begun?,
            },
            None => self.begin(None).await?,
        };
        if begun.status() == StatusCode::CREATED {
            return Ok(Delivered::Mounted);
        }
        let mut to = self.upload_address(&begun)?;
        to.query_pairs_mut()
            .append_pair("digest", &part.digest.to_string());
        self.upload(part, to, sent).await?;
        Ok(Delivered::Sent)
    }

    async fn has(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let path = format!("blobs/{digest}");
        let request = || self.endpoint.http().head(self.endpoint.url(&path));
        match self.endpoint.ask(&path, request).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, mount: Option<(&Digest, &str)>) -> Result<Response, RegistryError> {
        let path = "blobs/uploads/";
        let query = mount.map(|(digest, from)| {
            let digest = digest.to_string();
            super::token::form(&[("mount", &digest), ("from", from)])
        });
        let url = match query {
            Some(query) => format!("{}?{query}", self.endpoint.url(path)),
            None => self.endpoint.url(path),
        };
        let request = || {
            let request = self.endpoint.http().post(&url);
            request.header(CONTENT_LENGTH, 0)
        };
        self.endpoint.ask(path, request).await
    }

    /// Where an upload goes: an address, or a path of the same registry.
    fn upload_address(&self, begun: &Response) -> Result<Url, RegistryError> {
        let location = begun.headers().get(LOCATION);
        let to = location
            .and_then(|value| begun.url().join(value.to_str().ok()?).ok())
            .ok_or_else(|| self.endpoint.wrong("no address for an upload"))?;
        if begun.url().scheme() == "https" && to.scheme() != "https" {
            return Err(self.endpoint.wrong("an address for an upload without TLS"));
        }
        Ok(to)
    }

    async fn upload(
        &self,
        part: &Part,
        to: Url,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let own = self.endpoint.owns(&to);
        let send = |header: Option<HeaderValue>| {
            let (body, read) = stream(part);
            let request = self
                .endpoint
                .http()
                .put(to.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, part.size)
                .body(body);
            // A storage of its own that the registry points to gets none of our credentials.
            let header = header.filter(|_| own);
            self.watched(authorized(request, header), part, read, sent)
        };
        let response = match own {
            true => self.endpoint.authenticated(send).await?,
            false => send(None).await?,
        };
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => {
                let what = format!("the upload of {}", part.digest);
                Err(self.endpoint.refusal(response, &what).await)
            }
        }
    }

    /// Sends, as long as bytes go out; then waits for the answer.
    async fn watched(
        &self,
        request: reqwest::RequestBuilder,
        part: &Part,
        read: Arc<AtomicU64>,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Response, RegistryError> {
        /// How often progress is told.
        const TICK: Duration = Duration::from_millis(100);
        let answer = request.send();
        tokio::pin!(answer);
        let mut tick = tokio::time::interval(TICK);
        let (mut told, mut since) = (0, tokio::time::Instant::now());
        loop {
            tokio::select! {
                answer = &mut answer => {
                    return answer.map_err(|error| match cause::<Unreadable>(&error) {
                        Some(Unreadable(why)) => RegistryError::Read {
                            digest: part.digest.to_string(),
                            source: io::Error::other(why.clone()),
                        },
                        None => self.endpoint.broken(error),
                    });
                }
                now = tick.tick() => {
                    let so_far = read.load(Ordering::Relaxed);
                    let patience = match so_far == part.size {
                        true => self.endpoint.stall().max(COMMIT_TIME),
                        false => self.endpoint.stall(),
                    };
                    if so_far != told {
                        (told, since) = (so_far, now);
                        sent(told);
                    } else if now - since > patience {
                        return Err(self.endpoint.stalled());
                    }
                }
            }
        }
    }
}

/// A file that cannot be read as what it is said to be.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct Unreadable(String);

/// The bytes of a part, read on a thread that may block, and how many have been taken.
fn stream(part: &Part) -> (reqwest::Body, Arc<AtomicU64>) {
    let (to_body, pieces) = mpsc::channel::<Result<Bytes, Unreadable>>(4);
    let part = part.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read_part(&part.path, &part.digest, part.size, &to_body) {
            // A body that is dropped wants no more.
            let _ = to_body.blocking_send(Err(error));
        }
    });
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let stream = futures::stream::unfold(pieces, move |mut pieces| {
        let counter = Arc::clone(&counter);
        async move {
            let piece = pieces.recv().await?;
            if let Ok(piece) = &piece {
                counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            Some((piece, pieces))
        }
    });
    (reqwest::Body::wrap_stream(stream), taken)
}

/// Reads and verifies: the last piece is sent only when the whole has the digest.
fn read_part(
    path: &Path,
    digest: &Digest,
    size: u64,
    to: &mpsc::Sender<Result<Bytes, Unreadable>>,
) -> Result<(), Unreadable> {
    let unreadable = |error: io::Error| Unreadable(error.to_string());
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Hasher::like(Some(digest));
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        let mut piece = vec![0; want];
        file.read_exact(&mut piece).map_err(unreadable)?;
        hasher.update(&piece);
        left -= want as u64;
        if left == 0 && std::mem::take(&mut hasher).finish() != *digest {
            return Err(Unreadable("its content is not what its digest says".into()));
        }
        if to.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

//! Uploads under way as clients know them: by a UUID, in one repository, dropped when nothing came for a while.
//!
//! A session lives in this process, as the upload behind it does: a server that starts anew knows none, and its clients
//! begin again.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use warren_core::ports::registry::Piece;
use warren_crashpoint::reached;

use super::ServeError;
use crate::digest::Digest;
use crate::store::content::Content;

/// Pieces of this size go to the disk: bodies come in smaller ones.
const WRITE: usize = 1 << 20;

/// Bounds of what may be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes of one blob.
    pub blob_bytes: u64,
    /// Bytes of all uploads that are not finished.
    pub pending_bytes: u64,
    /// An upload to which nothing came for so long is given up.
    pub idle: Duration,
}

impl Default for UploadLimits {
    fn default() -> Self {
        UploadLimits {
            blob_bytes: 64 << 30,
            pending_bytes: 256 << 30,
            idle: Duration::from_secs(3600),
        }
    }
}

#[derive(Debug)]
pub(super) struct Sessions {
    limits: UploadLimits,
    all: Mutex<HashMap<String, Session>>,
}

#[derive(Debug, Clone)]
struct Session {
    repository: String,
    /// The upload's id in the content.
    upload: String,
    touched: Instant,
    /// As was written last.
    offset: u64,
    /// Held by the request that writes.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Sessions {
    pub(super) fn new(limits: UploadLimits) -> Self {
        Sessions {
            limits,
            all: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one.
    pub(super) async fn begin(
        self: &Arc<Self>,
        content: &Arc<Content>,
        repository: &str,
    ) -> Result<String, ServeError> {
        let upload = content.create_upload().await?;
        let id = uuid()?;
        let session = Session {
            repository: repository.to_owned(),
            upload,
            touched: Instant::now(),
            offset: 0,
            writing: Arc::default(),
        };
        self.lock().insert(id.clone(), session);
        let (sessions, content) = (Arc::downgrade(self), Arc::downgrade(content));
        tokio::spawn(give_up_when_idle(
            sessions,
            content,
            id.clone(),
            self.limits.idle,
        ));
        Ok(id)
    }

    fn get(&self, repository: &str, id: &str) -> Result<Session, ServeError> {
        let mut all = self.lock();
        let session = all
            .get_mut(id)
            .filter(|session| session.repository == repository)
            .ok_or(ServeError::UploadUnknown)?;
        session.touched = Instant::now();
        Ok(session.clone())
    }

    /// How many bytes one has.
    pub(super) fn offset(&self, repository: &str, id: &str) -> Result<u64, ServeError> {
        Ok(self.get(repository, id)?.offset)
    }

    /// Appends a piece; how many bytes there are then. What came before a failure stays.
    pub(super) async fn append(
        &self,
        content: &Content,
        repository: &str,
        id: &str,
        piece: Piece,
    ) -> Result<u64, ServeError> {
        let session = self.get(repository, id)?;
        let _writing = session
            .writing
            .try_lock()
            .map_err(|_| ServeError::UploadBusy)?;
        self.write(content, repository, id, piece).await
    }

    /// Appends a last piece, and makes a blob of all; how many bytes it has. The session is over unless the piece itself
    /// did not come.
    pub(super) async fn finish(
        &self,
        content: &Content,
        repository: &str,
        id: &str,
        piece: Piece,
        digest: &Digest,
    ) -> Result<u64, ServeError> {
        let session = self.get(repository, id)?;
        let _writing = session
            .writing
            .try_lock()
            .map_err(|_| ServeError::UploadBusy)?;
        self.write(content, repository, id, piece).await?;
        self.lock().remove(id);
        let size = content.finish_upload(&session.upload, digest).await?;
        reached("receive.blob-published");
        Ok(size)
    }

    /// Gives one up.
    pub(super) fn cancel(
        &self,
        content: &Content,
        repository: &str,
        id: &str,
    ) -> Result<(), ServeError> {
        let session = self.get(repository, id)?;
        self.lock().remove(id);
        content.cancel_upload(&session.upload);
        Ok(())
    }

    async fn write(
        &self,
        content: &Content,
        repository: &str,
        id: &str,
        piece: Piece,
    ) -> Result<u64, ServeError> {
        let session = self.get(repository, id)?;
        let begin = session.offset;
        if piece.at.is_some_and(|at| at != begin) {
            return Err(ServeError::OutOfOrder { expected: begin });
        }
        if let Some(length) = piece.length {
            self.admit(begin.saturating_add(length), length)?;
        }
        let mut writer = Writer {
            sessions: self,
            content,
            id,
            upload: &session.upload,
            offset: begin,
            waiting: BytesMut::new(),
        };
        let mut bytes = piece.bytes;
        let mut came = 0u64;
        while let Some(chunk) = bytes.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    // The client may go on behind what came.
                    writer.flush().await?;
                    return Err(ServeError::Body(error));
                }
            };
            came += chunk.len() as u64;
            if piece.length.is_some_and(|length| came > length) {
                return Err(ServeError::Size);
            }
            self.admit(begin + came, chunk.len() as u64)?;
            writer.take(chunk).await?;
        }
        writer.flush().await?;
        let offset = writer.offset;
        if piece.length.is_some_and(|length| came != length) {
            return Err(ServeError::Size);
        }
        Ok(offset)
    }

    /// Whether an upload may grow to `size`, by `more`.
    fn admit(&self, size: u64, more: u64) -> Result<(), ServeError> {
        if size > self.limits.blob_bytes {
            return Err(ServeError::BlobTooLarge(self.limits.blob_bytes));
        }
        let pending: u64 = self.lock().values().map(|session| session.offset).sum();
        if pending.saturating_add(more) > self.limits.pending_bytes {
            return Err(ServeError::TooMuchPending(self.limits.pending_bytes));
        }
        Ok(())
    }

    fn progressed(&self, id: &str, offset: u64) {
        if let Some(session) = self.lock().get_mut(id) {
            session.offset = offset;
            session.touched = Instant::now();
        }
    }
}

/// Collects small pieces into large ones.
struct Writer<'a> {
    sessions: &'a Sessions,
    content: &'a Content,
    id: &'a str,
    upload: &'a str,
    offset: u64,
    waiting: BytesMut,
}

impl Writer<'_> {
    async fn take(&mut self, chunk: Bytes) -> Result<(), ServeError> {
        if self.waiting.is_empty() && chunk.len() >= WRITE {
            return self.append(chunk).await;
        }
        self.waiting.extend_from_slice(&chunk);
        if self.waiting.len() >= WRITE {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ServeError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = self.waiting.split().freeze();
        self.append(piece).await
    }

    async fn append(&mut self, piece: Bytes) -> Result<(), ServeError> {
        let written = self.content.append(self.upload, self.offset, piece).await;
        match written {
            Ok(offset) => {
                self.offset = offset;
                self.sessions.progressed(self.id, offset);
                Ok(())
            }
            Err(error) => {
                // It cannot go on.
                self.sessions.lock().remove(self.id);
                self.content.cancel_upload(self.upload);
                Err(error.into())
            }
        }
    }
}

/// Waits as long as something comes now and then.
async fn give_up_when_idle(
    sessions: Weak<Sessions>,
    content: Weak<Content>,
    id: String,
    idle: Duration,
) {
    loop {
        let deadline = {
            let (Some(sessions), Some(content)) = (sessions.upgrade(), content.upgrade()) else {
                return;
            };
            let mut all = sessions.lock();
            let Some(session) = all.get(&id) else { return };
            let writing = session.writing.try_lock().is_err();
            if session.touched.elapsed() >= idle && !writing {
                let session = all.remove(&id);
                drop(all);
                if let Some(session) = session {
                    content.cancel_upload(&session.upload);
                    tracing::info!(
                        repository = session.repository,
                        bytes = session.offset,
                        "an upload was given up: nothing came any more"
                    );
                }
                return;
            }
            (session.touched + idle).max(Instant::now() + Duration::from_secs(1))
        };
        tokio::time::sleep_until(deadline.into()).await;
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Result<String, ServeError> {
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
        .map_err(io::Error::from)
        .map_err(crate::store::UploadError::from)?;
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Ok(parts.join("-"))
}

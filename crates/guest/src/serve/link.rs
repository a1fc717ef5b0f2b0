//! A byte stream on which hosts attach one after the other, and the view one session has of it.
//!
//! ```text
//!            key+nonce                      key seen | end of stream | hang-up
//! searching ───────────► session (echo, then yamux) ───────────► searching
//! ```
//!
//! All reads go through the scanner, in a session too; bytes are passed on at once.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::protocol::attach::{AttachScanner, Scan};
use crate::protocol::{AttachKey, Nonce};

const CHUNK: usize = 16 * 1024;

/// Tells a session that its host has hung up, where the stream can know: a port stays open then, but
/// the session is over. Streams that end instead (sockets) never report it.
pub trait HangUp {
    /// True once for each hang-up since the last call.
    fn take_hang_up(&mut self) -> bool {
        false
    }
}

impl HangUp for tokio::net::UnixStream {}
impl HangUp for tokio::io::DuplexStream {}

#[derive(Debug)]
struct Shared<S> {
    io: S,
    scanner: AttachScanner,
    /// Read but not yet scanned or passed on: what followed an attach in its chunk.
    unread: Bytes,
    /// Scanned, but more than the session's buffer held.
    passed: Bytes,
    /// Where chunks are read to.
    chunk: BytesMut,
    /// An attach that ended the session.
    next: Option<Nonce>,
    /// The session is over, for whatever reason.
    over: bool,
    /// The stream itself has ended.
    ended: bool,
}

/// The guest's side of a line. Ends when the stream does; a port's never does.
#[derive(Debug)]
pub struct Link<S> {
    shared: Arc<Mutex<Shared<S>>>,
}

impl<S: AsyncRead + AsyncWrite + HangUp + Unpin> Link<S> {
    /// A line nobody has attached to.
    pub fn new(io: S, key: &AttachKey) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                io,
                scanner: AttachScanner::new(key),
                unread: Bytes::new(),
                passed: Bytes::new(),
                chunk: BytesMut::with_capacity(CHUNK),
                next: None,
                over: true,
                ended: false,
            })),
        }
    }

    /// Waits for the next attach and answers it; `None` when the stream has ended. The session that was
    /// handed out before must have been dropped: it would get nothing but end of file.
    pub async fn attach(&mut self) -> io::Result<Option<SessionIo<S>>> {
        loop {
            let Some(nonce) = std::future::poll_fn(|cx| self.lock().poll_attach(cx)).await? else {
                return Ok(None);
            };
            // An attach that arrives while this one's echo is being written wins.
            let mut echo = Echo {
                shared: &self.shared,
                nonce,
                sent: 0,
            };
            if std::future::poll_fn(|cx| echo.poll_send(cx)).await? {
                let mut shared = self.lock();
                shared.over = false;
                shared.passed.clear();
                // A hang-up before this attach is none of this session's.
                shared.io.take_hang_up();
                drop(shared);
                return Ok(Some(SessionIo {
                    shared: Arc::clone(&self.shared),
                }));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<S>> {
        lock(&self.shared)
    }
}

/// Nothing under this lock can panic half way through a change that matters: a poisoned one is taken as it is.
fn lock<S>(shared: &Mutex<Shared<S>>) -> MutexGuard<'_, Shared<S>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + AsyncWrite + HangUp + Unpin> Shared<S> {
    /// Reads and scans until a whole attach has been seen.
    fn poll_attach(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Nonce>>> {
        loop {
            if let Some(nonce) = self.next.take() {
                return Poll::Ready(Ok(Some(nonce)));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match self.poll_scan(cx) {
                // Bytes outside of a session belong to nobody.
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.passed.is_empty() {
            return self.poll_scan(cx);
        }
        Poll::Ready(Ok(std::mem::take(&mut self.passed)))
    }

    /// The next scanned bytes of the running session; empty when it is over.
    fn poll_scan(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.unread.is_empty() {
            self.chunk.clear();
            self.chunk.reserve(CHUNK);
            let mut read = std::pin::pin!(self.io.read_buf(&mut self.chunk));
            match read.as_mut().poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    self.over = true;
                    return Poll::Ready(Ok(Bytes::new()));
                }
                Poll::Ready(Ok(_)) => self.unread = self.chunk.split().freeze(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.io.take_hang_up() && !self.over {
                        self.over = true;
                        return Poll::Ready(Ok(Bytes::new()));
                    }
                    return Poll::Pending;
                }
            }
        }
        let bytes = std::mem::take(&mut self.unread);
        Poll::Ready(Ok(match self.scanner.feed(&bytes) {
            Scan::Nothing => bytes,
            Scan::KeySeen => {
                self.over = true;
                Bytes::new()
            }
            Scan::Attached { nonce, consumed } => {
                self.over = true;
                self.next = Some(nonce);
                self.unread = bytes.slice(consumed..);
                Bytes::new()
            }
        }))
    }
}

struct Echo<'a, S> {
    shared: &'a Mutex<Shared<S>>,
    nonce: Nonce,
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + HangUp + Unpin> Echo<'_, S> {
    /// Writes the nonce; false if another attach came first. Does not read while there are bytes that
    /// belong to the session about to start.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut shared = lock(self.shared);
        while self.sent < self.nonce.len() {
            match Pin::new(&mut shared.io).poll_write(cx, &self.nonce[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.sent += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // A host sends nothing before it has the echo: whatever comes is another attach.
                    match shared.poll_scan(cx) {
                        Poll::Ready(Ok(_)) if shared.ended || shared.next.is_some() => {
                            return Poll::Ready(Ok(false));
                        }
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
        Pin::new(&mut shared.io).poll_flush(cx).map_ok(|()| true)
    }
}

/// The stream as one session sees it: it ends where the next attach begins.
#[derive(Debug)]
pub struct SessionIo<S> {
    shared: Arc<Mutex<Shared<S>>>,
}

impl<S: AsyncRead + AsyncWrite + HangUp + Unpin> AsyncRead for SessionIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        if shared.over {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = match shared.poll_passed(cx) {
            Poll::Ready(Ok(bytes)) => bytes,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        };
        let take = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..take]);
        bytes.advance(take);
        shared.passed = bytes;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + HangUp + Unpin> AsyncWrite for SessionIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.shared);
        if shared.over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut shared.io).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        if shared.over {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut shared.io).poll_flush(cx)
    }

    /// Ends the session, not the stream: the next host attaches on the same one.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl<S> Drop for SessionIo<S> {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.over = true;
    }
}

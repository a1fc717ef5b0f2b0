//! The host's half of the attach handshake.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::protocol::attach::TOKEN_LENGTH;
use crate::protocol::{AttachKey, Nonce};

/// Sends key and nonce, then drops everything until the nonce comes back. The caller sets the deadline.
pub(super) async fn attach<S>(mut stream: S, key: &AttachKey) -> io::Result<Prefixed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let nonce: Nonce = rand::random();
    let mut opening = [0; 2 * TOKEN_LENGTH];
    opening[..TOKEN_LENGTH].copy_from_slice(&key.0);
    opening[TOKEN_LENGTH..].copy_from_slice(&nonce);
    stream.write_all(&opening).await?;
    stream.flush().await?;
    let mut seen = BytesMut::with_capacity(16 * 1024);
    loop {
        seen.reserve(4096);
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(start) = memmem::find(&seen, &nonce) {
            seen.advance(start + TOKEN_LENGTH);
            return Ok(Prefixed::new(seen.freeze(), stream));
        }
        let done = seen.len().saturating_sub(TOKEN_LENGTH - 1);
        seen.advance(done);
    }
}

/// A stream some bytes of which have been read already.
#[derive(Debug)]
pub(super) struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    pub(super) fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let take = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

//! One yamux session over one attached byte stream: the task that drives it, and streams as tokio sees them.
//!
//! yamux makes progress only while it is polled; [`drive`] is that task on either side. It never opens
//! more streams than the peer's limit, because yamux answers an excess by ending the whole connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

pub use yamux::ConnectionError;

/// Streams the host opens at most at a time.
pub const STREAM_LIMIT: usize = 512;

/// What is written to the channel at once; a port takes no more of one write.
const GATHERED: usize = 32 * 1024;
/// What is read ahead of the frame that is wanted: every session of a host has room for it.
const READ_AHEAD: usize = 8 * 1024;

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    // Twice the permits: a stream counts on both sides until its last frame is through.
    config
        .set_max_connection_receive_window(Some(STREAM_LIMIT * 2 * yamux::DEFAULT_CREDIT as usize));
    config.set_max_num_streams(STREAM_LIMIT * 2);
    config
}

/// One stream of a session.
#[derive(Debug)]
pub struct MuxStream {
    inner: Compat<yamux::Stream>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Keeps what is written until there is nothing more to say, which is when the session turns to reading. yamux writes headers and
/// bodies one by one and flushes after each: every piece would be an exit of the guest, an interrupt in it and a wake-up here.
#[derive(Debug)]
struct Gathering<S> {
    io: S,
    unsent: BytesMut,
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn new(io: S) -> Self {
        Self {
            io,
            unsent: BytesMut::new(),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // A channel that takes nothing now does not keep this side from reading, and wakes it.
        if !self.unsent.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.unsent.len() >= GATHERED {
            ready!(self.poll_send(cx))?;
        }
        let take = data.len().min(GATHERED);
        self.unsent.extend_from_slice(&data[..take]);
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct SessionOver;

/// Opens streams on a session that [`drive`] keeps going. When the last clone is dropped, the session is closed.
#[derive(Debug, Clone)]
pub struct Opener {
    requests: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    permits: Arc<Semaphore>,
}

impl Opener {
    /// Opens a stream, waiting while [`STREAM_LIMIT`] of them are open.
    pub async fn open(&self) -> Result<MuxStream, SessionOver> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| SessionOver)?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| SessionOver)?;
        let stream = answer.await.map_err(|_| SessionOver)?;
        Ok(MuxStream {
            inner: stream.compat(),
            _permit: Some(permit),
        })
    }
}

/// A session on the host's side: what opens streams, and the future that must be polled for it to live.
pub fn host<S>(
    io: S,
) -> (
    Opener,
    impl Future<Output = Result<(), ConnectionError>> + Send,
)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, receiver) = mpsc::channel(16);
    let opener = Opener {
        requests,
        permits: Arc::new(Semaphore::new(STREAM_LIMIT)),
    };
    let io = Gathering::new(BufReader::with_capacity(READ_AHEAD, io));
    let connection = yamux::Connection::new(io.compat(), config(), yamux::Mode::Client);
    // Streams that a guest opens are dropped, which resets them.
    (opener, drive(connection, Some(receiver), drop))
}

/// A session on the guest's side: `accept` is called with every stream the host opens and must not block.
pub fn guest<S>(
    io: S,
    mut accept: impl FnMut(MuxStream) + Send,
) -> impl Future<Output = Result<(), ConnectionError>> + Send
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection =
        yamux::Connection::new(Gathering::new(io).compat(), config(), yamux::Mode::Server);
    drive(connection, None, move |stream| {
        accept(MuxStream {
            inner: stream.compat(),
            _permit: None,
        });
    })
}

type Requests = mpsc::Receiver<oneshot::Sender<yamux::Stream>>;

async fn drive<S>(
    mut connection: yamux::Connection<Compat<S>>,
    mut requests: Option<Requests>,
    mut accept: impl FnMut(yamux::Stream) + Send,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut waiting: Option<oneshot::Sender<yamux::Stream>> = None;
    let mut closing = false;
    poll_fn(|cx| {
        loop {
            if closing {
                return connection.poll_close(cx);
            }
            if waiting.is_none()
                && let Some(receiver) = &mut requests
                && let Poll::Ready(request) = receiver.poll_recv(cx)
            {
                closing = request.is_none();
                waiting = request;
                continue;
            }
            if let Some(reply) = waiting.take() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        // A requester that gave up drops its stream, which closes it.
                        let _ = reply.send(stream);
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => waiting = Some(reply),
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => accept(stream),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

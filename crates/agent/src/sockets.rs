//! Sockets inside guests, by way of their agents.

use crate::agent::AgentLink;
use crate::guest_session::{GuestSession, guest_error};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use warren_core::ports::guest_sockets::{
    GuestConnection, GuestEndpoint, GuestListener, GuestSocket, GuestSockets, ListenPlace,
    SocketSink,
};
use warren_core::{InstanceId, PortError};
use warren_guest::client;
use warren_guest::protocol;

/// What is read from a guest at a time.
const CHUNK: usize = 32 << 10;

#[async_trait]
impl GuestSockets for AgentLink {
    async fn connect(&self, id: &InstanceId, to: GuestEndpoint) -> Result<GuestSocket, PortError> {
        let session = self.0.session(id).await?;
        let endpoint = match to {
            GuestEndpoint::Tcp(address) => protocol::Endpoint::Tcp {
                address: address.ip(),
                port: address.port(),
            },
            GuestEndpoint::Path(path) => protocol::Endpoint::Socket { path },
        };
        let stream = session.client.connect(endpoint).await;
        Ok(socket(stream.map_err(guest_error)?, session))
    }

    async fn listen(
        &self,
        id: &InstanceId,
        place: ListenPlace,
    ) -> Result<GuestListener, PortError> {
        let session = self.0.session(id).await?;
        let place = match place {
            ListenPlace::Tcp(address, port) => protocol::ListenPlace::Tcp { address, port },
            ListenPlace::Path { path, user } => protocol::ListenPlace::Socket { path, user },
            ListenPlace::Private { user } => protocol::ListenPlace::Private { user },
        };
        let listener = session.client.listen(place).await.map_err(guest_error)?;
        Ok(GuestListener {
            path: listener.path.clone(),
            port: listener.port,
            connections: Box::pin(stream::unfold(
                Some((listener, session)),
                |state| async move {
                    let (mut listener, session) = state?;
                    match next(&mut listener, &session).await {
                        Ok(connection) => Some((Ok(connection?), Some((listener, session)))),
                        Err(error) => Some((Err(error), None)),
                    }
                },
            )),
        })
    }
}

async fn next(
    listener: &mut client::GuestListener,
    session: &Arc<GuestSession>,
) -> Result<Option<GuestConnection>, PortError> {
    loop {
        let Some(incoming) = listener.next().await.map_err(guest_error)? else {
            return Ok(None);
        };
        match listener.accept(incoming).await {
            Ok(stream) => {
                return Ok(Some(GuestConnection {
                    from: incoming.from.map(canonical),
                    socket: socket(stream, Arc::clone(session)),
                }));
            }
            // It was hung up on, or whoever connected has gone.
            Err(client::ClientError::Refused { .. }) => {}
            Err(error) => return Err(guest_error(error)),
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The session is kept as long as the connection is read from.
fn socket(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    session: Arc<GuestSession>,
) -> GuestSocket {
    let (read, write) = tokio::io::split(stream);
    let output = stream::unfold(Some((read, session)), |state| async move {
        let (mut read, session) = state?;
        let mut chunk = Vec::with_capacity(CHUNK);
        match read.read_buf(&mut chunk).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(chunk)), Some((read, session)))),
            Err(error) => Some((Err(gone(error)), None)),
        }
    });
    GuestSocket {
        input: Box::new(Input(write)),
        output: Box::pin(output),
    }
}

struct Input<S>(WriteHalf<S>);

#[async_trait]
impl<S: AsyncWrite + Send + Unpin> SocketSink for Input<S> {
    async fn send(&mut self, data: Bytes) -> Result<(), PortError> {
        self.0.write_all(&data).await.map_err(gone)
    }

    async fn close(&mut self) -> Result<(), PortError> {
        self.0.shutdown().await.map_err(gone)
    }
}

fn gone(error: std::io::Error) -> PortError {
    guest_error(client::ClientError::ChannelGone(Some(Arc::new(error))))
}

//! SSH to an instance: the bytes of the protocol, over a WebSocket.

use super::exec::broken;
use super::{Client, ClientError};
use crate::ssh::SshHostKey;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::{Method, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Socket = WebSocketStream<Upgraded>;

/// Towards an instance's SSH server.
pub struct SshWriter {
    sink: SplitSink<Socket, Message>,
    server: String,
}

/// From an instance's SSH server.
pub struct SshReader {
    stream: SplitStream<Socket>,
    server: String,
}

impl Client {
    /// `GET /instances/{id}/ssh`: a connection to the instance's SSH server.
    ///
    /// # Errors
    /// [`ClientError`]; what the server refuses before the upgrade comes back as its problem.
    pub async fn ssh(&self, id: &str) -> Result<(SshWriter, SshReader), ClientError> {
        let (sink, stream) = self.socket(&["instances", id, "ssh"], &[]).await?.split();
        let server = self.base.to_string();
        let writer = SshWriter {
            sink,
            server: server.clone(),
        };
        Ok((writer, SshReader { stream, server }))
    }

    /// `GET /instances/{id}/ssh/host-key`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ssh_host_key(&self, id: &str) -> Result<SshHostKey, ClientError> {
        self.json(self.request(Method::GET, &["instances", id, "ssh", "host-key"]))
            .await
    }
}

impl SshWriter {
    /// Sends; waits while the server does not read.
    ///
    /// # Errors
    /// [`ClientError::Transport`] when the connection is gone.
    pub async fn send(&mut self, data: Bytes) -> Result<(), ClientError> {
        let sent = self.sink.send(Message::Binary(data)).await;
        sent.map_err(|error| broken(&self.server, &error))
    }

    /// Says that no more comes.
    ///
    /// # Errors
    /// [`ClientError::Transport`] when the connection is gone.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        let closed = self.sink.close().await;
        closed.map_err(|error| broken(&self.server, &error))
    }
}

impl SshReader {
    /// The next bytes; `None` when the server has closed the connection.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        loop {
            return match self.stream.next().await? {
                Ok(Message::Binary(data)) => Some(Ok(data)),
                Ok(Message::Close(_)) => None,
                Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    continue;
                }
                Err(error) => Some(Err(broken(&self.server, &error))),
            };
        }
    }
}

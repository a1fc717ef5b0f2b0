//! Connections in the guest, made or waited for by the host.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::time::timeout;

use super::{ANSWER_DEADLINE, ClientError, GuestClient, attach};
use crate::protocol::mux::MuxStream;
use crate::protocol::{Endpoint, FrameReader, ListenPlace, ListenReply, Open, OpenReply};

/// Where a guest listens. Dropping it ends that; connections that were taken stay.
#[derive(Debug)]
pub struct GuestListener {
    /// The Unix socket's path in the guest, if it is one: unchecked text.
    pub path: Option<String>,
    /// The TCP port, or 0.
    pub port: u16,
    client: GuestClient,
    replies: FrameReader<ReadHalf<MuxStream>>,
    // Its other half ends the stream when it goes.
    _open: tokio::io::WriteHalf<MuxStream>,
}

/// A connection that somebody in the guest has made, or from outside to it; take it with [`GuestListener::accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    connection: u64,
    /// Its other end, for TCP.
    pub from: Option<SocketAddr>,
}

impl GuestClient {
    /// A connection made inside the guest, to an endpoint as seen from there.
    pub async fn connect(
        &self,
        endpoint: Endpoint,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ClientError> {
        self.join("connect", Open::Connect(endpoint)).await
    }

    /// Waits for connections inside the guest.
    pub async fn listen(&self, place: ListenPlace) -> Result<GuestListener, ClientError> {
        let (mut reader, writer) = self.open(&Open::Listen(place)).await?;
        let reply = timeout(ANSWER_DEADLINE, reader.next())
            .await
            .map_err(|_| unanswered("listen"))??;
        let Some(reply) = reply else {
            return Err(ClientError::NotKnown { request: "listen" });
        };
        match reply.message()? {
            ListenReply::Listening { path, port } => Ok(GuestListener {
                path,
                port,
                client: self.clone(),
                replies: reader,
                _open: writer.into_inner(),
            }),
            ListenReply::Refused { message } => Err(ClientError::Refused { message }),
            ListenReply::Connection { .. } => Err(ClientError::Protocol(
                "a connection before it listened".to_owned(),
            )),
        }
    }

    async fn join(
        &self,
        request: &'static str,
        open: Open,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ClientError> {
        let (mut reader, writer) = self.open(&open).await?;
        let reply = timeout(ANSWER_DEADLINE, reader.next())
            .await
            .map_err(|_| unanswered(request))??;
        let Some(reply) = reply else {
            return Err(ClientError::NotKnown { request });
        };
        match reply.message()? {
            OpenReply::Refused { message } => Err(ClientError::Refused { message }),
            OpenReply::Connected => {
                let (read, early) = reader.into_parts();
                let stream = read.unsplit(writer.into_inner());
                Ok(attach::Prefixed::new(early, stream))
            }
        }
    }
}

impl GuestListener {
    /// The next connection; `None` when the guest does not listen any more. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Incoming>, ClientError> {
        let Some(frame) = self.replies.next().await? else {
            return Ok(None);
        };
        match frame.message()? {
            ListenReply::Connection { connection, from } => Ok(Some(Incoming { connection, from })),
            ListenReply::Refused { message } => Err(ClientError::Refused { message }),
            ListenReply::Listening { .. } => Err(ClientError::Protocol(
                "it said twice that it listens".to_owned(),
            )),
        }
    }

    /// Takes a connection.
    pub async fn accept(
        &self,
        incoming: Incoming,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ClientError> {
        let Incoming { connection, .. } = incoming;
        self.client
            .join("accept", Open::Accept { connection })
            .await
    }
}

fn unanswered(request: &'static str) -> ClientError {
    ClientError::AnswerTimeout {
        request,
        deadline: ANSWER_DEADLINE,
    }
}

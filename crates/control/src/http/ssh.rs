//! SSH to an instance over a WebSocket: the client's bytes are the SSH protocol's, and this server is the other end of it.

use super::Http;
use super::extract::{Id, Params};
use super::reply::{Reply, json};
use super::websocket::{BRIEF, PING, SILENCE, stopping, upgrade};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::time::{Instant, interval_at, timeout};
use warren_api::SshHostKey;
use warren_ssh::serve;

/// Bytes between the socket and the server behind it, each way.
const BETWEEN: usize = 256 << 10;
/// What is sent at a time.
const CHUNK: usize = 64 << 10;

/// Connect to an instance by SSH
///
/// A WebSocket whose binary frames are, in both directions, the SSH protocol (RFC 4253) with a server for this instance: the guest
/// needs none. Whoever may open it needs no key; the login name is a user of the image. Shells, commands, SFTP, forwarding
/// of ports and sockets both ways, and of the client's agent.
#[utoipa::path(get, path = "/instances/{id}/ssh", operation_id = "sshInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 101, description = "A WebSocket")))]
pub(super) async fn ssh(
    State(http): State<Http>,
    Id(id): Id,
    params: Params,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Reply {
    params.finish()?;
    let (key, door) = http.app.ssh_door(&id)?;
    let app = http.app.clone();
    Ok(upgrade(socket)?
        .on_upgrade(move |socket| async move {
            let (near, far) = tokio::io::duplex(BETWEEN);
            let (mut sink, stream) = socket.split();
            let close = tokio::select! {
                served = serve(far, &key, door) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "an SSH connection");
                    }
                    None
                }
                () = pump(&mut sink, stream, near) => None,
                () = app.stopping().cancelled() => Some(stopping()),
            };
            // A client that went away does not hear it.
            let _ = timeout(BRIEF, sink.send(Message::Close(close))).await;
        })
        .into_response())
}

/// The key of an instance's SSH server
///
/// What a client compares with the key that the server shows: each instance has its own, and keeps it.
#[utoipa::path(get, path = "/instances/{id}/ssh/host-key", operation_id = "sshHostKey", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 200, description = "The key", body = SshHostKey)))]
pub(super) async fn host_key(State(http): State<Http>, Id(id): Id, params: Params) -> Reply {
    params.finish()?;
    let key = http.app.ssh_host_key(&id)?;
    let key = SshHostKey {
        public_key: key.public_key(),
        fingerprint: key.fingerprint(),
    };
    Ok(json(StatusCode::OK, &key))
}

type Sink = SplitSink<WebSocket, Message>;

/// Moves bytes both ways until the client has gone, or both have ended.
async fn pump(sink: &mut Sink, stream: SplitStream<WebSocket>, server: DuplexStream) {
    let (read, write) = tokio::io::split(server);
    tokio::select! {
        () = inward(stream, write) => {}
        () = outward(sink, read) => {}
    }
}

async fn inward(mut stream: SplitStream<WebSocket>, mut server: WriteHalf<DuplexStream>) {
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(data) => {
                if server.write_all(&data).await.is_err() {
                    return;
                }
            }
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

async fn outward(sink: &mut Sink, mut server: ReadHalf<DuplexStream>) {
    let mut pings = interval_at(Instant::now() + PING, PING);
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let message = tokio::select! {
            read = server.read_buf(&mut chunk) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let data = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                    Message::Binary(Bytes::from(data))
                }
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if !matches!(timeout(SILENCE, sink.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
}

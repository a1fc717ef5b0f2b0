//! Connections between a client and sockets in the guest, either way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelWriteHalf};
use tokio::task::JoinHandle;
use warren_core::PortError;
use warren_core::ports::BoxStream;
use warren_core::ports::guest_sockets::{
    GuestConnection, GuestEndpoint, GuestListener, GuestSocket,
};

use crate::backlog::Backlog;
use crate::door::Guest;
use crate::session::Client;

/// Where a client's listener is told that its connections come from, for a Unix socket.
const NOWHERE: (&str, u32) = ("127.0.0.1", 0);

/// Connects to a host as the guest sees it. Names are looked up here: an image need not have a resolver.
pub(crate) async fn connect(
    guest: &dyn Guest,
    host: &str,
    port: u32,
) -> Result<GuestSocket, PortError> {
    let port = u16::try_from(port)
        .map_err(|_| PortError::invalid("invalid_port", format!("there is no port {port}")))?;
    let mut last = None;
    for address in addresses(host, port).await? {
        match guest.connect(GuestEndpoint::Tcp(address)).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| unknown(host)))
}

async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, PortError> {
    let at = |address: IpAddr| SocketAddr::new(address, port);
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![at(address)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![
            at(Ipv4Addr::LOCALHOST.into()),
            at(Ipv6Addr::LOCALHOST.into()),
        ]);
    }
    let found = tokio::net::lookup_host((host, port)).await;
    // What is this host's own by that name is not the guest's.
    found
        .map(|found| {
            found
                .filter(|address| !address.ip().is_loopback())
                .collect()
        })
        .map_err(|_| unknown(host))
}

fn unknown(host: &str) -> PortError {
    PortError::invalid("unknown_host", format!("nobody knows a host {host:?}"))
}

/// The address that a client means by where it wants to be connected from (RFC 4254, section 7.1).
pub(crate) fn listen_address(address: &str) -> Option<IpAddr> {
    match address {
        "" | "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        address => address.parse().ok(),
    }
}

/// Where a listener was asked for: a client is told with each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Tcp { address: String, port: u32 },
    Path(String),
    Agent,
}

/// Hands every connection to the client, until the listener ends or this is dropped; the connections go on.
pub(crate) async fn hand_over(listener: GuestListener, asked: Asked, client: Client) {
    let mut connections = listener.connections;
    while let Some(connection) = connections.next().await {
        let Ok(GuestConnection { from, socket }) = connection else {
            return;
        };
        // Who comes beyond the limit is hung up on.
        let Some(turn) = client.turn() else {
            continue;
        };
        let handle = &client.handle;
        let from = from.map(|from| (from.ip().to_string(), u32::from(from.port())));
        let (host, from_port) = from.unwrap_or((NOWHERE.0.to_owned(), NOWHERE.1));
        let opened = match &asked {
            Asked::Tcp { address, port } => {
                handle
                    .channel_open_forwarded_tcpip(address.clone(), *port, host, from_port)
                    .await
            }
            Asked::Path(path) => {
                handle
                    .channel_open_forwarded_streamlocal(path.clone())
                    .await
            }
            Asked::Agent => handle.channel_open_agent().await,
        };
        match opened {
            Ok(channel) => {
                client.keep(turn, join(channel, socket, client.backlog.clone()));
            }
            // A client that will not have it: whoever connected is hung up on.
            Err(error) => tracing::debug!(%error, "a client took no connection"),
        }
    }
}

/// Moves bytes both ways until both directions have ended, or the client has closed the channel. What a client has sent before it
/// closed still goes to the guest.
pub(crate) async fn join(channel: Channel<Msg>, socket: GuestSocket, backlog: Backlog) {
    let id = channel.id();
    let (mut read, write) = channel.split();
    let write = Arc::new(write);
    let GuestSocket { mut input, output } = socket;
    // Of its own, because a guest that does not read must not keep what it writes.
    let mut outward = AbortOnDrop(tokio::spawn(outward(output, Arc::clone(&write))));
    let (mut sending, mut receiving) = (true, true);
    while sending || receiving {
        let message = tokio::select! {
            message = read.wait() => message,
            _ = &mut outward.0, if receiving => {
                receiving = false;
                continue;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                let bytes = data.len();
                // A guest that takes no more is not told more; the client hears its end of it.
                sending = sending && input.send(data).await.is_ok();
                backlog.taken(id, bytes);
            }
            Some(ChannelMsg::Eof) => {
                if sending {
                    // One that is gone has heard all it will.
                    let _ = input.close().await;
                }
                sending = false;
            }
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    // One that is gone does not hear it.
    let _ = write.close().await;
    backlog.forget(id);
}

/// A task that ends with whoever waits for it.
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn outward(
    mut output: BoxStream<Result<Bytes, PortError>>,
    write: Arc<ChannelWriteHalf<Msg>>,
) {
    while let Some(Ok(data)) = output.next().await {
        if write.data_bytes(data).await.is_err() {
            return;
        }
    }
    // One that is gone does not hear it.
    let _ = write.eof().await;
}

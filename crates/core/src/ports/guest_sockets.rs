//! Connections inside a guest, by way of its agent: to what listens there, and from what connects to where the host listens.
//!
//! A guest is hostile: every answer has a deadline, and what it says is unchecked text.

use super::BoxStream;
use crate::error::PortError;
use crate::id::InstanceId;
use async_trait::async_trait;
use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};

/// What can be connected to, as seen from inside the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEndpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Path(String),
}

/// Where to wait for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenPlace {
    /// A TCP port of the guest; 0 for any that is free.
    Tcp(IpAddr, u16),
    /// A Unix socket that must not be there yet, and goes when the listener does.
    Path {
        /// Where.
        path: String,
        /// Its owner.
        user: String,
    },
    /// A Unix socket in a directory of its own that this user alone can enter. Both go when the listener does.
    Private {
        /// Who may connect.
        user: String,
    },
}

/// A connection. Dropping both halves ends it.
pub struct GuestSocket {
    /// Towards the guest.
    pub input: Box<dyn SocketSink>,
    /// From it; an error is the last item.
    pub output: BoxStream<Result<Bytes, PortError>>,
}

/// The sending half of a [`GuestSocket`].
#[async_trait]
pub trait SocketSink: Send {
    /// Sends; waits while the other end does not read.
    async fn send(&mut self, data: Bytes) -> Result<(), PortError>;
    /// Ends this direction, and leaves the other one open.
    async fn close(&mut self) -> Result<(), PortError>;
}

/// A connection that came in.
pub struct GuestConnection {
    /// Its other end, for TCP.
    pub from: Option<SocketAddr>,
    /// The connection.
    pub socket: GuestSocket,
}

/// Where the guest listens now. Dropping the stream ends that.
pub struct GuestListener {
    /// The Unix socket's path, if it is one.
    pub path: Option<String>,
    /// The TCP port, or 0.
    pub port: u16,
    /// Who connects; an error is the last item.
    pub connections: BoxStream<Result<GuestConnection, PortError>>,
}

/// The sockets of guests. An agent that is too old for them is an Unsupported error.
#[async_trait]
pub trait GuestSockets: Send + Sync {
    /// Connects to something inside the guest.
    async fn connect(&self, id: &InstanceId, to: GuestEndpoint) -> Result<GuestSocket, PortError>;
    /// Waits for connections inside the guest.
    async fn listen(&self, id: &InstanceId, place: ListenPlace)
    -> Result<GuestListener, PortError>;
}

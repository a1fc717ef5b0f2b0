//! What a session needs to know of whom it is for.

use async_trait::async_trait;
use std::sync::Arc;
use warren_core::PortError;
use warren_core::ports::guest_sockets::{GuestEndpoint, GuestListener, GuestSocket, ListenPlace};
use warren_core::ports::host_link::{ExecCommand, ExecSession};

/// One instance, as a session uses it.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Runs something; it ends when the session is dropped.
    async fn exec(&self, command: ExecCommand) -> Result<ExecSession, PortError>;
    /// Connects to something as seen from inside.
    async fn connect(&self, to: GuestEndpoint) -> Result<GuestSocket, PortError>;
    /// Waits for connections inside.
    async fn listen(&self, place: ListenPlace) -> Result<GuestListener, PortError>;
}

/// What a client must show before it may enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: whoever has made this connection was authenticated before.
    Given,
    /// One of these keys, each a line as in `authorized_keys`. Lines that are none, or have options that restrict, let nobody in.
    Key(Vec<String>),
}

/// A way into an instance.
#[derive(Clone)]
pub struct Entrance {
    /// The instance.
    pub guest: Arc<dyn Guest>,
    /// Whom programs run as: a user of the image.
    pub user: String,
    /// What has to be shown.
    pub proof: Proof,
}

/// Who knows which name leads where.
#[async_trait]
pub trait Door: Send + Sync + 'static {
    /// Where this login name leads; `None` where it leads nowhere, which a client cannot tell from a wrong key.
    async fn find(&self, login: &str) -> Option<Entrance>;
}

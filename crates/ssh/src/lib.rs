//! SSH to instances that have no SSH server: this is the server's end of a connection, and what it is asked for is done by way
//! of the guest's agent. Stock clients (`ssh`, `scp`, `sftp`, `rsync -e ssh`) find what they are used to: shells and commands in the
//! user's home, terminals, SFTP, TCP and Unix sockets forwarded both ways, and the client's own SSH agent.
//!
//! ```text
//! client ──SSH──► Session (who is it, what is asked for)
//!                    ├─ channel: a shell, a command or SFTP, one task each ──► Guest::exec
//!                    ├─ forward: connections in and out of the guest ────────► Guest::connect, Guest::listen
//!                    └─ backlog: how much a client may send ahead
//! ```
//!
//! It knows neither where instances are kept nor who may enter them: a [`Door`] tells. The protocol itself is russh's.

mod backlog;
mod channel;
mod door;
mod forward;
mod host_key;
mod session;

pub use door::{Door, Entrance, Guest, Proof};
pub use host_key::{HostKey, HostSecret};
pub use session::{ServeError, serve};

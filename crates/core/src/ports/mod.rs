//! The traits that adapters implement. Every `ensure_` is idempotent; every `destroy`, `release` and
//! `remove` succeeds when nothing is left; every failure is a [`crate::PortError`] with a class. One
//! contract suite per port is run against every adapter and its fake.

pub mod clock;
pub mod commits;
pub mod guest_commands;
pub mod guest_files;
pub mod guest_sockets;
pub mod host_link;
pub mod hypervisor;
pub mod images;
pub mod network;
pub mod outlet;
pub mod registry;
pub mod store;
pub mod volumes;

use crate::id::{Handle, InstallationId, InstanceId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use clock::Clock;
pub use commits::Commits;
pub use guest_commands::GuestCommands;
pub use guest_files::GuestFiles;
pub use guest_sockets::GuestSockets;
pub use host_link::HostLink;
pub use hypervisor::Hypervisor;
pub use images::Images;
pub use network::Network;
pub use outlet::ImageOutlet;
pub use registry::Registry;
pub use store::Store;
pub use volumes::Volumes;

/// A boxed stream, as ports return them.
pub type BoxStream<T> = std::pin::Pin<Box<dyn futures_core::Stream<Item = T> + Send>>;

/// The place of one instance on its host, and the names under which its kernel objects go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceHome {
    /// Whose.
    pub id: InstanceId,
    /// Its short name in kernel objects.
    pub handle: Handle,
    /// Which installation gives the names.
    pub installation: InstallationId,
    /// Its own directory (mode 0700): sockets, disk, logs, records. `<data>/instances/<handle>`, kept
    /// short because a Unix socket's path has at most 107 bytes.
    pub directory: PathBuf,
}

/// Whether a thing is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It is there, whole.
    Present,
    /// Something of it is there, or may be: `ensure_` makes it whole, and taking away has something to do.
    Partial,
    /// Nothing of it is there.
    Absent,
}

//! Both ends of the channel between a host and the microVM it runs.
//!
//! - [`protocol`]: the attach handshake, framing, multiplexing and messages; pure data and byte streams.
//! - [`files`]: what is done with a guest's files, within one root.
//! - [`serve`]: the guest's end, generic over what it controls; shared by the agent and the test double.
//! - `sftp` (feature `agent`, Linux): an SFTP server, as the agent starts it for a user.
//! - `agent` (feature `agent`, Linux): what the `warren-guest` binary does as PID 1.
//! - `client` (feature `client`): the host's end. Everything it reads is hostile and bounded.
//! - `double` (feature `client`): a guest without a VM, for the fake hypervisor and for tests.
//!
//! The crate knows nothing of the rest of Warren, and nothing of how a channel is opened: callers hand
//! it a byte stream (a virtio-serial chardev's socket, vsock, a socket pair).

mod authorized_keys;
pub mod files;
pub mod protocol;
pub mod serve;
#[cfg(all(feature = "agent", target_os = "linux"))]
pub mod sftp;

#[cfg(all(feature = "agent", target_os = "linux"))]
pub mod agent;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod double;

//! What travels between host and guest: attach handshake, streams, frames, messages.
//!
//! Layers, from the wire up:
//!
//! ```text
//! byte stream      virtio-serial port, vsock, socket pair
//!   attach         host: key(16) nonce(16); guest: nonce(16); see `attach`
//!     yamux        host is the client and opens every stream; see `mux`
//!       frames     u32 length, u8 kind, payload; see `frame`
//!         messages JSON for what is small and typed, raw bytes for data; see `message`
//! ```
//!
//! Both sides use it; it does no I/O of its own beyond the streams it is handed and never trusts a length.

pub mod attach;
pub mod boot;
pub mod detached;
pub mod files;
pub mod frame;
pub mod freeze;
pub mod logs;
pub mod message;
pub mod mux;

pub use attach::{AttachKey, AttachScanner, Nonce};
pub use boot::{BootConfig, HostEntry, MountConfig, NetworkConfig, StdinMode, WorkloadConfig};
pub use detached::{DetachedCommand, DetachedFault, DetachedReply, DetachedRequest};
pub use files::{FileReply, FileRequest};
pub use frame::{Frame, FrameError, FrameKind, FrameReader, FrameWriter};
pub use freeze::{FREEZE_LIMIT, FreezeReply, FreezeRequest};
pub use logs::{LogEntry, LogRecord, OutputStream};
pub use message::{
    ControlEvent, ControlRequest, Endpoint, ExecInput, ExecOutput, ExecRequest, ExitReport,
    ExitStatus, GuestStats, ListenPlace, ListenReply, Open, OpenReply, Program, ReadyReport,
    Terminal,
};

use std::time::{SystemTime, UNIX_EPOCH};

/// Version of everything above the attach handshake. A host talks only to its own version: the agent
/// is embedded in the binary that starts it, and a running guest keeps the agent it was started with.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the virtio-serial port the agent looks for.
pub const PORT_NAME: &str = "warren.0";

/// The wall clock as the protocol has it: nanoseconds since 1970, 0 where the clock is before that.
#[must_use]
pub fn unix_nanos_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

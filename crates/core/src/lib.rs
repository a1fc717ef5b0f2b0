//! The domain: what an instance is, which states it may be in, what may be asked of it in each, and
//! which step brings a host closer to what the user wants. Pure: no I/O, no clock, no async runtime.
//!
//! Everything else in the workspace depends on this crate and it depends on nothing of ours.
//! Adapters implement the traits in [`ports`]; `agent` and `control` are written against them.

pub mod admission;
pub mod error;
pub mod event;
pub mod host;
pub mod id;
pub mod image;
pub mod instance;
pub mod inventory;
pub mod network;
pub mod placement;
pub mod planner;
pub mod ports;
pub mod restart;
pub mod ssh_key;
pub mod state;
pub mod storage;
pub mod units;

/// The `tracing` target of spans that are for an exporter of traces alone, and not for the log.
pub const TRACE_TARGET: &str = "warren::trace";

pub use error::{ErrorClass, PortError};
pub use id::{Handle, InstallationId, InstanceId};
pub use units::{ByteSize, MemoryMib};

/// A point in time, UTC; RFC 3339 wherever it is written down.
pub type Timestamp = time::OffsetDateTime;

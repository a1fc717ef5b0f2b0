//! The messages of a freeze stream: the guest holds its writable file system still while the host copies its disk.
//!
//! ```text
//! host   Open::Freeze ───────────────► Thaw ────────────►
//! guest               Frozen | Refused      Thawed | Lost
//! ```
//!
//! The guest thaws when it is told to, when the stream ends in whatever way, and when its time is up: it never stays frozen.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A guest holds still no longer than this, whatever a host asks for.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(30);

/// Host to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "freeze", rename_all = "snake_case")]
pub enum FreezeRequest {
    /// Go on.
    Thaw,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "freeze", rename_all = "snake_case")]
pub enum FreezeReply {
    /// Everything is on the disk, and nothing is written to it any more.
    Frozen,
    /// It could not be done; the stream ends.
    Refused {
        /// Why.
        message: String,
    },
    /// Nothing was written up to the host's word; now it goes on.
    Thawed,
    /// It went on before the host's word: what the host has copied is of no one moment.
    Lost {
        /// Why.
        message: String,
    },
}

//! The host agent: one actor per instance brings this host closer to what the user wants, step by
//! recorded step; adopts what runs after a restart; sweeps what belongs to nothing.
//!
//! It is handed its adapters as [`Ports`] and knows none of them by name. It offers
//! [`HostLink`](warren_core::ports::HostLink), the only way in. It never touches the store: what it
//! must remember is in the directories of its instances, which are the truth about this host.

mod actor;
mod adopt;
mod agent;
mod attach;
mod bootstrap;
mod commands;
mod commit;
mod console;
mod context;
mod evidence;
mod files;
mod guest_session;
mod images;
mod inventory;
mod log_store;
mod output;
mod record;
mod saved;
mod sockets;
mod status_board;
mod steps;
mod storage;
mod sweep;
mod trace;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "each test uses a part")]
mod support;

pub use adopt::{host_records, recorded_instances};
pub use agent::{Agent, AgentLink};
pub use context::{AgentConfig, Ports};
pub use inventory::{remove as remove_leak, take_inventory};
pub use record::{HostRecord, RecordError};
pub use saved::SealKey;

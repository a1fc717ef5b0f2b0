//! The [`Store`](warren_core::ports::Store) port on memory ([`MemoryStore`]) and on SQLite
//! ([`SqliteStore`]), held to one contract suite (`tests/contract.rs`).
//!
//! Owns the store's file, its schema and its lock. Must never interpret a value, and never do blocking
//! work on the async runtime: SQLite is touched by threads of this crate alone. `warren` opens a store
//! and hands it to `control` as the port.

mod history;
mod memory;
mod rules;
mod sqlite;
mod watch;

pub use memory::MemoryStore;
pub use rules::{MAX_KEY_BYTES, MAX_TRANSACTION_BYTES, MAX_TRANSACTION_ITEMS, MAX_VALUE_BYTES};
pub use sqlite::{Older, OpenOptions, Origin, SCHEMA_VERSION, SqliteStore, Unowned, restore};

/// How many changes are kept for watchers unless told otherwise.
pub const DEFAULT_HISTORY: usize = 100_000;

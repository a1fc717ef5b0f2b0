//! What happened, as subscribers see it.

use crate::Timestamp;
use crate::id::InstanceId;
use crate::state::StateName;
use serde::{Deserialize, Serialize};

/// One change worth telling. Its id on the wire is the store revision that made it durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was recorded.
    pub at: Timestamp,
    /// Whose.
    pub instance: InstanceId,
    /// Its name then.
    pub name: String,
    /// What happened.
    pub what: EventKind,
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// It was accepted.
    Created,
    /// Its state changed.
    StateChanged {
        /// Before.
        from: StateName,
        /// Now.
        to: StateName,
        /// Why it failed, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// The workload's exit code, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// It is gone.
    Deleted,
}

//! Events on the wire. The SSE id of each is the store revision that made it durable.

use crate::instance::InstanceState;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use warren_core::event::{Event as CoreEvent, EventKind};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// It was accepted.
    Created,
    /// Its state changed.
    StateChanged,
    /// It is gone.
    Deleted,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When it was recorded.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Whose: the id.
    pub instance: String,
    /// Its name then.
    pub name: String,
    /// Before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<InstanceState>,
    /// Now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<InstanceState>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The workload's exit code, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

impl From<CoreEvent> for Event {
    fn from(event: CoreEvent) -> Self {
        let (kind, from, to, error, exit_code) = match event.what {
            EventKind::Created => (EventType::Created, None, None, None, None),
            EventKind::StateChanged {
                from,
                to,
                error,
                exit_code,
            } => (
                EventType::StateChanged,
                Some(from.into()),
                Some(to.into()),
                error,
                exit_code,
            ),
            EventKind::Deleted => (EventType::Deleted, None, None, None, None),
        };
        Event {
            at: event.at,
            kind,
            instance: event.instance.to_string(),
            name: event.name,
            from,
            to,
            error,
            exit_code,
        }
    }
}

/// The SSE event name of a gap: the history before this point is gone, list again.
pub const RESET: &str = "reset";

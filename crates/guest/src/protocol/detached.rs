//! Commands that belong to no stream: they run on when their host goes, and another stream, or another host, joins them again.
//!
//! ```text
//! host   Open::Detached(Start | List | Remove) ─►
//! guest                                           Started | List | Removed | Refused
//! host   Open::Detached(Attach) ────────────────►                    ExecInput …
//! guest                                           Attached | Refused, ExecOutput …, Exited
//! ```

use serde::{Deserialize, Serialize};

use super::StdinMode;
use super::message::{ExecRequest, ExitReport};

/// Detached commands that a guest knows of at most, running and ended ones together.
pub const DETACHED_LIMIT: usize = 32;
/// Output of one that a guest keeps, bytes: the newest.
pub const DETACHED_OUTPUT: usize = 256 * 1024;
/// Longest id that a guest takes, bytes.
pub const DETACHED_ID_LIMIT: usize = 64;
/// Of a longer command line only so much is told, bytes.
pub const DETACHED_COMMAND: usize = 1024;

/// What a host wants with detached commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "detached", rename_all = "snake_case")]
pub enum DetachedRequest {
    /// Start one.
    Start {
        /// What to call it.
        id: String,
        /// Whether there will be input for it; without, it reads an empty one.
        stdin: StdinMode,
        /// What to run.
        request: ExecRequest,
    },
    /// Tell of all there are.
    List,
    /// Join one: what it has written as far as that is kept, and then what it writes. Leaving leaves it running.
    Attach {
        /// Which.
        id: String,
    },
    /// End one, if it runs, and forget it.
    Remove {
        /// Which.
        id: String,
    },
}

/// The first and, but for [`DetachedRequest::Attach`], only answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "detached", rename_all = "snake_case")]
pub enum DetachedReply {
    /// It is known by its id now; whether it could be run is told like its end.
    Started,
    /// All there are, the oldest first.
    List {
        /// Running and ended ones.
        commands: Vec<DetachedCommand>,
    },
    /// The frames of an exec follow.
    Attached,
    /// It is gone.
    Removed,
    /// Nothing was done.
    Refused {
        /// The kind of reason.
        fault: DetachedFault,
        /// Why.
        message: String,
    },
}

/// Why a guest refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetachedFault {
    /// There is none with this id.
    NotFound,
    /// There is one with this id, or it cannot be an id.
    BadId,
    /// So many run that there is no room for another.
    Full,
}

/// A detached command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedCommand {
    /// What it is called.
    pub id: String,
    /// Program and arguments, the last of them cut where they are long.
    pub command: Vec<String>,
    /// The user it was started as, where one was named.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Streams that have joined it.
    pub attached: usize,
    /// When it was started: nanoseconds since 1970, by the guest's clock.
    pub started_unix_nanos: u64,
    /// When it ended.
    #[serde(default)]
    pub ended_unix_nanos: Option<u64>,
    /// How it ended.
    #[serde(default)]
    pub exited: Option<ExitReport>,
}

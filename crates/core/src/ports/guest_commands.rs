//! Commands in a guest that run on when nobody is connected to them, by way of its agent.
//!
//! A guest is hostile: every answer has a deadline, and what it says is unchecked text.

use super::host_link::{ExecCommand, ExecSession};
use crate::Timestamp;
use crate::error::PortError;
use crate::id::InstanceId;
use async_trait::async_trait;

/// The code of a command that is not there (any more).
pub const COMMAND_NOT_FOUND: &str = "exec_not_found";

/// Whether there will be input for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandInput {
    /// It reads an empty one.
    Empty,
    /// From whoever connects to it.
    Open,
}

/// A command that runs on its own, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachedCommand {
    /// What it is called.
    pub id: String,
    /// Program and arguments, the last of them cut where they are long.
    pub command: Vec<String>,
    /// The user it was started as, where one was named.
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Connections to it.
    pub attached: usize,
    /// When it was started, by the guest's clock.
    pub started: Timestamp,
    /// When it ended, by the guest's clock, and how.
    pub ended: Option<(Timestamp, CommandExit)>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandExit {
    /// Its exit code; 128 + signal; 127 not found; 126 not executable.
    pub code: i32,
    /// In words, where there is something to say.
    pub message: Option<String>,
}

/// The detached commands of guests. An agent that is too old for them is an Unsupported error; a command that is not there
/// is a NotFound one ([`COMMAND_NOT_FOUND`]). They last as long as the guest runs.
#[async_trait]
pub trait GuestCommands: Send + Sync {
    /// Starts one and calls it `command_id`. A Conflict where there are too many.
    async fn start(
        &self,
        id: &InstanceId,
        command_id: &str,
        command: ExecCommand,
        input: CommandInput,
    ) -> Result<(), PortError>;
    /// All of them, the oldest first.
    async fn list(&self, id: &InstanceId) -> Result<Vec<DetachedCommand>, PortError>;
    /// Connects to one: its newest output as far as that is kept, then what it writes. With a terminal's rows and columns,
    /// these become its own. Dropping the session leaves it running.
    async fn attach(
        &self,
        id: &InstanceId,
        command_id: &str,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError>;
    /// Ends one, if it runs, and forgets it.
    async fn remove(&self, id: &InstanceId, command_id: &str) -> Result<(), PortError>;
}

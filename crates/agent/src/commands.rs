//! Detached commands inside guests, by way of their agents.

use crate::agent::AgentLink;
use crate::attach;
use crate::guest_session::guest_error;
use async_trait::async_trait;
use warren_core::ports::GuestCommands;
use warren_core::ports::guest_commands::{
    COMMAND_NOT_FOUND, CommandExit, CommandInput, DetachedCommand,
};
use warren_core::ports::host_link::{ExecCommand, ExecSession};
use warren_core::{ErrorClass, InstanceId, PortError, Timestamp};
use warren_guest::client::ClientError;
use warren_guest::protocol::{self, DetachedFault, StdinMode, Terminal};

#[async_trait]
impl GuestCommands for AgentLink {
    async fn start(
        &self,
        id: &InstanceId,
        command_id: &str,
        command: ExecCommand,
        input: CommandInput,
    ) -> Result<(), PortError> {
        let session = self.0.session(id).await?;
        let stdin = match input {
            CommandInput::Empty => StdinMode::Null,
            CommandInput::Open => StdinMode::Attached,
        };
        let request = attach::request(command);
        let started = session.client.start_detached(command_id, stdin, request);
        started.await.map_err(refused)
    }

    async fn list(&self, id: &InstanceId) -> Result<Vec<DetachedCommand>, PortError> {
        let session = self.0.session(id).await?;
        let commands = session.client.detached().await.map_err(refused)?;
        Ok(commands.into_iter().map(command).collect())
    }

    async fn attach(
        &self,
        id: &InstanceId,
        command_id: &str,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError> {
        let session = self.0.session(id).await?;
        let mut handle = session
            .client
            .attach_detached(command_id)
            .await
            .map_err(refused)?;
        if let Some((rows, cols)) = terminal {
            let size = Terminal { rows, cols };
            handle.input.resize(size).await.map_err(guest_error)?;
        }
        Ok(attach::session(handle))
    }

    async fn remove(&self, id: &InstanceId, command_id: &str) -> Result<(), PortError> {
        let session = self.0.session(id).await?;
        let removed = session.client.remove_detached(command_id);
        removed.await.map_err(refused)
    }
}

fn refused(error: ClientError) -> PortError {
    let ClientError::Detached { fault, message } = error else {
        return guest_error(error);
    };
    match fault {
        DetachedFault::NotFound => PortError::not_found(COMMAND_NOT_FOUND, message)
            .with_hint("`warren execs NAME` lists those that the guest knows of"),
        DetachedFault::BadId => PortError::conflict("id_taken", message),
        DetachedFault::Full => PortError::new(ErrorClass::NoCapacity, "too_many_execs", message)
            .with_hint("wait for some to end, or remove them: `warren execs --remove ID NAME`"),
    }
}

fn command(told: protocol::DetachedCommand) -> DetachedCommand {
    let ended = told.ended_unix_nanos.zip(told.exited);
    DetachedCommand {
        id: told.id,
        command: told.command,
        user: told.user,
        terminal: told.terminal,
        attached: told.attached,
        started: at(told.started_unix_nanos),
        ended: ended.map(|(nanos, report)| {
            let exit = CommandExit {
                code: report.status.shell_code(),
                message: report.message,
            };
            (at(nanos), exit)
        }),
    }
}

/// A guest may say any number; what is no time is the beginning of it.
fn at(unix_nanos: u64) -> Timestamp {
    Timestamp::from_unix_timestamp_nanos(unix_nanos.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

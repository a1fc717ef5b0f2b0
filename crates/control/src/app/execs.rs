//! Detached commands: who may ask, and when. The rest is the guest's.

use super::streams::check_command;
use super::{App, AppError};
use rand::Rng;
use warren_api::Code;
use warren_core::InstanceId;
use warren_core::ports::guest_commands::{COMMAND_NOT_FOUND, CommandInput, DetachedCommand};
use warren_core::ports::host_link::{ExecCommand, ExecSession};
use warren_core::{PortError, id};

fn check_exec_id(exec: &str) -> Result<(), AppError> {
    id::check_id(exec).map_err(|error| AppError::field("id", error.to_string()))
}

impl App {
    /// The instance in which commands may be asked for now.
    fn commands_of(&self, wanted: &str) -> Result<InstanceId, AppError> {
        Ok(self.running_now(wanted)?.intent.id.clone())
    }

    /// Starts a command that nobody has to stay connected to, and tells of it.
    ///
    /// # Errors
    /// A command that no program can be run with, an id that is none or taken; the admission table's, and the host's.
    pub async fn start_exec(
        &self,
        wanted: &str,
        exec: Option<String>,
        command: ExecCommand,
        input: CommandInput,
    ) -> Result<DetachedCommand, AppError> {
        check_command(&command).map_err(|why| AppError::coded(Code::InvalidBody, why))?;
        let exec = match exec {
            Some(exec) => {
                check_exec_id(&exec)?;
                exec
            }
            None => format!("{:010x}", rand::rng().random::<u64>() >> 24),
        };
        let id = self.commands_of(wanted)?;
        let commands = self.0.host.commands();
        commands.start(&id, &exec, command, input).await?;
        self.find_exec(&id, &exec).await
    }

    /// All detached commands of an instance, the oldest first.
    ///
    /// # Errors
    /// The admission table's, and the host's.
    pub async fn execs(&self, wanted: &str) -> Result<Vec<DetachedCommand>, AppError> {
        let id = self.commands_of(wanted)?;
        Ok(self.0.host.commands().list(&id).await?)
    }

    /// One of them.
    ///
    /// # Errors
    /// As [`App::execs`]; or there is none.
    pub async fn exec_of(&self, wanted: &str, exec: &str) -> Result<DetachedCommand, AppError> {
        let id = self.commands_of(wanted)?;
        self.find_exec(&id, exec).await
    }

    async fn find_exec(&self, id: &InstanceId, exec: &str) -> Result<DetachedCommand, AppError> {
        let all = self.0.host.commands().list(id).await?;
        let found = all.into_iter().find(|command| command.id == exec);
        found.ok_or_else(|| {
            let words = "there is no such detached command (any more)";
            AppError::Port(PortError::not_found(COMMAND_NOT_FOUND, words))
        })
    }

    /// Connects to one. Leaving leaves it running.
    ///
    /// # Errors
    /// As [`App::exec_of`].
    pub async fn attach_exec(
        &self,
        wanted: &str,
        exec: &str,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, AppError> {
        let id = self.commands_of(wanted)?;
        Ok(self.0.host.commands().attach(&id, exec, terminal).await?)
    }

    /// Ends one, if it runs, and forgets it.
    ///
    /// # Errors
    /// As [`App::exec_of`].
    pub async fn remove_exec(&self, wanted: &str, exec: &str) -> Result<(), AppError> {
        let id = self.commands_of(wanted)?;
        Ok(self.0.host.commands().remove(&id, exec).await?)
    }
}

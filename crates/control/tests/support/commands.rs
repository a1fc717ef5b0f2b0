//! Detached commands in a guest that is none: they run until they are removed, unless they are called `over`.

use super::{Host, exec, now};
use async_trait::async_trait;
use warren_core::ports::GuestCommands;
use warren_core::ports::guest_commands::{
    COMMAND_NOT_FOUND, CommandExit, CommandInput, DetachedCommand,
};
use warren_core::ports::host_link::{ExecCommand, ExecSession, Program};
use warren_core::{InstanceId, PortError};

fn missing() -> PortError {
    PortError::not_found(COMMAND_NOT_FOUND, "the double has no such command")
}

#[async_trait]
impl GuestCommands for Host {
    async fn start(
        &self,
        id: &InstanceId,
        command_id: &str,
        command: ExecCommand,
        _: CommandInput,
    ) -> Result<(), PortError> {
        let mut commands = self.commands.lock().expect("no test panics with it");
        let is_taken = commands
            .iter()
            .any(|(of, known)| of == id && known.id == command_id);
        if is_taken {
            return Err(PortError::conflict("id_taken", "the double has one"));
        }
        let exit = CommandExit {
            code: 3,
            message: None,
        };
        let command = DetachedCommand {
            id: command_id.to_owned(),
            command: match command.program {
                Program::Command(words) => words,
                Program::LoginShell(_) | Program::FileServer => Vec::new(),
            },
            user: command.user,
            terminal: command.terminal.is_some(),
            attached: 0,
            started: now(),
            ended: (command_id == "over").then(|| (now(), exit)),
        };
        commands.push((id.clone(), command));
        Ok(())
    }

    async fn list(&self, id: &InstanceId) -> Result<Vec<DetachedCommand>, PortError> {
        let commands = self.commands.lock().expect("no test panics with it");
        let own = commands.iter().filter(|(of, _)| of == id);
        Ok(own.map(|(_, command)| command.clone()).collect())
    }

    async fn attach(
        &self,
        id: &InstanceId,
        command_id: &str,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError> {
        let all = self.list(id).await?;
        let command = all.into_iter().find(|known| known.id == command_id);
        let command = command.ok_or_else(missing)?;
        Ok(exec::session(ExecCommand {
            program: Program::Command(command.command),
            terminal,
            ..ExecCommand::default()
        }))
    }

    async fn remove(&self, id: &InstanceId, command_id: &str) -> Result<(), PortError> {
        let mut commands = self.commands.lock().expect("no test panics with it");
        let position = commands
            .iter()
            .position(|(of, known)| of == id && known.id == command_id);
        commands.remove(position.ok_or_else(missing)?);
        Ok(())
    }
}

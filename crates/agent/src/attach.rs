//! Being connected to a workload itself, or to a command beside it.

use crate::guest_session::{GuestSession, GuestState, guest_error};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::broadcast;
use warren_core::PortError;
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};
use warren_guest::client::{ExecHandle, ExecWriter};
use warren_guest::protocol::{self, Terminal};

/// Connects to the workload of `session`.
pub(crate) async fn attach(
    session: Arc<GuestSession>,
    terminal: Option<(u16, u16)>,
) -> Result<ExecSession, PortError> {
    let mut input = session.client.workload_input().await.map_err(guest_error)?;
    if let Some((rows, cols)) = terminal {
        input
            .resize(Terminal { rows, cols })
            .await
            .map_err(guest_error)?;
    }
    let (recent, live) = session.output.subscribe();
    let output = futures::stream::unfold(
        (session, recent, live, false),
        |(session, mut recent, mut live, ended)| async move {
            if ended {
                return None;
            }
            if let Some((stream, data)) = recent.pop_front() {
                return Some((
                    Ok(ExecOutput::Data(stream, data)),
                    (session, recent, live, false),
                ));
            }
            loop {
                let over = async {
                    let state = session
                        .wait_for(|state| matches!(state, GuestState::Exited(_)))
                        .await;
                    session.logs_complete().await;
                    state
                };
                tokio::select! {
                    biased;
                    piece = live.recv() => match piece {
                        Ok((stream, data)) => return Some((Ok(ExecOutput::Data(stream, data)), (session, recent, live, false))),
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    state = over => {
                        // The end may have been announced before the last pieces were taken from the queue.
                        if let Ok((stream, data)) = live.try_recv() {
                            return Some((Ok(ExecOutput::Data(stream, data)), (session, recent, live, false)));
                        }
                        let last = match state {
                            GuestState::Exited(report) => Ok(ExecOutput::Exited { code: report.status.shell_code(), message: report.message }),
                            _ => Err(PortError::retry("guest_unreachable", "the connection to the workload was lost")),
                        };
                        return Some((last, (session, recent, live, true)));
                    }
                }
            }
        },
    );
    Ok(ExecSession {
        input: Box::new(GuestInput(input)),
        output: Box::pin(output),
    })
}

/// A program as a guest's agent knows it, and what an agent that is older is to run instead.
fn program(program: Program) -> (protocol::Program, Vec<String>) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match program {
        Program::Command(command) => (protocol::Program::Command, command),
        Program::LoginShell(script) => {
            let command = match &script {
                Some(script) => words(&["/bin/sh", "-c", script]),
                None => words(&["/bin/sh", "-l"]),
            };
            (protocol::Program::LoginShell { script }, command)
        }
        // Where distributions have it that come with an SSH server.
        Program::FileServer => (
            protocol::Program::FileServer,
            words(&["/usr/lib/openssh/sftp-server"]),
        ),
    }
}

/// A command as a guest's agent takes it.
pub(crate) fn request(command: ExecCommand) -> protocol::ExecRequest {
    let (program, words) = program(command.program);
    protocol::ExecRequest {
        program,
        command: words,
        terminal: command.terminal.map(|(rows, cols)| Terminal { rows, cols }),
        env: command.env.into_iter().collect(),
        working_dir: command.working_dir,
        user: command.user,
        timeout_millis: command
            .timeout
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Both directions of a command.
pub(crate) fn session(handle: ExecHandle) -> ExecSession {
    let output = futures::stream::unfold(Some(handle.output), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(protocol::ExecOutput::Stdout(data))) => Some((
                Ok(ExecOutput::Data(OutputStream::Stdout, data)),
                Some(reader),
            )),
            Ok(Some(protocol::ExecOutput::Stderr(data))) => Some((
                Ok(ExecOutput::Data(OutputStream::Stderr, data)),
                Some(reader),
            )),
            Ok(Some(protocol::ExecOutput::Exited(report))) => {
                let code = report.status.shell_code();
                Some((
                    Ok(ExecOutput::Exited {
                        code,
                        message: report.message,
                    }),
                    None,
                ))
            }
            Ok(None) => None,
            Err(error) => Some((Err(guest_error(error)), None)),
        }
    });
    ExecSession {
        input: Box::new(GuestInput(handle.input)),
        output: Box::pin(output),
    }
}

struct GuestInput(ExecWriter);

#[async_trait]
impl ExecSink for GuestInput {
    async fn send(&mut self, input: ExecInput) -> Result<(), PortError> {
        let sent = match input {
            ExecInput::Stdin(data) => self.0.stdin(&data).await,
            ExecInput::CloseStdin => self.0.close_stdin().await,
            ExecInput::Resize { rows, columns } => {
                self.0
                    .resize(Terminal {
                        rows,
                        cols: columns,
                    })
                    .await
            }
            ExecInput::Signal(signal) => self.0.signal(signal).await,
        };
        sent.map_err(guest_error)
    }
}

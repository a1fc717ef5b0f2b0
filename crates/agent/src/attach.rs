//! Being connected to a workload itself, or to a command beside it.

use crate::guest_session::{GuestSession, GuestState, guest_error};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::broadcast;
use warren_core::PortError;
use warren_core::ports::host_link::{ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream};
use warren_guest::client::ExecWriter;
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

/// Runs a command in the guest of `session`.
pub(crate) async fn exec(
    session: &GuestSession,
    request: protocol::ExecRequest,
) -> Result<ExecSession, PortError> {
    let handle = session.client.exec(request).await.map_err(guest_error)?;
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
    Ok(ExecSession {
        input: Box::new(GuestInput(handle.input)),
        output: Box::pin(output),
    })
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

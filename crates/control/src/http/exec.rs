//! Exec and attach over WebSockets. Two tasks per connection, one each way, so that a command that
//! does not read cannot hold up what it writes.

use super::Http;
use super::execs::seconds;
use super::extract::{Id, Params, bad_query};
use super::reply::{Failure, Reply};
use super::websocket::{BRIEF, PING, SILENCE, first_frame, stopping, upgrade};
use crate::app::{App, AppError};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::IntoResponse;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::time::{Instant, interval_at, timeout};
use warren_api::exec::{ExecControl, ExecExit, StdinControl, streams};
use warren_api::{Code, ErrorDetail, ExecStart, Problem};
use warren_core::PortError;
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};

/// Frames of output are cut to this.
const OUTPUT_FRAME: usize = 64 << 10;
/// The longest wait for an instance to run.
const LONGEST_PATIENCE: u64 = 600;
/// What a terminal is where nobody says.
pub(super) const USUAL_TERMINAL: (u16, u16) = (24, 80);
/// The exit code of a command that could not be run for reasons of its instance.
const CANNOT_RUN: i32 = 126;

/// Whether stdout and stderr can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    Merged,
    /// The first byte of each binary frame is the stream.
    Separate,
}

pub(super) fn outputs(params: &mut Params) -> Result<Outputs, Failure> {
    match params.one("stderr")?.as_deref() {
        None | Some("merged") => Ok(Outputs::Merged),
        Some("separate") => Ok(Outputs::Separate),
        Some(_) => Err(bad_query("stderr", "must be merged or separate")),
    }
}

/// The terminal's size in a query, where it has one.
pub(super) fn terminal_of(params: &mut Params) -> Result<Option<(u16, u16)>, Failure> {
    let rows = params.parsed::<u16>("rows", "a number of rows")?;
    let columns = params.parsed::<u16>("cols", "a number of columns")?;
    Ok((rows.is_some() || columns.is_some()).then(|| {
        (
            rows.unwrap_or(USUAL_TERMINAL.0),
            columns.unwrap_or(USUAL_TERMINAL.1),
        )
    }))
}

/// Run a command in an instance
///
/// A WebSocket. The first frame is text: an ExecStart. Binary frames are input and output, text frames control
/// (`{"resize":{"rows":R,"cols":C}}`, `{"stdin":"close"}`, `{"signal":N}`), the last one is `{"exitCode":N}`.
#[utoipa::path(get, path = "/instances/{id}/exec", operation_id = "execInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("stderr" = Option<String>, Query, pattern = "^(merged|separate)$", description = "`separate`: the first byte of each binary frame is the stream, 1 or 2")),
    responses((status = 101, description = "A WebSocket: see ExecStart, ExecControl and ExecExit")))]
pub(super) async fn exec(
    State(http): State<Http>,
    Id(id): Id,
    mut params: Params,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Reply {
    let outputs = outputs(&mut params)?;
    params.finish()?;
    let view = http.app.check_exec(&id)?;
    let id = view.intent.id.to_string();
    let app = http.app.clone();
    Ok(upgrade(socket)?
        .on_upgrade(move |socket| async move {
            run_exec(app, id, socket, outputs).await;
        })
        .into_response())
}

/// Connect to an instance's workload
///
/// A WebSocket with the frames of exec, without the first one. Closing it leaves the workload running.
#[utoipa::path(get, path = "/instances/{id}/attach", operation_id = "attachInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("rows" = Option<u16>, Query, minimum = 1, maximum = 9999, description = "The terminal's rows"),
        ("cols" = Option<u16>, Query, minimum = 1, maximum = 9999, description = "The terminal's columns"),
        ("stderr" = Option<String>, Query, pattern = "^(merged|separate)$", description = "As for exec")),
    responses((status = 101, description = "A WebSocket")))]
pub(super) async fn attach(
    State(http): State<Http>,
    Id(id): Id,
    mut params: Params,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Reply {
    let outputs = outputs(&mut params)?;
    let terminal = terminal_of(&mut params)?;
    params.finish()?;
    let view = http.app.check_exec(&id)?;
    let id = view.intent.id.to_string();
    let app = http.app.clone();
    Ok(upgrade(socket)?
        .on_upgrade(move |socket| async move {
            let session = app.attach(&id, terminal).await;
            relay(&app, socket, session, outputs).await;
        })
        .into_response())
}

async fn run_exec(app: App, id: String, mut socket: WebSocket, outputs: Outputs) {
    let start = tokio::select! {
        start = first_frame(&mut socket, "an ExecStart") => start,
        () = app.stopping().cancelled() => Err("the server is stopping".to_owned()),
    };
    let session = match start.map(command) {
        Err(problem) => Err(AppError::coded(Code::InvalidBody, problem)),
        Ok((command, patience)) => app.exec(&id, command, patience).await,
    };
    relay(&app, socket, session, outputs).await;
}

fn command(start: ExecStart) -> (ExecCommand, Duration) {
    let patience = start.wait_for_agent.unwrap_or(0).min(LONGEST_PATIENCE);
    let command = ExecCommand {
        program: Program::Command(start.command),
        env: start.env,
        working_dir: start.cwd.filter(|dir| !dir.is_empty()),
        user: start.user.filter(|user| !user.is_empty()),
        terminal: start.tty.then(|| {
            (
                start.rows.unwrap_or(USUAL_TERMINAL.0),
                start.cols.unwrap_or(USUAL_TERMINAL.1),
            )
        }),
        timeout: seconds(start.timeout),
    };
    (command, Duration::from_secs(patience))
}

pub(super) async fn relay(
    app: &App,
    socket: WebSocket,
    session: Result<ExecSession, AppError>,
    outputs: Outputs,
) {
    let (mut sink, stream) = socket.split();
    match session {
        Err(error) => finish(&mut sink, failed(&Problem::from(&error))).await,
        Ok(ExecSession { input, output }) => {
            let mut writing = Box::pin(write(&mut sink, output, outputs));
            tokio::select! {
                () = &mut writing => {}
                // The client has gone: dropping both halves of the session ends the command.
                () = read(stream, input) => {}
                () = app.stopping().cancelled() => {
                    drop(writing);
                    let close = Message::Close(Some(stopping()));
                    let _ = timeout(Duration::from_secs(1), sink.send(close)).await;
                }
            }
        }
    }
}

fn failed(problem: &Problem) -> ExecExit {
    ExecExit {
        exit_code: CANNOT_RUN,
        message: Some(problem.detail.clone()),
        error: Some(ErrorDetail {
            code: problem.code.clone(),
            message: problem.detail.clone(),
        }),
    }
}

async fn finish(sink: &mut SplitSink<WebSocket, Message>, exit: ExecExit) {
    let text = serde_json::to_string(&exit).expect("our own schemas are JSON");
    let last = async {
        sink.send(Message::Text(text.into())).await?;
        sink.send(Message::Close(Some(CloseFrame {
            code: close_code::NORMAL,
            reason: "".into(),
        })))
        .await
    };
    // A client that went away does not hear it.
    let _ = timeout(BRIEF, last).await;
}

async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut output: warren_core::ports::BoxStream<Result<ExecOutput, PortError>>,
    outputs: Outputs,
) {
    let mut pings = interval_at(Instant::now() + PING, PING);
    loop {
        let next = tokio::select! {
            next = output.next() => next,
            _ = pings.tick() => {
                let ping = sink.send(Message::Ping(Bytes::new()));
                if !matches!(timeout(SILENCE, ping).await, Ok(Ok(()))) {
                    return;
                }
                continue;
            }
        };
        let exit = match next {
            Some(Ok(ExecOutput::Data(stream, bytes))) => {
                for piece in pieces(bytes) {
                    let frame = Message::Binary(framed(stream, piece, outputs));
                    if !matches!(timeout(SILENCE, sink.send(frame)).await, Ok(Ok(()))) {
                        return;
                    }
                }
                continue;
            }
            Some(Ok(ExecOutput::Exited { code, message })) => ExecExit {
                exit_code: code,
                message,
                error: None,
            },
            Some(Err(error)) => failed(&Problem::from(&AppError::Port(error))),
            None => failed(&Problem::new(
                Code::Unavailable,
                "the host went away before the command's exit code came",
            )),
        };
        return finish(sink, exit).await;
    }
}

fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(OUTPUT_FRAME)))
    })
}

fn framed(stream: OutputStream, bytes: Bytes, outputs: Outputs) -> Bytes {
    match outputs {
        Outputs::Merged => bytes,
        Outputs::Separate => {
            let mut framed = Vec::with_capacity(bytes.len() + 1);
            framed.push(match stream {
                OutputStream::Stdout => streams::STDOUT,
                OutputStream::Stderr => streams::STDERR,
            });
            framed.extend_from_slice(&bytes);
            framed.into()
        }
    }
}

/// Returns when the client has gone. Input that the command does not take any more is thrown away: its
/// exit code is still to come.
async fn read(mut stream: SplitStream<WebSocket>, mut input: Box<dyn ExecSink>) {
    let mut open = true;
    while let Some(Ok(message)) = stream.next().await {
        let input_frame = match message {
            Message::Binary(bytes) if bytes.is_empty() => continue,
            Message::Binary(bytes) => ExecInput::Stdin(bytes),
            Message::Text(text) => match control(&text) {
                Some(control) => control,
                None => continue,
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if open && let Err(error) = input.send(input_frame).await {
            tracing::debug!(code = error.code, %error, "a command takes no more input");
            open = false;
        }
    }
}

/// Control frames that are none are ignored: newer clients may know more.
fn control(text: &str) -> Option<ExecInput> {
    match serde_json::from_str::<ExecControl>(text).ok()? {
        ExecControl::Resize(size) if size.rows > 0 && size.cols > 0 => Some(ExecInput::Resize {
            rows: size.rows,
            columns: size.cols,
        }),
        ExecControl::Resize(_) => None,
        ExecControl::Stdin(StdinControl::Close) => Some(ExecInput::CloseStdin),
        ExecControl::Signal(signal) if (1..=64).contains(&signal) => {
            Some(ExecInput::Signal(signal))
        }
        ExecControl::Signal(_) => None,
    }
}

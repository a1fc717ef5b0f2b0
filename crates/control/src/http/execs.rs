//! Detached commands: started, listed, attached to again, removed.

use super::Http;
use super::exec::{USUAL_TERMINAL, outputs, relay, terminal_of};
use super::extract::{Body, Id, NoParams, Params, Part};
use super::reply::{Reply, json};
use super::websocket::upgrade;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use std::time::Duration;
use warren_api::{DetachedExec, DetachedExecStart, DetachedExecState};
use warren_core::ports::guest_commands::{CommandInput, DetachedCommand};
use warren_core::ports::host_link::{ExecCommand, Program};

/// Start a command that runs on when nobody is connected to it
///
/// It lasts as long as the instance runs, servers come and go. A guest knows of 32 at most, ended ones included, of which the
/// oldest are forgotten first; of each it keeps the newest 256 KiB of output.
#[utoipa::path(post, path = "/instances/{id}/execs", operation_id = "startInstanceExec", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    request_body = DetachedExecStart,
    responses((status = 201, description = "It was handed to the guest; whether it could be run is told like its end", body = DetachedExec)))]
pub(super) async fn start(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    body: Body<DetachedExecStart>,
) -> Reply {
    let (exec, command, input) = command(body.value);
    let started = http.app.start_exec(&id, exec, command, input).await?;
    Ok(json(StatusCode::CREATED, &told(started)))
}

/// List the detached commands of an instance
#[utoipa::path(get, path = "/instances/{id}/execs", operation_id = "listInstanceExecs", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 200, description = "Running and ended ones, the oldest first", body = Vec<DetachedExec>)))]
pub(super) async fn list(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    let all = http.app.execs(&id).await?;
    let all: Vec<DetachedExec> = all.into_iter().map(told).collect();
    Ok(json(StatusCode::OK, &all))
}

/// Get a detached command
#[utoipa::path(get, path = "/instances/{id}/execs/{exec}", operation_id = "getInstanceExec", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("exec" = String, Path, description = "The command's id")),
    responses((status = 200, description = "The command", body = DetachedExec)))]
pub(super) async fn get(State(http): State<Http>, Part(id, exec): Part, _: NoParams) -> Reply {
    let command = http.app.exec_of(&id, &exec).await?;
    Ok(json(StatusCode::OK, &told(command)))
}

/// End a detached command, if it runs, and forget it
///
/// Its process group gets SIGHUP, and SIGKILL five seconds later.
#[utoipa::path(delete, path = "/instances/{id}/execs/{exec}", operation_id = "removeInstanceExec", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("exec" = String, Path, description = "The command's id")),
    responses((status = 204, description = "It is forgotten")))]
pub(super) async fn remove(State(http): State<Http>, Part(id, exec): Part, _: NoParams) -> Reply {
    http.app.remove_exec(&id, &exec).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Connect to a detached command
///
/// A WebSocket with the frames of exec, without the first one: the newest output as far as it is kept, then what the command writes.
/// Closing it leaves the command running. The command waits for whoever connected last to take what it writes.
#[utoipa::path(get, path = "/instances/{id}/execs/{exec}/attach", operation_id = "attachInstanceExec", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("exec" = String, Path, description = "The command's id"),
        ("rows" = Option<u16>, Query, minimum = 1, maximum = 9999, description = "The terminal's rows"),
        ("cols" = Option<u16>, Query, minimum = 1, maximum = 9999, description = "The terminal's columns"),
        ("stderr" = Option<String>, Query, pattern = "^(merged|separate)$", description = "As for exec")),
    responses((status = 101, description = "A WebSocket")))]
pub(super) async fn attach(
    State(http): State<Http>,
    Part(id, exec): Part,
    mut params: Params,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Reply {
    let outputs = outputs(&mut params)?;
    let terminal = terminal_of(&mut params)?;
    params.finish()?;
    let socket = upgrade(socket)?;
    // A command that is not there is 404 and no WebSocket.
    let session = http.app.attach_exec(&id, &exec, terminal).await?;
    let app = http.app.clone();
    Ok(socket
        .on_upgrade(move |socket| async move {
            relay(&app, socket, Ok(session), outputs).await;
        })
        .into_response())
}

fn command(start: DetachedExecStart) -> (Option<String>, ExecCommand, CommandInput) {
    let input = match start.stdin {
        true => CommandInput::Open,
        false => CommandInput::Empty,
    };
    let size = (
        start.rows.unwrap_or(USUAL_TERMINAL.0),
        start.cols.unwrap_or(USUAL_TERMINAL.1),
    );
    let command = ExecCommand {
        program: Program::Command(start.command),
        env: start.env,
        working_dir: start.cwd.filter(|dir| !dir.is_empty()),
        user: start.user.filter(|user| !user.is_empty()),
        terminal: start.tty.then_some(size),
        timeout: seconds(start.timeout),
    };
    (start.id, command, input)
}

/// A time limit as the API has it: 0 is none.
pub(super) fn seconds(limit: Option<u64>) -> Option<Duration> {
    const LONGEST: u64 = 7 * 86_400;
    let limit = limit.filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(limit.min(LONGEST)))
}

fn told(command: DetachedCommand) -> DetachedExec {
    let (ended_at, exit) = command.ended.unzip();
    DetachedExec {
        id: command.id,
        command: command.command,
        user: command.user,
        tty: command.terminal,
        state: match exit {
            Some(_) => DetachedExecState::Exited,
            None => DetachedExecState::Running,
        },
        attached: u32::try_from(command.attached).unwrap_or(u32::MAX),
        started_at: command.started,
        ended_at,
        exit_code: exit.as_ref().map(|exit| exit.code),
        message: exit.and_then(|exit| exit.message),
    }
}

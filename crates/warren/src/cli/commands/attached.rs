//! `warren exec` and `warren attach`: a person joined to a process in a guest.

use super::execs::{self, Typing};
use super::logs::{Escapes, LineWriter, Times};
use super::{Outcome, Session};
use crate::cli::args::{AttachArgs, ExecArgs};
use crate::cli::failure::CliError;
use crate::cli::session::{Ended, Input, Keys, exit_code, join, signal_code};
use crate::cli::terminal::{Size, stdin_is_terminal};
use crate::cli::values::resolve_env;
use futures::StreamExt;
use std::time::Duration;
use warren_api::DetachedExecStart;
use warren_api::client::LogsQuery;
use warren_api::exec::{ExecStart, TerminalSize};
use warren_api::instance::Instance;
use warren_core::ports::host_link::Follow;

/// Refuses a terminal that is none.
pub(super) fn check_terminal() -> Result<(), CliError> {
    if stdin_is_terminal() {
        Ok(())
    } else {
        Err(CliError::refused(
            "standard input is not a terminal",
            "leave -t away: -i alone sends standard input",
        ))
    }
}

/// The terminal's size as the API has it.
pub(super) fn terminal_size() -> TerminalSize {
    let size = Size::current();
    TerminalSize {
        rows: size.rows,
        cols: size.columns,
    }
}

/// `warren exec`
pub(super) async fn exec(session: &Session, args: ExecArgs) -> Outcome {
    let (input, keys) = match (args.interactive, args.tty) {
        (true, true) => {
            check_terminal()?;
            (Input::Stdin, Keys::Raw)
        }
        (true, false) => (Input::Stdin, Keys::Signals),
        (false, false) => (Input::Empty, Keys::Signals),
        // An end of input would hang up the terminal that was asked for.
        (false, true) => (Input::Untouched, Keys::Signals),
    };
    let name = args.name().to_owned();
    let size = args.tty.then(terminal_size);
    if args.detach || args.keep {
        let is_kept = args.keep;
        let start = detached_start(args, size);
        if !is_kept {
            return execs::start(session, &name, start).await;
        }
        // Without input it has an empty one from its start on.
        let input = match input {
            Input::Stdin => Input::Stdin,
            Input::Empty | Input::Untouched => Input::Untouched,
        };
        let exec = session.client.start_exec(&name, &start).await?;
        return execs::follow(session, &name, &exec.id, size, (input, keys)).await;
    }
    let start = ExecStart {
        command: args.command().to_vec(),
        tty: args.tty,
        env: resolve_env(args.env, |name| std::env::var(name).ok()),
        cwd: args.workdir,
        user: args.user,
        timeout: args.timeout.map(whole_seconds),
        wait_for_agent: None,
        rows: size.map(|size| size.rows),
        cols: size.map(|size| size.cols),
    };
    let connection = session.client.exec(&name, &start).await?;
    let ended = join(connection, input, keys, &session.out).await?;
    conclude(
        session,
        ended,
        "left the command: it ends with its connection",
    )
}

/// The exit status after a session, and what there is to say: `left` where the process was left.
pub(super) fn conclude(session: &Session, ended: Ended, left: &str) -> Outcome {
    match ended {
        Ended::Exited { code, message } => {
            if let Some(message) = message {
                session.out.note(message);
            }
            Ok(exit_code(code))
        }
        Ended::Detached => {
            session.out.note(left);
            Ok(0)
        }
        Ended::Interrupted(signal) => Ok(signal_code(signal)),
    }
}

fn whole_seconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn detached_start(args: ExecArgs, size: Option<TerminalSize>) -> DetachedExecStart {
    DetachedExecStart {
        id: None,
        command: args.command().to_vec(),
        tty: args.tty,
        stdin: args.interactive,
        env: resolve_env(args.env, |name| std::env::var(name).ok()),
        cwd: args.workdir,
        user: args.user,
        timeout: args.timeout.map(whole_seconds),
        rows: size.map(|size| size.rows),
        cols: size.map(|size| size.cols),
    }
}

/// `warren attach`
pub(super) async fn attach(session: &Session, args: AttachArgs) -> Outcome {
    if let Some(exec) = &args.exec {
        let typing = match args.no_stdin {
            true => Typing::Kept,
            false => Typing::Sent,
        };
        return execs::attach(session, &args.name, exec, typing).await;
    }
    let instance = session.client.instance(&args.name).await?;
    if !instance.open_stdin {
        return watch(session, &instance).await;
    }
    let raw = instance.tty && !args.no_stdin && stdin_is_terminal();
    let (input, keys) = match (args.no_stdin, raw) {
        (true, _) => (Input::Untouched, Keys::Own),
        (false, true) => (Input::Stdin, Keys::Raw),
        (false, false) => (Input::Stdin, Keys::Own),
    };
    let size = instance.tty.then(terminal_size);
    let connection = session.client.attach(&instance.id, size).await?;
    if raw {
        session.out.note(format!(
            "attached to {}: Ctrl-P Ctrl-Q leaves it running",
            instance.name
        ));
    }
    let ended = join(connection, input, keys, &session.out).await?;
    conclude(session, ended, &format!("left {} running", instance.name))
}

/// A workload that reads nothing has only output, and its log has all of it. Ctrl-C ends this program
/// and nothing else.
async fn watch(session: &Session, instance: &Instance) -> Outcome {
    let query = LogsQuery {
        tail: Some(0),
        follow: Follow::Yes,
        ..LogsQuery::default()
    };
    let mut writer = LineWriter::new(Times::Hidden, Escapes::Filtered, &session.out);
    let mut entries = session.client.logs(&instance.id, query);
    while let Some(entry) = entries.next().await {
        writer.show(&entry?, &session.out)?;
    }
    let now = session.client.instance(&instance.id).await?;
    match now.exit_code {
        Some(code) => Ok(exit_code(code)),
        None => Err(CliError::plain(format!(
            "{} is {} and has no exit code",
            now.name, now.state
        ))),
    }
}

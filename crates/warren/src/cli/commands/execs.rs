//! `warren execs`, and going back to a command that was left running.

use super::attached::{check_terminal, conclude, terminal_size};
use super::{Outcome, Session, each, outcome};
use crate::cli::args::{ExecsArgs, OutputFormat};
use crate::cli::failure::CliError;
use crate::cli::output::{Detail, Field, Look, Row};
use crate::cli::session::{Ended, Input, Keys, join};
use crate::cli::text::{ago, one_line, shorten};
use time::OffsetDateTime;
use warren_api::{DetachedExec, DetachedExecStart, DetachedExecState};

/// The longest command in a short table.
const COMMAND: usize = 48;

fn state(exec: &DetachedExec) -> (String, Look) {
    match (exec.state, exec.exit_code) {
        (DetachedExecState::Running, _) => ("running".to_owned(), Look::Good),
        (DetachedExecState::Exited, Some(0)) => ("exited (0)".to_owned(), Look::Plain),
        (DetachedExecState::Exited, code) => {
            (format!("exited ({})", code.unwrap_or(-1)), Look::Bad)
        }
    }
}

impl Row for DetachedExec {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["ID", "COMMAND", "STATE", "ATTACHED", "STARTED"]
    }

    fn cells(&self, detail: Detail) -> Vec<Field> {
        let (text, look) = state(self);
        // What a guest says of itself may be anything.
        let command = one_line(&self.command.join(" "));
        let command = match detail {
            Detail::Short => shorten(&command, COMMAND),
            Detail::Untruncated | Detail::Wide => command,
        };
        vec![
            Field::new(one_line(&self.id)),
            Field::new(command),
            Field::new(text).looking(look),
            Field::new(self.attached.to_string()),
            Field::new(ago(self.started_at, OffsetDateTime::now_utc())),
        ]
    }

    fn name(&self) -> String {
        one_line(&self.id)
    }
}

/// `warren execs`
pub(super) async fn execs(session: &Session, args: ExecsArgs) -> Outcome {
    if args.removed.is_empty() {
        let all = session.client.execs(&args.name).await?;
        session.out.list(&all, Detail::Short)?;
        return Ok(0);
    }
    let (done, failure) = each(session, &args.removed, async |id: String| {
        Ok(session.client.remove_exec(&args.name, &id).await?)
    })
    .await;
    for (id, ()) in done {
        session.out.line(&id)?;
    }
    outcome(failure)
}

/// Starts a command without staying with it.
pub(super) async fn start(session: &Session, name: &str, start: DetachedExecStart) -> Outcome {
    let exec = session.client.start_exec(name, &start).await?;
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Name => session.out.line(&exec.id)?,
        OutputFormat::Json | OutputFormat::Yaml | OutputFormat::Table | OutputFormat::Wide => {
            session.out.list(&[exec], Detail::Short)?;
        }
    }
    Ok(0)
}

/// Whether what is typed goes to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typing {
    Sent,
    Kept,
}

/// Connects to a command until it ends or is left.
pub(super) async fn attach(session: &Session, name: &str, exec: &str, typing: Typing) -> Outcome {
    let found = session.client.exec_of(name, exec).await?;
    let (input, keys) = match (typing, found.tty) {
        (Typing::Kept, _) => (Input::Untouched, Keys::Own),
        (Typing::Sent, true) => {
            check_terminal()?;
            (Input::Stdin, Keys::Raw)
        }
        (Typing::Sent, false) => (Input::Stdin, Keys::Own),
    };
    let size = (keys == Keys::Raw).then(terminal_size);
    follow(session, name, exec, size, (input, keys)).await
}

/// The same, with what to do with input and keys decided.
pub(super) async fn follow(
    session: &Session,
    name: &str,
    exec: &str,
    size: Option<warren_api::exec::TerminalSize>,
    (input, keys): (Input, Keys),
) -> Outcome {
    let back = format!("`warren attach --exec {exec} {name}` goes back to it");
    if keys == Keys::Raw {
        let words = format!("attached to {exec}: Ctrl-P Ctrl-Q leaves it running");
        session.out.note(words);
    }
    let connection = session.client.attach_exec(name, exec, size).await?;
    match join(connection, input, keys, &session.out).await {
        Ok(ended) => {
            if let Ended::Interrupted(_) = ended {
                session.out.note(format!("{exec} runs on: {back}"));
            }
            conclude(session, ended, &format!("left {exec} running: {back}"))
        }
        Err(error @ CliError::Client(_)) => {
            session.out.note(format!("{exec} may still run: {back}"));
            Err(error)
        }
        Err(error) => Err(error),
    }
}

//! `warren run`: from an image's reference to the exit code of its command.

use super::attached::{check_terminal, terminal_size};
use super::instances::{is_missing, remove_quietly, started};
use super::logs::{Escapes, LineWriter, Times};
use super::request::{entropy, made_up_name, request};
use super::{Outcome, Session, images};
use crate::cli::args::{OutputFormat, PullPolicy, RunArgs};
use crate::cli::failure::CliError;
use crate::cli::session::{Ended, Input, Keys, exit_code, feed_only, join, signal_code};
use crate::cli::values::{read_env_file, resolve_env};
use futures::StreamExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use warren_api::client::{ClientError, CreateOptions, LogsQuery, UntilReady};
use warren_api::image::CreateImageRequest;
use warren_api::instance::{CreateInstanceRequest, Instance, InstanceState, WaitForStateResponse};
use warren_core::ports::host_link::Follow;

/// How long a machine may take to be there before attaching to it is given up.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// One question about the end of an instance.
const ONE_WAIT: Duration = Duration::from_secs(50);
/// How long to wait for an answer that should be here already.
const LATE_ANSWER: Duration = Duration::from_secs(5);
/// How long a request made on the way out may take.
const LAST_REQUEST: Duration = Duration::from_secs(10);
/// Interruptions closer together than this are one.
const ONE_PRESS: Duration = Duration::from_millis(300);
/// Names made up before it is somebody's fault that all are taken.
const NAMES: u32 = 5;

/// The keys in these files: one a line, as ssh-keygen(1) writes them; comments and empty lines are none.
fn read_keys(files: &[PathBuf]) -> Result<Vec<String>, CliError> {
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|source| CliError::File {
            what: file.display().to_string(),
            source,
        })?;
        if text.contains("PRIVATE KEY") {
            return Err(CliError::refused(
                format!("{} is a private key", file.display()),
                format!("name the public one: {}.pub", file.display()),
            ));
        }
        let lines = text.lines().map(str::trim);
        let found = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(found.map(str::to_owned));
    }
    Ok(keys)
}

async fn pull(session: &Session, args: &RunArgs) -> Result<(), CliError> {
    let request = CreateImageRequest {
        name: args.image().to_owned(),
        plain_http: args.plain_http.then_some(true),
        ..CreateImageRequest::default()
    };
    images::fetch(session, &request).await.map(drop)
}

/// Creates the instance; pulls its image when it is not there and that is allowed.
async fn create(
    session: &Session,
    args: &RunArgs,
    until: UntilReady,
) -> Result<Instance, CliError> {
    let mut words = Vec::new();
    for file in &args.env_file {
        words.extend(read_env_file(file)?);
    }
    words.extend(args.env.iter().cloned());
    let env = resolve_env(words, |name| std::env::var(name).ok());
    let ssh_keys = read_keys(&args.ssh_keys)?;
    if args.pull == PullPolicy::Always {
        pull(session, args).await?;
    }
    let mut may_pull = args.pull == PullPolicy::Missing;
    let mut names_left = NAMES;
    loop {
        let name = args
            .name
            .clone()
            .unwrap_or_else(|| made_up_name(args.image(), entropy()));
        let options = CreateOptions {
            until,
            idempotency_key: None,
        };
        let request = CreateInstanceRequest {
            ssh_keys: ssh_keys.clone(),
            ..request(args, name, env.clone())
        };
        match session.client.create_instance(&request, &options).await {
            Ok(instance) => {
                for warning in &instance.warnings {
                    session.out.warn(warning);
                }
                return Ok(instance);
            }
            Err(error) if error.code() == Some("image_not_found") && may_pull => {
                may_pull = false;
                pull(session, args).await?;
            }
            Err(error)
                if error.code() == Some("name_taken") && args.name.is_none() && names_left > 0 =>
            {
                names_left -= 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// `warren run`
pub(super) async fn run(session: &Session, args: RunArgs) -> Outcome {
    if args.detach {
        let instance = create(session, &args, UntilReady::Wait).await?;
        let instance = or_removed(session, &args, instance).await?;
        match session.out.format(OutputFormat::Name) {
            OutputFormat::Json => session.out.json(&instance)?,
            OutputFormat::Yaml => session.out.yaml(&instance)?,
            OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {
                session.out.line(&instance.id)?;
            }
        }
        return Ok(0);
    }
    match (args.interactive, args.tty) {
        (true, true) => {
            check_terminal()?;
            with_terminal(session, &args, Keys::Raw).await
        }
        (false, true) => with_terminal(session, &args, Keys::Signals).await,
        (_, false) => without_terminal(session, &args).await,
    }
}

/// An instance that started; one that did not is removed where it would have been, and is a failure.
async fn or_removed(
    session: &Session,
    args: &RunArgs,
    instance: Instance,
) -> Result<Instance, CliError> {
    let id = instance.id.clone();
    match started(instance) {
        Ok(instance) => Ok(instance),
        Err(error) => {
            if args.rm {
                remove_quietly(session, &id).await?;
                // Logs of what is gone cannot be looked at.
                return Err(CliError::plain(error.sentence()));
            }
            Err(error)
        }
    }
}

/// In the foreground, with the workload's terminal as ours.
async fn with_terminal(session: &Session, args: &RunArgs, keys: Keys) -> Outcome {
    let instance = create(session, args, UntilReady::Wait).await?;
    let instance = or_removed(session, args, instance).await?;
    let deadline = Instant::now() + BOOT_DEADLINE;
    // What was written before we are there is replayed to whoever attaches.
    let connection = loop {
        match session
            .client
            .attach(&instance.id, Some(terminal_size()))
            .await
        {
            Ok(connection) => break connection,
            Err(error) if may_be_over(&error) && Instant::now() < deadline => {
                let answer = session
                    .client
                    .wait_for_state(&instance.id, InstanceState::Running, LATE_ANSWER)
                    .await;
                let over = match &answer {
                    Ok(answer) => answer.state == InstanceState::Stopped,
                    Err(error) => is_missing(error),
                };
                if over {
                    // It ended before anybody could attach: its output is in its log.
                    show_log(session, args, &instance.id).await?;
                    return conclude(session, args, &instance, answer.ok()).await;
                }
            }
            Err(error) => return Err(error.into()),
        }
    };
    let input = match keys {
        Keys::Raw => Input::Stdin,
        Keys::Signals | Keys::Own => Input::Untouched,
    };
    match join(connection, input, keys, &session.out).await {
        Ok(Ended::Exited { code, message }) => {
            if let Some(message) = message {
                session.out.note(message);
            }
            if args.rm {
                remove_quietly(session, &instance.id).await?;
            }
            Ok(exit_code(code))
        }
        Ok(Ended::Detached) => {
            session.out.note(format!(
                "left {name} running: `warren attach {name}` goes back to it",
                name = instance.name
            ));
            Ok(0)
        }
        Ok(Ended::Interrupted(signal)) => {
            abandon(session, args, &instance).await;
            Ok(signal_code(signal))
        }
        Err(error) => {
            if error.is_broken_pipe() {
                abandon(session, args, &instance).await;
            } else {
                session.out.note(format!(
                    "{name} may still run: `warren attach {name}` goes back to it",
                    name = instance.name
                ));
            }
            Err(error)
        }
    }
}

/// Whether a refused attach may mean that the workload has ended, or has not begun.
fn may_be_over(error: &ClientError) -> bool {
    matches!(error.status(), Some(404 | 409 | 503))
}

async fn show_log(session: &Session, args: &RunArgs, id: &str) -> Result<(), CliError> {
    let mut writer = line_writer(session, args);
    let mut entries = session.client.logs(id, LogsQuery::default());
    while let Some(entry) = entries.next().await {
        match entry {
            Ok(entry) => writer.show(&entry, &session.out)?,
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn line_writer(session: &Session, args: &RunArgs) -> LineWriter {
    let escapes = if args.raw || args.tty {
        Escapes::Passed
    } else {
        Escapes::Filtered
    };
    LineWriter::new(Times::Hidden, escapes, &session.out)
}

/// This program ends before the workload did: one that was to leave nothing behind is removed, another is
/// asked to stop. Nothing can be done about a server that does not answer now.
async fn abandon(session: &Session, args: &RunArgs, instance: &Instance) {
    let last = async {
        if args.rm {
            let _ = session.client.delete_instance(&instance.id).await;
        } else {
            let _ = session.client.stop_instance(&instance.id).await;
        }
    };
    let _ = tokio::time::timeout(LAST_REQUEST, last).await;
}

/// Asks again and again until the instance has stopped. Its answer has the exit code even where the
/// instance is removed right afterwards.
fn watch_end(session: &Session, id: &str) -> JoinHandle<Option<WaitForStateResponse>> {
    let client = session.client.clone();
    let id = id.to_owned();
    tokio::spawn(async move {
        loop {
            match client
                .wait_for_state(&id, InstanceState::Stopped, ONE_WAIT)
                .await
            {
                Ok(answer) if answer.state == InstanceState::Stopped => return Some(answer),
                Ok(answer) if answer.timed_out => {}
                Ok(_) => return None,
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(_) => return None,
            }
        }
    })
}

/// Waits for the machine and sends stdin to its workload; its output comes by the log.
fn feed_stdin(session: &Session, id: &str) -> JoinHandle<Result<(), ClientError>> {
    let client = session.client.clone();
    let id = id.to_owned();
    tokio::spawn(async move {
        let deadline = Instant::now() + BOOT_DEADLINE;
        let connection = loop {
            match client.attach(&id, None).await {
                Ok(connection) => break connection,
                Err(error) if error.code() == Some("wrong_state") && Instant::now() < deadline => {
                    let answer = client
                        .wait_for_state(&id, InstanceState::Running, LATE_ANSWER)
                        .await?;
                    if answer.state == InstanceState::Stopped {
                        return Ok(());
                    }
                }
                Err(error) if is_missing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        };
        feed_only(connection).await;
        Ok(())
    })
}

/// In the foreground with plain streams: output as it is logged, Ctrl-C as a wish to stop.
async fn without_terminal(session: &Session, args: &RunArgs) -> Outcome {
    let on = |kind| signal(kind).map_err(CliError::Signals);
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    let instance = tokio::select! {
        created = create(session, args, UntilReady::Return) => created?,
        _ = interrupt.recv() => return Ok(signal_code(2)),
        _ = terminate.recv() => return Ok(signal_code(15)),
    };
    let restarts = args
        .restart
        .is_some_and(|restart| restart.when != warren_core::restart::RestartWhen::Never);
    // With restarts, a stop may not be the end; then only the log's end says so.
    let end = (!restarts).then(|| watch_end(session, &instance.id));
    let feeder = args.interactive.then(|| feed_stdin(session, &instance.id));
    let query = LogsQuery {
        follow: Follow::Yes,
        ..LogsQuery::default()
    };
    let mut entries = session.client.logs(&instance.id, query);
    let mut writer = line_writer(session, args);
    let mut stopping = None;
    let shown = loop {
        let signal = tokio::select! {
            biased;
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            entry = entries.next() => match entry {
                Some(Ok(entry)) => match writer.show(&entry, &session.out) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
                Some(Err(error)) if is_missing(&error) => break Ok(()),
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
        };
        // One key press can arrive twice: from the terminal, and from a parent that passes it on.
        let again = stopping
            .as_ref()
            .map(|(since, _): &(Instant, JoinHandle<()>)| since.elapsed() > ONE_PRESS);
        if again.is_none() {
            session
                .out
                .note(format!("stopping {}; once more kills it", instance.name));
            stopping = Some((Instant::now(), request_stop(session, &instance.id)));
        } else if again == Some(true) {
            return kill(session, args, &instance, signal).await;
        }
    };
    if let Some(feeder) = feeder {
        feeder.abort();
    }
    if let Err(error) = shown {
        if error.is_broken_pipe() {
            abandon(session, args, &instance).await;
        } else {
            session.out.note(format!(
                "{name} may still run: `warren logs -f {name}` shows its output",
                name = instance.name
            ));
        }
        return Err(error);
    }
    let answer = match end {
        Some(end) => tokio::time::timeout(LATE_ANSWER, end)
            .await
            .ok()
            .and_then(Result::ok)
            .flatten(),
        None => None,
    };
    conclude(session, args, &instance, answer).await
}

fn request_stop(session: &Session, id: &str) -> JoinHandle<()> {
    let client = session.client.clone();
    let out = session.out.clone();
    let id = id.to_owned();
    tokio::spawn(async move {
        match client.stop_instance(&id).await {
            Ok(_) => {}
            // It ended by itself, or was removed as it should be.
            Err(error) if matches!(error.status(), Some(404 | 409)) => {}
            Err(error) => out.error(&error.into()),
        }
    })
}

/// The second Ctrl-C: nothing is waited for any more.
async fn kill(session: &Session, args: &RunArgs, instance: &Instance, signal: i32) -> Outcome {
    if args.rm {
        session.out.note(format!("killing {}", instance.name));
        let killed =
            tokio::time::timeout(LAST_REQUEST, remove_quietly(session, &instance.id)).await;
        if let Ok(Err(error)) = killed {
            session.out.error(&error);
        }
    } else {
        session.out.note(format!(
            "{name} is still stopping, and is killed when its time is up; `warren rm -f {name}` removes it at once",
            name = instance.name
        ));
    }
    Ok(signal_code(signal))
}

/// The exit code of an instance whose output has ended, and its removal if that was asked for.
async fn conclude(
    session: &Session,
    args: &RunArgs,
    instance: &Instance,
    answer: Option<WaitForStateResponse>,
) -> Outcome {
    let ending = match session.client.instance(&instance.id).await {
        Ok(now) => Ending {
            state: now.state,
            code: now.exit_code,
            message: now.exit_message,
            failure: now.state_error,
        },
        Err(error) if is_missing(&error) => match answer {
            Some(answer) => Ending {
                state: answer.state,
                code: answer.exit_code,
                message: None,
                failure: answer.state_error,
            },
            None => {
                return Err(CliError::plain(format!(
                    "{} was removed before its exit code could be read",
                    instance.name
                )));
            }
        },
        Err(error) => return Err(error.into()),
    };
    let outcome = ending.judge(&instance.name);
    if let Ok((_, Some(message))) = &outcome {
        session.out.note(message);
    }
    if args.rm {
        remove_quietly(session, &instance.id).await?;
        // Logs of what is gone cannot be looked at.
        return outcome
            .map(|(code, _)| code)
            .map_err(|error| CliError::plain(error.sentence()));
    }
    outcome.map(|(code, _)| code)
}

/// How an instance was found after its output had ended.
#[derive(Debug)]
struct Ending {
    state: InstanceState,
    code: Option<i32>,
    message: Option<String>,
    failure: Option<String>,
}

impl Ending {
    /// Its exit code, with what there is to say about it; a failure where Warren could not run it.
    fn judge(self, name: &str) -> Result<(u8, Option<String>), CliError> {
        match (self.code, self.failure) {
            (Some(code), _) => Ok((exit_code(code), self.message)),
            (None, Some(reason)) => Err(CliError::refused(
                format!("{name} failed: {reason}"),
                format!("`warren logs --source console {name}` has the guest's own messages"),
            )),
            (None, None) => Err(CliError::plain(format!(
                "{name} is {} and has no exit code",
                self.state
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn an_ending_is_the_guests_code_or_our_failure() {
        let ending = |code, failure: Option<&str>| Ending {
            state: InstanceState::Stopped,
            code,
            message: None,
            failure: failure.map(str::to_owned),
        };
        assert_eq!(ending(Some(7), None).judge("n").unwrap().0, 7);
        assert_eq!(ending(Some(127), Some("x")).judge("n").unwrap().0, 127);
        let error = ending(None, Some("no kernel")).judge("n").unwrap_err();
        assert!(error.sentence().contains("no kernel"));
        assert!(ending(None, None).judge("n").is_err());
    }
}

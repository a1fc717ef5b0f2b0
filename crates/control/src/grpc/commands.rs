//! Running commands. A command's standard input is empty: there is nothing in this API to fill it with.

use super::LARGEST_CONTENT;
use super::caller::Caller;
use super::lifecycle::stopping;
use super::refusal::invalid;
use super::wire::{ExecuteCommandRequest, ExecuteCommandResponse, ExecuteCommandStreamResponse};
use crate::app::{App, AppError};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};

/// Where a command starts when nothing is said.
const HOME: &str = "/root";
/// How long a VM that is on its way up is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest time a command may be given.
const LONGEST: i32 = 7 * 86_400;
/// The guest ends a command whose time is up. This is how long its word on that may take.
const LATE: Duration = Duration::from_secs(2);
/// What a terminal is: nobody looks at it.
const TERMINAL: (u16, u16) = (24, 80);
/// The trailing metadata that has the exit code.
const EXIT_CODE: &str = "exit-code";

/// A command on its way.
struct Running {
    output: warren_core::ports::BoxStream<Result<ExecOutput, warren_core::PortError>>,
    /// Dropping it ends the command.
    _input: Box<dyn ExecSink>,
    started: Instant,
    limit: Option<Duration>,
    app: App,
}

/// The next of a command.
enum Step {
    Data(OutputStream, Bytes),
    Exited(i32, Option<String>),
}

impl Running {
    async fn next(&mut self) -> Result<Step, Status> {
        let late = self.limit.map(|limit| self.started + limit + LATE);
        let over = async {
            match late {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let said = tokio::select! {
            said = self.output.next() => said,
            () = over => return Err(self.time_is_up()),
            () = self.app.stopping().cancelled() => return Err(stopping()),
        };
        match said {
            Some(Ok(ExecOutput::Data(stream, bytes))) => Ok(Step::Data(stream, bytes)),
            Some(Ok(ExecOutput::Exited { .. })) if self.has_run_out() => Err(self.time_is_up()),
            Some(Ok(ExecOutput::Exited { code, message })) => Ok(Step::Exited(code, message)),
            Some(Err(error)) => Err(AppError::Port(error).into()),
            None => Err(Status::unavailable(
                "the host went away before the command's exit code came",
            )),
        }
    }

    fn has_run_out(&self) -> bool {
        self.limit
            .is_some_and(|limit| self.started.elapsed() >= limit)
    }

    fn time_is_up(&self) -> Status {
        let seconds = self.limit.unwrap_or_default().as_secs();
        Status::deadline_exceeded(format!(
            "the command and all it had started were killed after {seconds} s"
        ))
    }
}

fn command(request: ExecuteCommandRequest) -> Result<ExecCommand, Status> {
    let timeout = match request.timeout_seconds {
        0 => None,
        1..=LONGEST => Some(Duration::from_secs(u64::from(
            request.timeout_seconds.unsigned_abs(),
        ))),
        _ => {
            let bound = format_args!("must be 1 to {LONGEST}, or 0 for no end").to_string();
            return Err(invalid("timeout_seconds", bound));
        }
    };
    Ok(ExecCommand {
        program: Program::Command(request.command),
        env: request.env,
        working_dir: Some(match request.working_dir {
            dir if dir.is_empty() => HOME.to_owned(),
            dir => dir,
        }),
        user: None,
        terminal: request.tty.then_some(TERMINAL),
        timeout,
    })
}

async fn begin(
    app: &App,
    caller: &Caller,
    request: ExecuteCommandRequest,
) -> Result<Running, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let command = command(request)?;
    let limit = command.timeout;
    let session = app
        .exec(found.intent.id.as_str(), command, PATIENCE)
        .await?;
    let ExecSession { mut input, output } = session;
    // One that has ended already takes no more input: what it said is still to come.
    drop(input.send(ExecInput::CloseStdin).await);
    Ok(Running {
        output,
        _input: input,
        started: Instant::now(),
        limit,
        app: app.clone(),
    })
}

pub(super) async fn run(
    app: &App,
    caller: &Caller,
    request: ExecuteCommandRequest,
) -> Result<ExecuteCommandResponse, Status> {
    let called = Instant::now();
    let mut running = begin(app, caller, request).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let code = loop {
        match running.next().await? {
            Step::Data(OutputStream::Stdout, bytes) => stdout.extend_from_slice(&bytes),
            Step::Data(OutputStream::Stderr, bytes) => stderr.extend_from_slice(&bytes),
            Step::Exited(code, message) => {
                if let Some(message) = message {
                    stderr.extend_from_slice(message.as_bytes());
                    stderr.push(b'\n');
                }
                break code;
            }
        }
        fits(stdout.len() + stderr.len())?;
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    // What is not UTF-8 has grown.
    fits(stdout.len() + stderr.len())?;
    Ok(ExecuteCommandResponse {
        exit_code: code,
        stdout,
        stderr,
        execution_time_ms: i64::try_from(called.elapsed().as_millis()).unwrap_or(i64::MAX),
    })
}

fn fits(length: usize) -> Result<(), Status> {
    if length <= LARGEST_CONTENT {
        return Ok(());
    }
    Err(Status::resource_exhausted(
        "the command was ended: it said more than fits in a message of 100 MB; use ExecuteCommandStream",
    ))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What a client is sent, one after the other.
pub(super) type Pieces = BoxStream<'static, Result<ExecuteCommandStreamResponse, Status>>;

pub(super) async fn stream(
    app: &App,
    caller: &Caller,
    request: ExecuteCommandRequest,
) -> Result<Pieces, Status> {
    let running = begin(app, caller, request).await?;
    let pieces = stream::unfold(Some(running), |running| async move {
        let mut running = running?;
        match running.next().await {
            Ok(Step::Data(stream, data)) => Some((vec![Ok(piece(stream, data))], Some(running))),
            Ok(Step::Exited(code, message)) => {
                let mut last = Vec::new();
                if let Some(message) = message {
                    let data = Bytes::from(message + "\n");
                    last.push(Ok(piece(OutputStream::Stderr, data)));
                }
                last.push(Err(ended(code)));
                Some((last, None))
            }
            Err(status) => Some((vec![Err(status)], None)),
        }
    });
    Ok(pieces.flat_map(stream::iter).boxed())
}

fn piece(stream: OutputStream, data: Bytes) -> ExecuteCommandStreamResponse {
    let stream_type = match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    };
    ExecuteCommandStreamResponse {
        stream_type: stream_type.to_owned(),
        data,
    }
}

/// The end of a stream that went well: the only way to trailing metadata.
fn ended(code: i32) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(EXIT_CODE, MetadataValue::from(code));
    Status::with_metadata(Code::Ok, "", trailers)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn request(words: &[&str]) -> ExecuteCommandRequest {
        ExecuteCommandRequest {
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecuteCommandRequest::default()
        }
    }

    #[test]
    fn a_command_starts_in_the_home_directory_of_root() {
        let made = command(request(&["python3", "--version"])).unwrap();
        assert_eq!(made.working_dir.as_deref(), Some("/root"));
        assert_eq!((made.timeout, made.terminal), (None, None));
        let elsewhere = ExecuteCommandRequest {
            working_dir: "/srv".into(),
            timeout_seconds: 7,
            tty: true,
            ..request(&["ls"])
        };
        let made = command(elsewhere).unwrap();
        assert_eq!(made.working_dir.as_deref(), Some("/srv"));
        assert_eq!(made.timeout, Some(Duration::from_secs(7)));
        assert_eq!(made.terminal, Some(TERMINAL));
    }

    #[test]
    fn a_time_beyond_bounds_is_refused() {
        for seconds in [-1, i32::MIN, LONGEST + 1] {
            let refused = command(ExecuteCommandRequest {
                timeout_seconds: seconds,
                ..request(&["ls"])
            });
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains("timeout_seconds"));
        }
    }

    #[test]
    fn output_is_text() {
        assert_eq!(text(b"caf\xc3\xa9".to_vec()), "café");
        assert_eq!(text(vec![b'a', 0xff]), "a\u{fffd}");
    }

    #[test]
    fn output_beyond_a_message_is_refused() {
        assert!(fits(LARGEST_CONTENT).is_ok());
        let refused = fits(LARGEST_CONTENT + 1).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("ExecuteCommandStream"));
    }
}

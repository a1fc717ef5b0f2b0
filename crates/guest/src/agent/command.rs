//! Attends to one running command: its input, its output, its time limit, its end.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::capture::STRAGGLER_PATIENCE;
use super::process::{Connection, Pipe, Process};
use crate::protocol::{ExecInput, ExitReport, ExitStatus};
use crate::serve::ExecIo;

const CHUNK: usize = 16 * 1024;
/// End of transmission: what ends input on a terminal in its usual mode.
const END_OF_TRANSMISSION: &[u8] = b"\x04";
/// A command without a limit of its own.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
const SIGKILL: i32 = 9;

/// Runs until the command is over and its output is sent. Dropping the future, or the process, ends the command.
pub(super) async fn attend(
    process: &mut Process,
    io: &mut ExecIo,
    connection: Connection,
    limit: Option<Duration>,
) -> ExitReport {
    let deadline = Instant::now() + limit.unwrap_or(NO_LIMIT).min(NO_LIMIT);
    let mut stdin = process.stdin.take();
    let (mut out_buffer, mut err_buffer) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut stdout, mut stderr) = (Some(process.stdout.clone()), process.stderr.clone());
    let (mut exit, mut message) = (None::<ExitStatus>, None);
    // One piece of input that the command has not taken yet; no more is read from the host until it has.
    let mut unwritten = None::<bytes::Bytes>;
    while stdout.is_some() || stderr.is_some() || exit.is_none() {
        let after_exit = exit.is_some();
        tokio::select! {
            read = read(stdout.as_ref(), &mut out_buffer), if stdout.is_some() => match read {
                0 => stdout = None,
                // A failure to send is the host's going: this future is about to be dropped.
                read => drop(io.stdout(&out_buffer[..read]).await),
            },
            read = read(stderr.as_ref(), &mut err_buffer), if stderr.is_some() => match read {
                0 => stderr = None,
                read => drop(io.stderr(&err_buffer[..read]).await),
            },
            status = process.exited(), if !after_exit => exit = Some(status),
            () = tokio::time::sleep(STRAGGLER_PATIENCE), if after_exit => break,
            () = sleep_until(deadline), if !after_exit && message.is_none() => {
                message = Some("its time was up".to_owned());
                process.signal_group(SIGKILL);
            }
            written = write(stdin.as_ref(), unwritten.as_ref()), if unwritten.is_some() => {
                unwritten = written;
            }
            input = io.input.recv(), if unwritten.is_none() && !after_exit => match input {
                Some(ExecInput::Stdin(data)) => unwritten = Some(data).filter(|data| !data.is_empty()),
                Some(ExecInput::StdinClose) => match connection {
                    Connection::Terminal(_) => {
                        unwritten = Some(bytes::Bytes::from_static(END_OF_TRANSMISSION));
                    }
                    Connection::Pipes(_) => stdin = None,
                },
                Some(ExecInput::Resize(terminal)) => process.control.resize(terminal),
                Some(ExecInput::Signal(signal)) => process.signal_group(signal),
                None => {}
            },
        }
    }
    ExitReport {
        status: exit.unwrap_or(ExitStatus::Signal(SIGKILL)),
        message,
    }
}

async fn read(pipe: Option<&Pipe>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Writes a part and gives back the rest. Input for a command that takes none is dropped.
async fn write(stdin: Option<&Pipe>, data: Option<&bytes::Bytes>) -> Option<bytes::Bytes> {
    let (Some(stdin), Some(data)) = (stdin, data) else {
        return None;
    };
    match stdin.write(data).await {
        Ok(written) if written < data.len() => Some(data.slice(written..)),
        Ok(_) | Err(_) => None,
    }
}

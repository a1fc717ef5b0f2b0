//! A person's terminal (or pipes) joined to a process in a guest, until one of them ends. Used by
//! `exec`, `attach` and `run -i`. Input is sent by a task of its own, so that a guest that does not read
//! cannot keep its output from being shown.

use super::failure::CliError;
use super::output::{Output, Stream};
use super::terminal::{DetachKeys, RawMode, Size, Typed, read_stdin};
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use warren_api::client::{ExecConnection, ExecWriter};
use warren_core::ports::host_link::{ExecInput, ExecOutput, OutputStream};

/// Signal numbers that are the same on every Linux (signal(7)).
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGHUP: i32 = 1;

/// Interruptions that are passed on before this program gives up.
const PATIENCE: u32 = 3;

/// Whether there is input to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Stdin, to its end.
    Stdin,
    /// Nothing: the process reads an empty stdin.
    Empty,
    /// Nothing, and whatever else feeds the process is left alone.
    Untouched,
}

/// Whose keys and signals they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Every key is the guest's: stdin is a raw terminal.
    Raw,
    /// Ctrl-C is a signal, passed on.
    Signals,
    /// Ctrl-C ends this program; the process is none of its business.
    Own,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process did.
    Exited {
        /// Its exit code.
        code: i32,
        /// In words, where there is something to say.
        message: Option<String>,
    },
    /// The person left; the process may go on.
    Detached,
    /// This program was told to end by this signal.
    Interrupted(i32),
}

/// The signals that a session cares about.
struct Signals {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(CliError::Signals);
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
            resize: on(SignalKind::window_change())?,
        })
    }

    /// The next one, by number; a window change is 28.
    async fn next(&mut self) -> Option<i32> {
        tokio::select! {
            received = self.interrupt.recv() => received.map(|()| SIGINT),
            received = self.quit.recv() => received.map(|()| SIGQUIT),
            received = self.terminate.recv() => received.map(|()| SIGTERM),
            received = self.hang_up.recv() => received.map(|()| SIGHUP),
            received = self.resize.recv() => received.map(|()| SIGWINCH),
        }
    }
}

const SIGWINCH: i32 = 28;

/// What becomes of a signal.
#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    Resize,
    Forward(i32),
    Leave(i32),
}

fn react(keys: Keys, signal: i32, interruptions: u32) -> Reaction {
    match (keys, signal) {
        (Keys::Raw, SIGWINCH) => Reaction::Resize,
        (Keys::Signals | Keys::Own, SIGWINCH) => Reaction::Resize,
        (_, SIGHUP) => Reaction::Leave(SIGHUP),
        (Keys::Raw | Keys::Own, signal) => Reaction::Leave(signal),
        (Keys::Signals, signal) if interruptions >= PATIENCE => Reaction::Leave(signal),
        (Keys::Signals, signal) => Reaction::Forward(signal),
    }
}

/// Joins them. With [`Keys::Raw`] the terminal is raw until this returns.
///
/// # Errors
/// [`CliError`] when the connection breaks or the output cannot be written.
pub(crate) async fn join(
    connection: ExecConnection,
    input: Input,
    keys: Keys,
    out: &Output,
) -> Result<Ended, CliError> {
    let mut signals = Signals::new()?;
    let _raw = match keys {
        Keys::Raw => Some(RawMode::enter().map_err(|source| CliError::File {
            what: "stdin".to_owned(),
            source,
        })?),
        Keys::Signals | Keys::Own => None,
    };
    let (controls, control_queue) = mpsc::channel(8);
    let (detach, mut detached) = mpsc::channel(1);
    let mut output = connection.output;
    let feeder = tokio::spawn(feed(connection.input, input, keys, control_queue, detach));
    let mut interruptions = 0;
    let ended = loop {
        tokio::select! {
            biased;
            signal = signals.next() => {
                let Some(signal) = signal else { continue };
                match react(keys, signal, interruptions) {
                    Reaction::Resize => {
                        let size = Size::current();
                        let resize = ExecInput::Resize { rows: size.rows, columns: size.columns };
                        // A full queue means that a newer size is already waiting to be read.
                        let _ = controls.try_send(resize);
                    }
                    Reaction::Forward(signal) => {
                        interruptions += 1;
                        let _ = controls.try_send(ExecInput::Signal(signal));
                    }
                    Reaction::Leave(signal) => break Ok(Ended::Interrupted(signal)),
                }
            }
            Some(()) = detached.recv() => break Ok(Ended::Detached),
            item = output.next() => match item {
                Some(Ok(ExecOutput::Data(stream, bytes))) => {
                    let stream = match stream {
                        OutputStream::Stdout => Stream::Stdout,
                        OutputStream::Stderr => Stream::Stderr,
                    };
                    if let Err(error) = out.bytes(stream, &bytes) {
                        break Err(error);
                    }
                }
                Some(Ok(ExecOutput::Exited { code, message })) => {
                    break Ok(Ended::Exited { code, message });
                }
                Some(Err(error)) => break Err(error.into()),
                None => break Err(CliError::plain(
                    "the connection ended before the command did",
                )),
            },
        }
    };
    feeder.abort();
    ended
}

/// Sends stdin to a workload whose output is shown by somebody else, until either ends.
pub(crate) async fn feed_only(connection: ExecConnection) {
    // Held open: a closed queue would end the feeding.
    let (_controls, control_queue) = mpsc::channel(1);
    let (detach, _detached) = mpsc::channel(1);
    let mut output = connection.output;
    let drain = async {
        // What is not read would hold up the connection.
        while let Some(Ok(_)) = output.next().await {}
    };
    let feeding = async {
        feed(
            connection.input,
            Input::Stdin,
            Keys::Own,
            control_queue,
            detach,
        )
        .await;
    };
    tokio::select! {
        () = drain => {}
        () = feeding => {}
    }
}

/// Sends what is typed, and resizes and signals as they come. Ends with the connection or the session.
async fn feed(
    mut writer: ExecWriter,
    input: Input,
    keys: Keys,
    mut controls: mpsc::Receiver<ExecInput>,
    detach: mpsc::Sender<()>,
) {
    let mut stdin = match input {
        Input::Stdin => Some(read_stdin()),
        Input::Untouched => None,
        Input::Empty => {
            if writer.send(ExecInput::CloseStdin).await.is_err() {
                return;
            }
            None
        }
    };
    let mut detach_keys = DetachKeys::default();
    loop {
        let next = tokio::select! {
            biased;
            control = controls.recv() => match control {
                Some(control) => control,
                None => return,
            },
            chunk = read(&mut stdin), if stdin.is_some() => match chunk {
                None => {
                    stdin = None;
                    ExecInput::CloseStdin
                }
                Some(chunk) if keys == Keys::Raw => match detach_keys.sort(&chunk) {
                    Typed::Forward(bytes) if bytes.is_empty() => continue,
                    Typed::Forward(bytes) => ExecInput::Stdin(Bytes::from(bytes)),
                    Typed::Detach(bytes) => {
                        if !bytes.is_empty() {
                            let _ = writer.send(ExecInput::Stdin(Bytes::from(bytes))).await;
                        }
                        let _ = detach.send(()).await;
                        return;
                    }
                },
                Some(chunk) => ExecInput::Stdin(Bytes::from(chunk)),
            },
        };
        // The reading half says why the connection is gone.
        if writer.send(next).await.is_err() {
            return;
        }
    }
}

async fn read(stdin: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => None,
    }
}

/// A guest's exit code as this program's own.
pub(crate) fn exit_code(code: i32) -> u8 {
    // Exit codes have eight bits; what does not fit is a failure all the same.
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// The exit code of a program that a signal ended.
pub(crate) fn signal_code(signal: i32) -> u8 {
    exit_code(128 + signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_terminals_signals_end_this_program_and_no_other() {
        assert_eq!(react(Keys::Raw, SIGTERM, 0), Reaction::Leave(SIGTERM));
        assert_eq!(react(Keys::Raw, SIGHUP, 0), Reaction::Leave(SIGHUP));
        assert_eq!(react(Keys::Raw, SIGWINCH, 0), Reaction::Resize);
    }

    #[test]
    fn interruptions_are_passed_on_until_patience_ends() {
        assert_eq!(react(Keys::Signals, SIGINT, 0), Reaction::Forward(SIGINT));
        assert_eq!(react(Keys::Signals, SIGTERM, 2), Reaction::Forward(SIGTERM));
        assert_eq!(react(Keys::Signals, SIGINT, 3), Reaction::Leave(SIGINT));
        assert_eq!(react(Keys::Signals, SIGHUP, 0), Reaction::Leave(SIGHUP));
        assert_eq!(react(Keys::Own, SIGINT, 0), Reaction::Leave(SIGINT));
    }

    #[test]
    fn exit_codes_keep_their_eight_bits() {
        assert_eq!(exit_code(7), 7);
        assert_eq!(exit_code(-1), 255);
        assert_eq!(exit_code(300), 255);
        assert_eq!(signal_code(SIGINT), 130);
    }
}

//! The messages of each kind of stream. The host opens every stream and says in its first frame, an
//! [`Open`], what it is for:
//!
//! | stream | host → guest | guest → host |
//! |---|---|---|
//! | control (one) | [`ControlRequest`] | [`ControlEvent`], `Hello` first |
//! | exec | [`ExecInput`] | [`ExecOutput`], `Exited` last |
//! | detached | [`super::DetachedRequest`] says which, then as exec | [`super::DetachedReply`], then as exec |
//! | input | [`ExecInput`], to the workload | nothing |
//! | logs | nothing | [`LogEntry`] |
//! | connect, accept | raw bytes after the reply | [`OpenReply`], then raw bytes |
//! | listen | nothing | [`ListenReply`], more than one |
//! | freeze | [`super::FreezeRequest`] | [`super::FreezeReply`] |
//! | files | data, [`super::files::FileInput`] | data, [`super::FileReply`] |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::boot::BootConfig;
use super::frame::{Frame, FrameError, FrameKind};

/// Longest frame a guest accepts as an opening message (environment and arguments of an exec).
pub const OPEN_LIMIT: usize = 1024 * 1024;
/// Longest frame a guest accepts on the control stream (a boot configuration).
pub const CONTROL_REQUEST_LIMIT: usize = 4 * 1024 * 1024;
/// Longest frame a host accepts on the control stream.
pub const CONTROL_EVENT_LIMIT: usize = 64 * 1024;
/// Longest piece of input, output or log in one frame.
pub const DATA_LIMIT: usize = 64 * 1024;
/// Longest frame on a data stream: a full piece with its headers.
pub const DATA_FRAME_LIMIT: usize = DATA_LIMIT + 64;

/// Longest frame on a files stream: [`super::files::LISTED_TOGETHER`] paths and link targets of the longest kind, each byte
/// escaped.
pub const LIST_FRAME_LIMIT: usize = 8 << 20;

/// The first frame of each stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stream", rename_all = "snake_case")]
pub enum Open {
    /// The session's one control stream.
    Control,
    /// Run a command.
    Exec(ExecRequest),
    /// Standard input, terminal size and signals of the workload.
    Input,
    /// The workload's output from a sequence number on, then as it comes.
    Logs {
        /// First sequence number wanted; they start at 1.
        from: u64,
    },
    /// A connection made inside the guest.
    Connect(Endpoint),
    /// Wait for connections inside the guest, as long as the stream is open. Agents that are older than this end the stream
    /// without an answer.
    Listen(ListenPlace),
    /// Take a connection that a listen stream told of.
    Accept {
        /// Its number.
        connection: u64,
    },
    /// Hold the writable file system still. Agents that are older than this end the stream without an answer.
    Freeze {
        /// Go on after so long, whatever happens; never longer than [`super::FREEZE_LIMIT`].
        deadline_millis: u64,
    },
    /// Something with commands that belong to no stream. Agents that are older than this end the stream without an answer.
    Detached(super::DetachedRequest),
    /// Something with files. Agents that are older than this end the stream without an answer.
    Files(super::FileRequest),
}

/// Where a connection goes to, as seen from inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Endpoint {
    /// TCP. A host name is not accepted.
    Tcp {
        /// The address.
        address: std::net::IpAddr,
        /// The port.
        port: u16,
    },
    /// A Unix socket. Agents that are older than this end the stream without an answer.
    Socket {
        /// Its path.
        path: String,
    },
}

/// Where a guest waits for connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum ListenPlace {
    /// A TCP port.
    Tcp {
        /// One of the guest's own.
        address: std::net::IpAddr,
        /// 0 for any that is free.
        port: u16,
    },
    /// A Unix socket that must not be there yet. It goes with the stream.
    Socket {
        /// Its path.
        path: String,
        /// Whose it is to be, as [`super::WorkloadConfig::user`].
        user: String,
    },
    /// A Unix socket in a new directory that only this user can enter. Both go with the stream.
    Private {
        /// The user, as [`super::WorkloadConfig::user`].
        user: String,
    },
}

/// What a guest says on a listen stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ListenReply {
    /// It listens. Said once, first.
    Listening {
        /// The Unix socket, if it is one.
        path: Option<String>,
        /// The TCP port, or 0.
        port: u16,
    },
    /// It could not be done, or cannot go on; the stream ends.
    Refused {
        /// Why.
        message: String,
    },
    /// Somebody has connected. Who is not taken with [`Open::Accept`] in time is hung up on.
    Connection {
        /// The number to take it with.
        connection: u64,
        /// Address and port of the other end, for TCP.
        from: Option<std::net::SocketAddr>,
    },
}

/// The guest's answer to [`Open::Connect`] and [`Open::Accept`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum OpenReply {
    /// Raw bytes follow.
    Connected,
    /// It could not be done; the stream ends.
    Refused {
        /// Why.
        message: String,
    },
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// What is run by an exec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Program {
    /// The command itself, as the workload is run.
    #[default]
    Command,
    /// The user's shell from `/etc/passwd`, as at a login: in the user's home, with USER, LOGNAME and SHELL.
    LoginShell {
        /// What the shell is to run; an interactive shell without.
        script: Option<String>,
    },
    /// The agent's own SFTP server, in the user's home.
    FileServer,
}

/// A command to run beside the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// What `command` is. Agents that are older than this take it for [`Program::Command`].
    #[serde(default)]
    pub program: Program,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Run it on a terminal of this size; then standard error is part of standard output.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Added to the workload's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the workload's own if absent.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// As [`super::WorkloadConfig::user`]; the workload's own if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// After this long the whole process group is killed.
    #[serde(default)]
    pub timeout_millis: Option<u64>,
}

/// What a host sends on an exec or input stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// Standard input ends.
    StdinClose,
    /// The terminal has another size now.
    Resize(Terminal),
    /// Send this signal to the process group.
    Signal(i32),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "snake_case")]
enum InputMessage {
    StdinClose,
    Resize { rows: u16, cols: u16 },
    Signal { signal: i32 },
}

impl ExecInput {
    /// The frame that carries it.
    pub fn to_frame(&self) -> Result<Frame, FrameError> {
        let message = match self {
            ExecInput::Stdin(data) => {
                return Ok(Frame {
                    kind: FrameKind::Stdin,
                    payload: data.clone(),
                });
            }
            ExecInput::StdinClose => InputMessage::StdinClose,
            ExecInput::Resize(Terminal { rows, cols }) => InputMessage::Resize {
                rows: *rows,
                cols: *cols,
            },
            ExecInput::Signal(signal) => InputMessage::Signal { signal: *signal },
        };
        let payload = serde_json::to_vec(&message)?.into();
        Ok(Frame {
            kind: FrameKind::Message,
            payload,
        })
    }

    /// What a frame carries.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            FrameKind::Stdin => Ok(ExecInput::Stdin(frame.payload)),
            FrameKind::Message => Ok(match frame.message()? {
                InputMessage::StdinClose => ExecInput::StdinClose,
                InputMessage::Resize { rows, cols } => ExecInput::Resize(Terminal { rows, cols }),
                InputMessage::Signal { signal } => ExecInput::Signal(signal),
            }),
            kind @ (FrameKind::Stdout | FrameKind::Stderr | FrameKind::Log | FrameKind::File) => {
                Err(FrameError::Unexpected { kind })
            }
        }
    }
}

/// What a guest sends on an exec stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes from standard output, or from the terminal.
    Stdout(Bytes),
    /// Bytes from standard error.
    Stderr(Bytes),
    /// The command is over; nothing follows.
    Exited(ExitReport),
}

impl ExecOutput {
    /// What a frame carries. Output without any bytes is none: it would cost a host time and hold up nobody.
    pub fn from_frame(frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            kind @ (FrameKind::Stdout | FrameKind::Stderr) if frame.payload.is_empty() => {
                Err(FrameError::Payload { kind })
            }
            FrameKind::Stdout => Ok(ExecOutput::Stdout(frame.payload)),
            FrameKind::Stderr => Ok(ExecOutput::Stderr(frame.payload)),
            FrameKind::Message => Ok(ExecOutput::Exited(frame.message()?)),
            kind @ (FrameKind::Stdin | FrameKind::Log | FrameKind::File) => {
                Err(FrameError::Unexpected { kind })
            }
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code. 127: the command was not found, 126: it could not be executed.
    Code(u8),
    /// A signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code a shell would show: 128 + n for signal n.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => i32::from(code),
            ExitStatus::Signal(signal) => 128_i32.saturating_add(signal.clamp(0, 127)),
        }
    }
}

/// How a process ended, and what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Code or signal.
    pub status: ExitStatus,
    /// Why it could not be started, or that its time was up.
    #[serde(default)]
    pub message: Option<String>,
}

impl ExitReport {
    /// A plain exit code.
    #[must_use]
    pub fn code(code: u8) -> Self {
        Self {
            status: ExitStatus::Code(code),
            message: None,
        }
    }

    /// A command that never ran.
    #[must_use]
    pub fn not_started(code: u8, message: impl Into<String>) -> Self {
        Self {
            status: ExitStatus::Code(code),
            message: Some(message.into()),
        }
    }
}

/// Host to guest, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum ControlRequest {
    /// Become this instance.
    Boot {
        /// What to become.
        config: Box<BootConfig>,
    },
    /// Log records up to and including this one are safe at the host.
    AckLogs {
        /// The last one.
        seq: u64,
    },
    /// The exit status is safe at the host: the guest may power off.
    AckExit,
    /// Signal the workload, kill it when the grace is over, report its exit, power off.
    Shutdown {
        /// Signal number; the workload's own stop signal if absent.
        signal: Option<i32>,
        /// How long the workload may take.
        grace_millis: u64,
    },
    /// Signal the workload's main process, and nothing else.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Answer with `Pong`.
    Ping {
        /// Comes back.
        id: u64,
    },
    /// Answer with `Stats`.
    Stats {
        /// Comes back.
        id: u64,
    },
    /// Set the clock and answer with `Pong`.
    SetTime {
        /// Comes back.
        id: u64,
        /// Nanoseconds since 1970.
        unix_nanos: u64,
    },
}

/// Guest to host, on the control stream. After `Hello`, everything that is true at an attach and not
/// yet acknowledged is sent again, so a host needs no memory of earlier sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControlEvent {
    /// First message of each session.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the guest.
        protocol: u32,
        /// The agent's own version.
        agent: String,
        /// The instance it was booted as; absent if it still waits for a boot.
        instance_id: Option<String>,
    },
    /// The guest is configured; the workload is about to start.
    Ready(ReadyReport),
    /// The workload runs.
    Started {
        /// Its pid inside the guest.
        pid: i32,
    },
    /// The workload is over; sent at each attach until acknowledged.
    Exited(ExitReport),
    /// The guest cannot become what it was told to; the workload will not start.
    Failed {
        /// What was being done.
        stage: String,
        /// What went wrong.
        message: String,
    },
    /// Answer to `Ping` and `SetTime`.
    Pong {
        /// From the request.
        id: u64,
    },
    /// Answer to `Stats`.
    Stats {
        /// From the request.
        id: u64,
        /// The figures.
        stats: GuestStats,
    },
}

/// How long it took a guest to get ready, in milliseconds since its kernel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyReport {
    /// PID 1 began.
    pub init_millis: u64,
    /// The channel's port was there.
    pub port_millis: u64,
    /// The root file system was mounted.
    pub root_millis: u64,
    /// The boot configuration had arrived.
    pub config_millis: u64,
    /// Everything was configured.
    pub ready_millis: u64,
}

/// Usage as the guest sees it. Counters count from boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestStats {
    /// Time since boot.
    pub uptime_millis: u64,
    /// CPU time of all CPUs that was not idle.
    pub cpu_busy_millis: u64,
    /// Number of CPUs online.
    pub cpus: u32,
    /// Memory the guest's kernel manages.
    pub memory_total_bytes: u64,
    /// Memory that could be had without swapping.
    pub memory_available_bytes: u64,
    /// Size of the root file system's writable part.
    pub disk_total_bytes: u64,
    /// Space left on it.
    pub disk_free_bytes: u64,
    /// Bytes received on all interfaces but loopback.
    pub network_rx_bytes: u64,
    /// Bytes sent on all interfaces but loopback.
    pub network_tx_bytes: u64,
    /// Bytes read from virtual disks.
    pub disk_read_bytes: u64,
    /// Bytes written to virtual disks.
    pub disk_written_bytes: u64,
    /// Processes and threads.
    pub tasks: u32,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn inputs_survive_their_frames() {
        for input in [
            ExecInput::Stdin(Bytes::from_static(b"x")),
            ExecInput::StdinClose,
            ExecInput::Resize(Terminal { rows: 24, cols: 80 }),
            ExecInput::Signal(15),
        ] {
            assert_eq!(
                ExecInput::from_frame(input.to_frame().unwrap()).unwrap(),
                input
            );
        }
    }

    #[test]
    fn output_without_bytes_is_refused() {
        for kind in [FrameKind::Stdout, FrameKind::Stderr] {
            let payload = Bytes::new();
            let empty = ExecOutput::from_frame(Frame { kind, payload });
            assert!(matches!(empty, Err(FrameError::Payload { .. })), "{kind:?}");
        }
    }

    #[test]
    fn shell_codes_follow_the_shell() {
        assert_eq!(ExitStatus::Code(7).shell_code(), 7);
        assert_eq!(ExitStatus::Signal(9).shell_code(), 137);
        assert_eq!(ExitStatus::Signal(i32::MAX).shell_code(), 255);
    }
}

//! The frames of exec and attach, and the lines of logs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// The first frame of an exec: text, JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Added to the workload's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The workload's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The workload's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds after which it is killed; 0 or absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Seconds to wait for the instance to be Running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_agent: Option<u64>,
    /// The terminal's rows; 24 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// The terminal's columns; 80 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
}

/// A command that is to run on when nobody is connected to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachedExecStart {
    /// An id of your own for it, unique in its instance; made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )]
    pub id: Option<String>,
    /// Program and arguments.
    #[schema(min_items = 1)]
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether whoever attaches can send it input; else it reads an empty one.
    #[serde(default)]
    pub stdin: bool,
    /// Added to the workload's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The workload's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The workload's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds after which it is killed; 0 or absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// The terminal's rows; 24 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// The terminal's columns; 80 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
}

/// A command that runs on when nobody is connected to it, or has ended. What it says of itself is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DetachedExec {
    /// By which it is attached to.
    pub id: String,
    /// Program and arguments; long ones are cut.
    pub command: Vec<String>,
    /// The user it was started as, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it runs.
    pub state: DetachedExecState,
    /// Connections to it.
    pub attached: u32,
    /// By the guest's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// By the guest's clock.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub ended_at: Option<OffsetDateTime>,
    /// As of [`ExecExit`], once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How it ended, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Whether a detached command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DetachedExecState {
    /// It does.
    Running,
    /// It has ended.
    Exited,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// What there is to do with stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StdinControl {
    /// Its end.
    Close,
}

/// A text frame from the client during an exec: exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecControl {
    /// `{"resize":{"rows":R,"cols":C}}`
    Resize(TerminalSize),
    /// `{"stdin":"close"}`
    Stdin(StdinControl),
    /// `{"signal":N}`
    Signal(i32),
}

/// The last frame from the server: text, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecExit {
    /// 127 where the command was not found, 126 where it cannot be executed, 128 + signal where one ended it.
    #[serde(rename = "exitCode")]
    pub exit_code: i32,
    /// In words, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Why it failed, where it was not the command's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::problem::ErrorDetail>,
}

/// The first byte of binary frames with `?stderr=separate`.
pub mod streams {
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
}

/// A line of a log, as `?format=json` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Rises by one per line.
    pub seq: u64,
    /// When it was seen.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// `stdout` or `stderr`.
    pub stream: LogStream,
    /// Without its newline.
    pub text: String,
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output, or a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

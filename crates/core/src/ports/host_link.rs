//! The one way from `control` to a host: intent goes down, observations come up, and streams (exec,
//! logs, images) pass through. On one machine it is an in-process channel; between machines the
//! agent dials in. Control knows no other way to a guest or a blob.

use super::BoxStream;
use super::commits::CommitRequest;
use super::guest_commands::GuestCommands;
use super::guest_files::GuestFiles;
use super::guest_sockets::GuestSockets;
use super::images::{LoadRequest, PruneRequest, PullRequest, PushRequest, Pushed};
use super::outlet::ImageOutlet;
use super::registry::Registry;
use crate::host::HostReport;
use crate::id::{Handle, InstanceId};
use crate::image::{ImageProgress, ImageRecord};
use crate::instance::{InstanceIntent, InstanceStatus};
use crate::inventory::Item;
use crate::ports::network::AttachmentSpec;
use crate::storage::{HostStorage, Pruned, Repair, Verification};
use crate::{PortError, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which output of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The workload's stdout and stderr.
    #[default]
    Workload,
    /// The guest's serial console: kernel and agent.
    Console,
    /// The hypervisor's own output.
    Vmm,
}

/// A question for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Which output.
    pub source: LogSource,
    /// Only the last so many lines of those that are asked for otherwise; all that is kept when absent.
    pub tail: Option<u64>,
    /// Only what came after this sequence number (exclusive).
    pub after: Option<u64>,
    /// Only what was written at these times.
    pub period: LogPeriod,
    /// Whether to stay and wait for more.
    pub follow: Follow,
}

/// A span of time; without bounds, all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPeriod {
    /// From then on (inclusive).
    pub since: Option<Timestamp>,
    /// Up to then (exclusive).
    pub until: Option<Timestamp>,
}

impl LogPeriod {
    /// Whether what was written at this time is within it.
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

/// Whether a stream stays open at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Follow {
    /// It ends at what there is now.
    #[default]
    No,
    /// It waits for more, until the instance is stopped for good (no restart pending) or deleted.
    Yes,
}

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output, or a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Rises by one per line of a source over the instance's life.
    pub seq: u64,
    /// When the guest saw it (workload) or the host did (others).
    #[serde(with = "time::serde::rfc3339")]
    pub at: crate::Timestamp,
    /// Which stream.
    pub stream: OutputStream,
    /// Without its newline; invalid UTF-8 replaced; at most 16 KiB (longer lines are cut into several).
    pub text: String,
}

/// What is to be run in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program and its arguments.
    Command(Vec<String>),
    /// The user's own shell in the user's home, as at a login; with something to run, or interactive.
    LoginShell(Option<String>),
    /// An SFTP server with the user's rights, in the user's home.
    FileServer,
}

impl Default for Program {
    fn default() -> Self {
        Program::Command(Vec::new())
    }
}

/// A command to run in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCommand {
    /// What to run.
    pub program: Program,
    /// Added to the workload's environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// The program's own when absent: the workload's for a command.
    pub working_dir: Option<String>,
    /// The workload's when absent.
    pub user: Option<String>,
    /// Rows and columns of the terminal to give it; none without.
    pub terminal: Option<(u16, u16)>,
    /// After this long the whole process group is killed.
    pub timeout: Option<Duration>,
}

/// What a client sends to a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for its stdin.
    Stdin(Bytes),
    /// End of its stdin.
    CloseStdin,
    /// The terminal's new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// A signal for its process group.
    Signal(i32),
}

/// What comes back. `Exited` is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes it wrote.
    Data(OutputStream, Bytes),
    /// It has ended.
    Exited {
        /// Its exit code; 128 + signal; 127 not found; 126 not executable.
        code: i32,
        /// In words, where there is something to say.
        message: Option<String>,
    },
}

/// A running command. Dropping it ends the command (but see [`HostLink::attach`]).
pub struct ExecSession {
    /// Towards it.
    pub input: Box<dyn ExecSink>,
    /// From it.
    pub output: BoxStream<Result<ExecOutput, PortError>>,
}

/// The sending half of an [`ExecSession`].
#[async_trait]
pub trait ExecSink: Send {
    /// Sends; waits while the guest does not read.
    async fn send(&mut self, input: ExecInput) -> Result<(), PortError>;
}

/// Resources an instance has used, host's and guest's view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of the VMM, seconds.
    pub cpu_seconds: f64,
    /// Resident memory of the VMM, bytes.
    pub memory_rss: u64,
    /// Virtual memory of the VMM, bytes.
    pub memory_vms: u64,
    /// What the guest says; absent while it cannot be asked.
    pub guest: Option<GuestUsage>,
    /// Bytes received by the guest.
    pub network_received: u64,
    /// Bytes sent by the guest.
    pub network_sent: u64,
    /// Bytes its writable disk takes on the host.
    pub disk: u64,
}

/// Resources as a guest counts them, since its boot. Whoever may do anything in it may make it lie: only what is shown to its
/// owner may come of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestUsage {
    /// How long it has been up, seconds.
    pub uptime_seconds: f64,
    /// Time that its processors were not idle, seconds.
    pub cpu_seconds: f64,
    /// Memory that its kernel manages, bytes.
    pub memory_total: u64,
    /// Memory that could be had without swapping, bytes.
    pub memory_available: u64,
    /// Size of its writable file system, bytes.
    pub disk_total: u64,
    /// Space that is left on it, bytes.
    pub disk_free: u64,
    /// Bytes read from its disks.
    pub disk_read: u64,
    /// Bytes written to its disks.
    pub disk_written: u64,
    /// Processes and threads.
    pub tasks: u32,
}

impl GuestUsage {
    /// Memory in use, bytes.
    #[must_use]
    pub fn memory_used(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_available)
    }
}

/// What a pull, load or commit reports: progress, then one result.
#[derive(Debug)]
pub enum ImageUpdate {
    /// It goes on.
    Progress(ImageProgress),
    /// It ended. Several records for an archive of several images.
    Done(Result<Vec<ImageRecord>, PortError>),
}

/// What a push reports: progress, then one result.
#[derive(Debug)]
pub enum PushUpdate {
    /// It goes on.
    Progress(ImageProgress),
    /// It ended.
    Done(Result<Pushed, PortError>),
}

/// How an image comes in.
#[derive(Debug, Clone)]
pub enum ImageImport {
    /// From a registry.
    Pull(PullRequest),
    /// From a path on the host.
    Load(LoadRequest),
    /// From what an instance has changed of its own image. A Conflict where the instance neither runs nor is stopped.
    Commit(InstanceId, CommitRequest),
}

/// One host, as `control` sees it.
#[async_trait]
pub trait HostLink: Send + Sync {
    /// Hands over the newest intent of an instance; older generations are ignored. Returns when it is
    /// accepted, not when it is carried out.
    async fn apply(&self, intent: InstanceIntent) -> Result<(), PortError>;
    /// Hands over all intents at once after a (re)connection, and thereby allows the sweep: what the kernel
    /// holds beyond them is a leak. A Conflict ([`RECORD_IN_DOUBT`]) when the host has instances that are not
    /// among them: then nothing is taken over and nothing is swept.
    async fn sync(&self, intents: Vec<InstanceIntent>) -> Result<(), PortError>;
    /// Every status, as it changes; starts with the current one of every instance.
    async fn statuses(&self) -> Result<BoxStream<InstanceStatus>, PortError>;
    /// What this host has and can do.
    async fn report(&self) -> Result<HostReport, PortError>;
    /// Whether an attachment (its ports) could be made now.
    async fn preflight(&self, spec: AttachmentSpec) -> Result<(), PortError>;
    /// Log lines.
    async fn logs(&self, id: &InstanceId, query: LogQuery)
    -> Result<BoxStream<LogLine>, PortError>;
    /// Runs a command.
    async fn exec(&self, id: &InstanceId, command: ExecCommand) -> Result<ExecSession, PortError>;
    /// Connects to the workload itself: its terminal (with this many rows and columns), or its stdin and
    /// outputs from now on. Dropping the session leaves the workload running.
    async fn attach(
        &self,
        id: &InstanceId,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError>;
    /// Resources used.
    async fn usage(&self, id: &InstanceId) -> Result<Usage, PortError>;
    /// What everything takes on this host. `in_use` are the digests of the images of all instances, once for each.
    async fn storage(&self, in_use: &[String]) -> Result<HostStorage, PortError>;
    /// The image side of the host.
    fn images(&self) -> &dyn HostImages;
    /// The files of its guests.
    fn files(&self) -> &dyn GuestFiles;
    /// The commands in its guests that nobody holds.
    fn commands(&self) -> &dyn GuestCommands;
    /// The sockets of its guests.
    fn sockets(&self) -> &dyn GuestSockets;
    /// What is on the host, and what it remembers.
    fn upkeep(&self) -> &dyn HostUpkeep;
}

/// The code of a [`HostLink::sync`] that was refused.
pub const RECORD_IN_DOUBT: &str = "record_in_doubt";

/// What the host itself remembers of its instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRecords {
    /// The newest intent it was told of each.
    pub intents: Vec<InstanceIntent>,
    /// The runs it has noted as over, by the instance they were of.
    pub over: Vec<(InstanceId, u64)>,
    /// Directories whose record cannot be read, and why.
    pub damaged: Vec<(Handle, String)>,
}

/// A piece of what a host knows of an instance, for somebody who looks for a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// As a file's: `record.json`, `processes.txt`.
    pub name: String,
    /// Without keys of the host's own; values of environments are still in it.
    pub text: String,
}

/// Looking after a host: what is there, and what it remembers.
#[async_trait]
pub trait HostUpkeep: Send + Sync {
    /// Everything on the host that carries this installation's name. Looks only.
    async fn inventory(&self) -> Result<Vec<Item>, PortError>;
    /// Takes one thing away that somebody has judged to be a leak. An Unsupported error
    /// (`not_repairable`) for what is not for a program to remove.
    async fn remove(&self, item: &Item) -> Result<(), PortError>;
    /// What the host remembers: enough to rebuild the record of intent.
    async fn records(&self) -> Result<HostRecords, PortError>;
    /// What nobody else can tell of an instance: the host's record of it, its processes with their arguments, its files.
    async fn evidence(&self, id: &InstanceId) -> Result<Vec<Evidence>, PortError>;
}

/// The image side of a host.
#[async_trait]
pub trait HostImages: Send + Sync {
    /// Whether a pull may be begun at all; asks no registry.
    async fn check_pull(&self, request: &PullRequest) -> Result<(), PortError>;
    /// Pulls, loads or commits; dropping the stream cancels.
    async fn import(&self, import: ImageImport) -> Result<BoxStream<ImageUpdate>, PortError>;
    /// Sends an image to a registry; dropping the stream cancels.
    async fn push(&self, request: PushRequest) -> Result<BoxStream<PushUpdate>, PortError>;
    /// All records.
    async fn list(&self) -> Result<Vec<ImageRecord>, PortError>;
    /// The record that a user means.
    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError>;
    /// Removes a record; a Conflict (`image_in_use`) when `in_use` has its digest and no other record has.
    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError>;
    /// Removes what nothing needs; the images of instances on the host are in use, whether the request knows of them or
    /// not.
    async fn prune(&self, request: PruneRequest) -> Result<Pruned, PortError>;
    /// Reads everything again that the image of the record `id` is made of.
    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError>;
    /// The content as a registry serves it.
    fn registry(&self) -> &dyn Registry;
    /// The ways out.
    fn outlet(&self) -> &dyn ImageOutlet;
}

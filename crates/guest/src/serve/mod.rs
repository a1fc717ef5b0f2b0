//! The guest's end of the channel, generic over the [`Machine`] it controls: the agent's is a real one,
//! the test double's is made up, and both speak exactly the same protocol.
//!
//! It owns what must outlive a session: how far the boot has come ([`Status`]) and the workload's
//! output ([`LogStore`]). Sessions come and go; the workload notices nothing.

mod detached;
mod files;
mod hold;
mod link;
mod logs;
mod session;
mod sockets;
mod status;

pub use hold::{Hold, hold};
pub use link::{HangUp, Link};
pub use logs::LogStore;
pub use session::serve;
pub use sockets::{BoxSocket, Listener, Socket};
pub use status::{Failure, Status, StatusCell};

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::files::{self as file_access, Files};
use crate::protocol::mux::MuxStream;
use crate::protocol::{
    BootConfig, Endpoint, ExecInput, ExecRequest, ExitReport, FrameError, FrameWriter, GuestStats,
    ListenPlace, OutputStream,
};

/// Commands that run beside the workload at most, at a time.
pub const EXEC_LIMIT: usize = 256;

/// Operations on files at most, at a time; more of them wait for their turn.
pub const FILES_LIMIT: usize = 32;

/// What the channel controls. Methods that start something return at once; what becomes of it shows
/// in the [`StatusCell`] and the [`LogStore`] that the implementation shares with [`serve`].
pub trait Machine: Send + Sync + 'static {
    /// Become this instance. Called at most once.
    fn boot(self: Arc<Self>, config: BootConfig);
    /// Signal the workload and, when the grace is over, kill it; without one, power off.
    fn shutdown(self: Arc<Self>, signal: Option<i32>, grace_millis: u64);
    /// Signal the workload's main process.
    fn signal(&self, signal: i32);
    /// The host has the exit status: power off.
    fn exit_acknowledged(&self);
    /// A host attached, or the one that was attached is gone.
    fn host_changed(&self, host: HostPresence);
    /// Input for the workload; blocks while it takes none.
    fn input(&self, input: ExecInput) -> impl Future<Output = ()> + Send;
    /// Set the clock.
    fn set_time(&self, unix_nanos: u64);
    /// Usage.
    fn stats(&self) -> GuestStats;
    /// Runs a command to its end. When the host goes away the future is dropped: that has to end the command.
    fn exec(
        self: Arc<Self>,
        request: ExecRequest,
        io: ExecIo,
    ) -> impl Future<Output = (ExitReport, ExecIo)> + Send;
    /// Holds the writable file system still until the hold is let go of or dropped, `deadline` at the longest.
    fn freeze(
        &self,
        deadline: std::time::Duration,
    ) -> impl Future<Output = Result<Hold, String>> + Send;
    /// The files of the workload's root.
    fn files(&self) -> Result<Arc<Files>, file_access::Failure>;
    /// Connects to something as seen from inside the guest.
    fn connect(&self, endpoint: Endpoint) -> impl Future<Output = io::Result<BoxSocket>> + Send;
    /// Waits for connections inside the guest.
    fn listen(&self, place: ListenPlace) -> impl Future<Output = io::Result<Listener>> + Send;
}

/// Whether a host is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPresence {
    /// A session runs.
    Attached,
    /// No session runs.
    Away,
}

/// What a command reads and writes.
#[derive(Debug)]
pub struct ExecIo {
    /// What the host sends.
    pub input: mpsc::Receiver<ExecInput>,
    output: ExecTarget,
}

/// Where a command's output goes.
#[derive(Debug)]
enum ExecTarget {
    /// To the host whose stream the command belongs to.
    Host(FrameWriter<tokio::io::WriteHalf<MuxStream>>),
    /// To where it waits for whoever joins the command.
    Kept(Arc<LogStore>),
}

impl ExecIo {
    /// Sends output; waits while the host does not take it. An error means that the host is gone.
    pub async fn stdout(&mut self, data: &[u8]) -> Result<(), FrameError> {
        self.output.write(OutputStream::Stdout, data).await
    }

    /// As [`ExecIo::stdout`], for standard error.
    pub async fn stderr(&mut self, data: &[u8]) -> Result<(), FrameError> {
        self.output.write(OutputStream::Stderr, data).await
    }
}

impl ExecTarget {
    async fn write(&mut self, stream: OutputStream, data: &[u8]) -> Result<(), FrameError> {
        match self {
            ExecTarget::Host(writer) => writer.send(stream.frame(), &[data]).await,
            ExecTarget::Kept(output) => {
                // Nobody asks when it was.
                output.push(stream, 0, Bytes::copy_from_slice(data)).await;
                Ok(())
            }
        }
    }
}

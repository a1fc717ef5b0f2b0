//! Commands that belong to no stream, and the streams that join them.
//!
//! A command's newest output is kept, and whoever joins gets that first. While somebody has joined, the command waits for
//! the newest of them to take what it writes, as an exec does; while nobody has, the oldest output makes room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::session::{Reader, Writer};
use super::{EXEC_LIMIT, ExecIo, ExecTarget, LogStore, Machine};
use crate::protocol::detached::{
    DETACHED_COMMAND, DETACHED_ID_LIMIT, DETACHED_LIMIT, DETACHED_OUTPUT,
};
use crate::protocol::message::DATA_FRAME_LIMIT;
use crate::protocol::{
    DetachedCommand, DetachedFault, DetachedReply, DetachedRequest, ExecInput, ExecRequest,
    ExitReport, ExitStatus, FrameError, LogEntry, StdinMode, unix_nanos_now,
};

/// What ends a command whose host lets go of it.
const SIGHUP: i32 = 1;
/// Whoever has joined is waited for until it leaves.
const READER_PATIENCE: Duration = Duration::MAX;

/// All of a guest's, in the order of their starts.
#[derive(Debug, Clone, Default)]
pub(super) struct DetachedCommands(Arc<Mutex<Vec<Arc<Detached>>>>);

#[derive(Debug)]
struct Detached {
    id: String,
    command: Vec<String>,
    user: Option<String>,
    terminal: bool,
    started_unix_nanos: u64,
    input: mpsc::Sender<ExecInput>,
    output: Arc<LogStore>,
    fate: Mutex<Fate>,
}

#[derive(Debug, Default)]
struct Fate {
    attached: usize,
    /// Ends the command when it is aborted.
    task: Option<JoinHandle<()>>,
    ended: Option<(u64, ExitReport)>,
}

/// Counts a stream as joined while it lives.
struct Joined(Arc<Detached>);

impl Joined {
    fn new(command: Arc<Detached>) -> Self {
        command.fate().attached += 1;
        Self(command)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.fate().attached -= 1;
    }
}

fn refused(fault: DetachedFault, message: impl Into<String>) -> DetachedReply {
    let message = message.into();
    DetachedReply::Refused { fault, message }
}

/// As many of the words as are told, the last of them cut.
fn shown(command: &[String]) -> Vec<String> {
    let mut room = DETACHED_COMMAND;
    let words = command.iter().map_while(|word| {
        let end = (0..=word.len().min(room))
            .rev()
            .find(|end| word.is_char_boundary(*end))?;
        let told = (room > 0).then(|| word[..end].to_owned());
        room = room.saturating_sub(end + 1);
        told
    });
    words.collect()
}

impl Detached {
    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn description(&self) -> DetachedCommand {
        let fate = self.fate();
        let (ended_unix_nanos, exited) = fate.ended.clone().unzip();
        DetachedCommand {
            id: self.id.clone(),
            command: self.command.clone(),
            user: self.user.clone(),
            terminal: self.terminal,
            attached: fate.attached,
            started_unix_nanos: self.started_unix_nanos,
            ended_unix_nanos,
            exited,
        }
    }

    fn has_ended(&self) -> bool {
        self.fate().ended.is_some()
    }

    fn end(&self, report: ExitReport) {
        self.fate()
            .ended
            .get_or_insert_with(|| (unix_nanos_now(), report));
        self.output.end();
    }
}

impl DetachedCommands {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Detached>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Detached>, DetachedReply> {
        let found = self.all().iter().find(|one| one.id == id).cloned();
        found.ok_or_else(|| {
            refused(
                DetachedFault::NotFound,
                "there is no such detached command (any more)",
            )
        })
    }

    /// Carries one request out and tells the host what comes of it.
    pub(super) async fn serve<M: Machine>(
        &self,
        machine: &Arc<M>,
        turns: &Arc<Semaphore>,
        request: DetachedRequest,
        reader: Reader,
        mut writer: Writer,
    ) -> Result<(), FrameError> {
        let reply = match request {
            DetachedRequest::Start { id, stdin, request } => {
                let machine = Arc::clone(machine);
                match self.start(machine, turns, id, stdin, request) {
                    Ok(()) => DetachedReply::Started,
                    Err(refusal) => refusal,
                }
            }
            DetachedRequest::List => DetachedReply::List {
                commands: self.all().iter().map(|one| one.description()).collect(),
            },
            DetachedRequest::Remove { id } => match self.remove(&id) {
                Ok(()) => DetachedReply::Removed,
                Err(refusal) => refusal,
            },
            DetachedRequest::Attach { id } => match self.find(&id) {
                Ok(command) => return join(Joined::new(command), reader, writer).await,
                Err(refusal) => refusal,
            },
        };
        writer.message(&reply).await?;
        writer.finish().await
    }

    fn start<M: Machine>(
        &self,
        machine: Arc<M>,
        turns: &Arc<Semaphore>,
        id: String,
        stdin: StdinMode,
        request: ExecRequest,
    ) -> Result<(), DetachedReply> {
        let mut all = self.all();
        if id.is_empty() || id.len() > DETACHED_ID_LIMIT || all.iter().any(|one| one.id == id) {
            return Err(refused(DetachedFault::BadId, "its id is none, or taken"));
        }
        if all.len() >= DETACHED_LIMIT {
            let Some(oldest) = all.iter().position(|one| one.has_ended()) else {
                let words = format!("{DETACHED_LIMIT} detached commands are running already");
                return Err(refused(DetachedFault::Full, words));
            };
            all.remove(oldest);
        }
        let Ok(turn) = Arc::clone(turns).try_acquire_owned() else {
            let words = format!("{EXEC_LIMIT} commands are running already");
            return Err(refused(DetachedFault::Full, words));
        };
        let (sender, input) = mpsc::channel(4);
        if stdin == StdinMode::Null {
            // The queue is new and has room.
            let _ = sender.try_send(ExecInput::StdinClose);
        }
        let command = Arc::new(Detached {
            id,
            command: shown(&request.command),
            user: request.user.clone(),
            terminal: request.terminal.is_some(),
            started_unix_nanos: unix_nanos_now(),
            input: sender,
            output: Arc::new(LogStore::with(DETACHED_OUTPUT, READER_PATIENCE)),
            fate: Mutex::default(),
        });
        let task = tokio::spawn(run(machine, turn, Arc::clone(&command), input, request));
        command.fate().task = Some(task);
        all.push(command);
        Ok(())
    }

    fn remove(&self, id: &str) -> Result<(), DetachedReply> {
        let command = self.find(id)?;
        if let Some(task) = command.fate().task.take() {
            // Dropping the machine's future ends the command.
            task.abort();
        }
        command.end(ExitReport {
            status: ExitStatus::Signal(SIGHUP),
            message: Some("it was removed".to_owned()),
        });
        self.all().retain(|one| !Arc::ptr_eq(one, &command));
        Ok(())
    }
}

async fn run<M: Machine>(
    machine: Arc<M>,
    _turn: OwnedSemaphorePermit,
    command: Arc<Detached>,
    input: mpsc::Receiver<ExecInput>,
    request: ExecRequest,
) {
    let output = ExecTarget::Kept(Arc::clone(&command.output));
    let (report, _) = machine.exec(request, ExecIo { input, output }).await;
    command.end(report);
}

/// Both directions of a stream that has joined a command, until either ends.
async fn join(command: Joined, mut reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
    let Joined(joined) = &command;
    writer.message(&DetachedReply::Attached).await?;
    reader.set_limit(DATA_FRAME_LIMIT);
    let host_gone = async {
        while let Ok(Some(frame)) = reader.next().await {
            let Ok(input) = ExecInput::from_frame(frame) else {
                return;
            };
            if joined.input.send(input).await.is_err() {
                // The command takes no more input; the report is on its way.
                std::future::pending::<()>().await;
            }
        }
    };
    let output = async {
        let mut kept = joined.output.subscribe(1);
        while let Some(entry) = kept.next().await {
            // What was pushed out while nobody was here is gone.
            if let LogEntry::Record(record) = entry {
                let kind = record.stream.frame();
                writer.send(kind, &[&record.data]).await?;
            }
        }
        let ended = joined.fate().ended.clone();
        if let Some((_, report)) = ended {
            writer.message(&report).await?;
        }
        writer.finish().await
    };
    tokio::select! {
        sent = output => sent,
        () = host_gone => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_told_as_far_as_there_is_room() {
        let short = ["echo".to_owned(), "ä".to_owned()];
        assert_eq!(shown(&short), short);
        let long = ["x".repeat(1000), "ä".repeat(1000), "never".to_owned()];
        let told = shown(&long);
        assert_eq!((told.len(), told[0].len(), told[1].len()), (2, 1000, 22));
    }
}

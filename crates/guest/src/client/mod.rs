//! The host's end of the channel: one attached session with one guest.
//!
//! ```no_run
//! # async fn example(socket: tokio::net::UnixStream, key: warren_guest::protocol::AttachKey,
//! #     config: warren_guest::protocol::BootConfig) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use warren_guest::client::GuestClient;
//!
//! let (client, mut events) = GuestClient::attach(socket, &key, Duration::from_secs(10)).await?;
//! if client.instance_id().is_none() {
//!     client.boot(config).await?;
//! }
//! while let Some(event) = events.next().await {
//!     println!("{event:?}");
//! }
//! # Ok(()) }
//! ```
//!
//! Everything a guest sends is hostile: frames, streams and buffers are bounded, every answer has a
//! deadline, and a breach of the protocol ends the session with a [`ClientError`] that says which. Text
//! from a guest is handed on as it is; whoever shows it on a terminal has to clean it.

mod attach;
mod detached;
mod exec;
mod files;
mod freeze;
mod logs;
mod sockets;

pub use exec::{ExecHandle, ExecReader, ExecWriter};
pub use files::{FileError, FileList, FileReader, FileWriter};
pub use freeze::FrozenDisk;
pub use logs::LogReader;
pub use sockets::{GuestListener, Incoming};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::protocol::files::FILE_SILENCE;
use crate::protocol::message::{CONTROL_EVENT_LIMIT, DATA_FRAME_LIMIT};
use crate::protocol::mux::{self, MuxStream, Opener, SessionOver};
use crate::protocol::{
    AttachKey, BootConfig, ControlEvent, ControlRequest, DetachedFault, ExecRequest, ExitReport,
    FrameError, FrameReader, FrameWriter, GuestStats, Open, PROTOCOL_VERSION, ReadyReport,
    unix_nanos_now,
};

/// How long a guest may take to answer a ping, a stats request or the opening of a connection, and how long it
/// may leave a request untaken.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Words on the control stream that nobody waits for, in one session at most: an honest guest says a handful of events, and
/// answers late now and then.
const UNASKED_LIMIT: usize = 4096;
/// Events kept for a reader that is behind; a guest that sends more waits.
const EVENT_BACKLOG: usize = 64;

/// Why a session could not be had, or is over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The guest did not answer the attach in time.
    #[error("the guest did not answer within {deadline:?}")]
    AttachTimeout {
        /// What it was given.
        deadline: Duration,
    },
    /// The channel ended or failed.
    #[error("the guest channel is gone")]
    ChannelGone(#[source] Option<Arc<std::io::Error>>),
    /// The guest speaks another version.
    #[error("the guest speaks protocol {theirs}, this host {PROTOCOL_VERSION}")]
    Version {
        /// The guest's version.
        theirs: u32,
    },
    /// The guest does not keep to the protocol.
    #[error("the guest broke the protocol: {0}")]
    Protocol(String),
    /// The guest did not answer a request in time.
    #[error("the guest did not answer {request} within {deadline:?}")]
    AnswerTimeout {
        /// Which one.
        request: &'static str,
        /// What it was given.
        deadline: Duration,
    },
    /// The guest refused something about a detached command.
    #[error("{message}")]
    Detached {
        /// The kind of reason.
        fault: DetachedFault,
        /// The guest's words: unchecked text.
        message: String,
    },
    /// The guest refused a connection, or to hold still.
    #[error("the guest refused: {message}")]
    Refused {
        /// The guest's words: unchecked text.
        message: String,
    },
    /// The guest's agent is older than what was asked of it.
    #[error("the guest's agent does not know {request}")]
    NotKnown {
        /// What was asked.
        request: &'static str,
    },
    /// The guest went on while it should have held still.
    #[error("the guest did not hold still: {message}")]
    NotHeld {
        /// The guest's words: unchecked text.
        message: String,
    },
    /// The session is over.
    #[error("the session with the guest is over")]
    SessionOver,
}

impl From<SessionOver> for ClientError {
    fn from(SessionOver: SessionOver) -> Self {
        ClientError::SessionOver
    }
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => ClientError::ChannelGone(Some(Arc::new(error))),
            FrameError::Truncated => ClientError::SessionOver,
            FrameError::Message(error) => {
                ClientError::Protocol(format!("malformed message: {error}"))
            }
            error @ (FrameError::Length { .. }
            | FrameError::Kind { .. }
            | FrameError::Unexpected { .. }
            | FrameError::Payload { .. }) => ClientError::Protocol(error.to_string()),
        }
    }
}

/// What a guest tells without being asked. What is still true is told again in each session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// Configured; the workload is about to start.
    Ready(ReadyReport),
    /// The workload runs, with this pid inside the guest.
    Started {
        /// The pid.
        pid: i32,
    },
    /// The workload is over. Acknowledge it with [`GuestClient::ack_exit`] once it is recorded and the
    /// logs are fetched: the guest then powers off.
    Exited(ExitReport),
    /// The guest cannot become the instance it was told to be.
    Failed {
        /// What was being done.
        stage: String,
        /// What went wrong.
        message: String,
    },
}

/// The events of one session, in order.
#[derive(Debug)]
pub struct GuestEvents {
    receiver: mpsc::Receiver<GuestEvent>,
}

impl GuestEvents {
    /// The next event; `None` when the session is over.
    pub async fn next(&mut self) -> Option<GuestEvent> {
        self.receiver.recv().await
    }
}

#[derive(Debug)]
enum Answer {
    Pong,
    Stats(GuestStats),
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

#[derive(Debug)]
struct Session {
    opener: Opener,
    control: tokio::sync::Mutex<FrameWriter<WriteHalf<MuxStream>>>,
    waiting: Arc<Mutex<Waiting>>,
    over: watch::Receiver<Option<ClientError>>,
    instance_id: Option<String>,
    agent_version: String,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A handle to one session; clones share it, and the last one dropped ends it (the guest runs on).
#[derive(Debug, Clone)]
pub struct GuestClient {
    session: Arc<Session>,
    /// For how long a guest may say nothing while it is busy with files.
    file_silence: Duration,
}

impl GuestClient {
    /// Attaches over a byte stream and greets the guest, all within `deadline`. Whatever session there
    /// was with this guest is over then. Needs a tokio runtime: the session lives in tasks of its own.
    pub async fn attach<S>(
        stream: S,
        key: &AttachKey,
        deadline: Duration,
    ) -> Result<(Self, GuestEvents), ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        timeout(deadline, Self::attach_unbounded(stream, key))
            .await
            .unwrap_or(Err(ClientError::AttachTimeout { deadline }))
    }

    async fn attach_unbounded<S>(
        stream: S,
        key: &AttachKey,
    ) -> Result<(Self, GuestEvents), ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let attached = attach::attach(stream, key)
            .await
            .map_err(|error| ClientError::ChannelGone(Some(Arc::new(error))))?;
        let (over_sender, over) = watch::channel(None);
        let (opener, driver) = mux::host(attached);
        let over_of_driver = over_sender.clone();
        let mut over_before = over.clone();
        let driver = AbortOnDrop::new(tokio::spawn(async move {
            let driven = tokio::select! {
                driven = driver => driven,
                // Without its control stream a session is over, and so are the streams that others still hold: the
                // channel is for the next one.
                _ = over_before.wait_for(Option::is_some) => return,
            };
            let error = match driven {
                Ok(()) => ClientError::ChannelGone(None),
                Err(mux::ConnectionError::Io(error)) => {
                    ClientError::ChannelGone(Some(Arc::new(error)))
                }
                Err(error) => ClientError::Protocol(error.to_string()),
            };
            end(&over_of_driver, error);
        }));
        let (read, write) = tokio::io::split(opener.open().await?);
        let mut reader = FrameReader::new(read, CONTROL_EVENT_LIMIT);
        let mut control = FrameWriter::new(write);
        control.message(&Open::Control).await?;
        let (instance_id, agent_version) = match reader.message().await? {
            ControlEvent::Hello {
                protocol: PROTOCOL_VERSION,
                agent,
                instance_id,
            } => (instance_id, agent),
            ControlEvent::Hello {
                protocol: theirs, ..
            } => {
                return Err(ClientError::Version { theirs });
            }
            _ => {
                return Err(ClientError::Protocol(
                    "the first message is no greeting".to_owned(),
                ));
            }
        };
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (event_sender, receiver) = mpsc::channel(EVENT_BACKLOG);
        let answers = Arc::clone(&waiting);
        let listener = tokio::spawn(async move {
            let error = listen(reader, &answers, &event_sender).await;
            // Dropping the senders tells whoever waits for an answer.
            lock(&answers).answers.clear();
            end(&over_sender, error);
        });
        let session = Session {
            opener,
            control: tokio::sync::Mutex::new(control),
            waiting,
            over,
            instance_id,
            agent_version,
            tasks: [driver.disarm(), listener],
        };
        Ok((
            Self {
                session: Arc::new(session),
                file_silence: FILE_SILENCE,
            },
            GuestEvents { receiver },
        ))
    }

    /// The instance the guest was booted as when this session began; `None` if it waited for its boot.
    #[must_use]
    pub fn instance_id(&self) -> Option<&str> {
        self.session.instance_id.as_deref()
    }

    /// Version of the agent in the guest: unchecked text.
    #[must_use]
    pub fn agent_version(&self) -> &str {
        &self.session.agent_version
    }

    /// Waits until the session is over and says why.
    pub async fn closed(&self) -> ClientError {
        let mut over = self.session.over.clone();
        match over.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(ClientError::SessionOver),
            Err(_) => ClientError::SessionOver,
        }
    }

    /// Tells the guest what to become. What comes of it is an event: `Ready`, or `Failed`. A guest that is
    /// this instance already changes nothing.
    pub async fn boot(&self, config: BootConfig) -> Result<(), ClientError> {
        self.request(
            "boot",
            &ControlRequest::Boot {
                config: Box::new(config),
            },
        )
        .await
    }

    /// Signals the workload (its own stop signal if `signal` is absent), kills it after `grace`. The exit
    /// comes as an event. A guest without a workload powers off.
    pub async fn shutdown(&self, signal: Option<i32>, grace: Duration) -> Result<(), ClientError> {
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.request(
            "shutdown",
            &ControlRequest::Shutdown {
                signal,
                grace_millis,
            },
        )
        .await
    }

    /// Signals the workload's main process.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.request("signal", &ControlRequest::Signal { signal })
            .await
    }

    /// The records up to `seq` are safe here: the guest may forget them.
    pub async fn ack_logs(&self, seq: u64) -> Result<(), ClientError> {
        self.request("ack_logs", &ControlRequest::AckLogs { seq })
            .await
    }

    /// The exit status is safe here: the guest powers off.
    pub async fn ack_exit(&self) -> Result<(), ClientError> {
        self.request("ack_exit", &ControlRequest::AckExit).await
    }

    /// One round trip.
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let start = tokio::time::Instant::now();
        self.ask("ping", |id| ControlRequest::Ping { id }).await?;
        Ok(start.elapsed())
    }

    /// Sets the guest's clock to this host's.
    pub async fn set_time(&self) -> Result<(), ClientError> {
        let unix_nanos = unix_nanos_now();
        self.ask("set_time", |id| ControlRequest::SetTime { id, unix_nanos })
            .await?;
        Ok(())
    }

    /// Usage as the guest sees it.
    pub async fn stats(&self) -> Result<GuestStats, ClientError> {
        match self.ask("stats", |id| ControlRequest::Stats { id }).await? {
            Answer::Stats(stats) => Ok(stats),
            Answer::Pong => Err(ClientError::Protocol("a pong instead of stats".to_owned())),
        }
    }

    /// Runs a command. Dropping both halves of the handle ends it.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecHandle, ClientError> {
        let (reader, writer) = self.open(&Open::Exec(request)).await?;
        Ok(ExecHandle {
            output: ExecReader::new(reader),
            input: ExecWriter::new(writer),
        })
    }

    /// Standard input, terminal size and signals of the workload, if it was booted with
    /// [`crate::protocol::StdinMode::Attached`].
    pub async fn workload_input(&self) -> Result<ExecWriter, ClientError> {
        let (_, writer) = self.open(&Open::Input).await?;
        Ok(ExecWriter::new(writer))
    }

    /// The workload's output from record `from` (the first is 1), then as it comes.
    pub async fn logs(&self, from: u64) -> Result<LogReader, ClientError> {
        let (reader, writer) = self.open(&Open::Logs { from }).await?;
        Ok(LogReader::new(reader, writer, from))
    }

    async fn open(
        &self,
        open: &Open,
    ) -> Result<
        (
            FrameReader<ReadHalf<MuxStream>>,
            FrameWriter<WriteHalf<MuxStream>>,
        ),
        ClientError,
    > {
        let opening = async {
            let (read, write) = tokio::io::split(self.session.opener.open().await?);
            let mut writer = FrameWriter::new(write);
            writer.message(open).await?;
            Ok((FrameReader::new(read, DATA_FRAME_LIMIT), writer))
        };
        timeout(ANSWER_DEADLINE, opening)
            .await
            .unwrap_or(Err(ClientError::AnswerTimeout {
                request: "open",
                deadline: ANSWER_DEADLINE,
            }))
    }

    async fn request(
        &self,
        name: &'static str,
        request: &ControlRequest,
    ) -> Result<(), ClientError> {
        let sending = async { self.session.control.lock().await.message(request).await };
        timeout(ANSWER_DEADLINE, sending)
            .await
            .map_err(|_| ClientError::AnswerTimeout {
                request: name,
                deadline: ANSWER_DEADLINE,
            })?
            .map_err(|error| {
                self.session
                    .over
                    .borrow()
                    .clone()
                    .unwrap_or_else(|| error.into())
            })
    }

    async fn ask(
        &self,
        name: &'static str,
        request: impl FnOnce(u64) -> ControlRequest,
    ) -> Result<Answer, ClientError> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.session.waiting);
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, sender);
            id
        };
        let asking = async {
            self.request(name, &request(id)).await?;
            let over = || {
                self.session
                    .over
                    .borrow()
                    .clone()
                    .unwrap_or(ClientError::SessionOver)
            };
            answer.await.map_err(|_| over())
        };
        let answer = timeout(ANSWER_DEADLINE, asking).await;
        lock(&self.session.waiting).answers.remove(&id);
        answer.unwrap_or(Err(ClientError::AnswerTimeout {
            request: name,
            deadline: ANSWER_DEADLINE,
        }))
    }
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first reason stays.
fn end(over: &watch::Sender<Option<ClientError>>, error: ClientError) {
    over.send_modify(|present| {
        present.get_or_insert(error);
    });
}

/// Reads the control stream until it ends, and says why it did.
async fn listen(
    mut reader: FrameReader<ReadHalf<MuxStream>>,
    waiting: &Mutex<Waiting>,
    events: &mpsc::Sender<GuestEvent>,
) -> ClientError {
    let mut unasked = 0;
    while unasked < UNASKED_LIMIT {
        let event = match reader.message().await {
            Ok(event) => event,
            Err(error) => return error.into(),
        };
        let event = match event {
            ControlEvent::Hello { .. } => {
                return ClientError::Protocol("a second greeting".to_owned());
            }
            ControlEvent::Pong { id } => {
                unasked += usize::from(!answer(waiting, id, Answer::Pong));
                continue;
            }
            ControlEvent::Stats { id, stats } => {
                unasked += usize::from(!answer(waiting, id, Answer::Stats(stats)));
                continue;
            }
            ControlEvent::Ready(report) => GuestEvent::Ready(report),
            ControlEvent::Started { pid } => GuestEvent::Started { pid },
            ControlEvent::Exited(report) => GuestEvent::Exited(report),
            ControlEvent::Failed { stage, message } => GuestEvent::Failed { stage, message },
        };
        unasked += 1;
        // Nobody listening is no reason to stop answering pings.
        let _ = events.send(event).await;
    }
    ClientError::Protocol("it talks without being asked".to_owned())
}

/// Whether somebody waited for this answer. One that came too late is dropped.
fn answer(waiting: &Mutex<Waiting>, id: u64, answer: Answer) -> bool {
    match lock(waiting).answers.remove(&id) {
        Some(sender) => sender.send(answer).is_ok(),
        None => false,
    }
}

/// Ends a task if attaching fails or is given up half way.
struct AbortOnDrop(Option<JoinHandle<()>>);

impl AbortOnDrop {
    fn new(task: JoinHandle<()>) -> Self {
        Self(Some(task))
    }

    fn disarm(mut self) -> JoinHandle<()> {
        self.0.take().expect("only this consuming method takes it")
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

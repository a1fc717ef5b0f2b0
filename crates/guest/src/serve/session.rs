//! Attach after attach on one link: the control stream, and one task for each other stream.
//!
//! Tasks of a session are dropped with it, and dropping [`Machine::exec`]'s future ends its command.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::detached::DetachedCommands;
use super::link::{HangUp, Link};
use super::sockets::{self, Waiting};
use super::{
    EXEC_LIMIT, ExecIo, ExecTarget, FILES_LIMIT, HostPresence, LogStore, Machine, Status,
    StatusCell,
};
use crate::protocol::message::{CONTROL_REQUEST_LIMIT, DATA_FRAME_LIMIT, OPEN_LIMIT};
use crate::protocol::mux::{self, MuxStream};
use crate::protocol::{
    AttachKey, ControlEvent, ControlRequest, ExecInput, ExecRequest, ExitReport, FREEZE_LIMIT,
    FrameError, FrameReader, FrameWriter, FreezeReply, FreezeRequest, Open, PROTOCOL_VERSION,
};

pub(super) type Reader = FrameReader<ReadHalf<MuxStream>>;
pub(super) type Writer = FrameWriter<WriteHalf<MuxStream>>;

/// What every session needs.
struct Guest<M> {
    machine: Arc<M>,
    status: Arc<StatusCell>,
    logs: Arc<LogStore>,
    execs: Arc<Semaphore>,
    file_turns: Arc<Semaphore>,
    waiting: Waiting,
    detached: DetachedCommands,
}

impl<M> Clone for Guest<M> {
    fn clone(&self) -> Self {
        Self {
            machine: Arc::clone(&self.machine),
            status: Arc::clone(&self.status),
            logs: Arc::clone(&self.logs),
            execs: Arc::clone(&self.execs),
            file_turns: Arc::clone(&self.file_turns),
            waiting: self.waiting.clone(),
            detached: self.detached.clone(),
        }
    }
}

/// Serves one host after the other until the stream ends.
pub async fn serve<S, M>(
    io: S,
    key: &AttachKey,
    machine: Arc<M>,
    status: Arc<StatusCell>,
    logs: Arc<LogStore>,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + HangUp + Send + Unpin + 'static,
    M: Machine,
{
    let guest = Guest {
        machine,
        status,
        logs,
        execs: Arc::new(Semaphore::new(EXEC_LIMIT)),
        file_turns: Arc::new(Semaphore::new(FILES_LIMIT)),
        waiting: Waiting::default(),
        detached: DetachedCommands::default(),
    };
    let mut link = Link::new(io, key);
    while let Some(session) = link.attach().await? {
        guest.machine.host_changed(HostPresence::Attached);
        // Dropping the set at the end of the session aborts what is still running for it.
        let (streams, mut accepted) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let driver = mux::guest(session, move |stream| {
            // yamux has bounded the number of streams.
            let _ = streams.send(stream);
        });
        tokio::pin!(driver);
        loop {
            tokio::select! {
                // Why a session ended does not matter: the next attach starts from nothing.
                _ = &mut driver => break,
                Some(stream) = accepted.recv() => {
                    tasks.spawn(guest.clone().stream(stream));
                }
                Some(_) = tasks.join_next() => {}
            }
        }
        guest.machine.host_changed(HostPresence::Away);
    }
    Ok(())
}

impl<M: Machine> Guest<M> {
    /// One stream from its opening message to its end. An error means that the host is gone or does not
    /// keep to the protocol: either way the stream is dropped, which resets it.
    async fn stream(self, stream: MuxStream) {
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, OPEN_LIMIT);
        let writer = FrameWriter::new(write);
        let Ok(open) = reader.message::<Open>().await else {
            return;
        };
        let _ = match open {
            Open::Control => self.control(reader, writer).await,
            Open::Exec(request) => self.exec(request, reader, writer).await,
            Open::Input => self.input(reader).await,
            Open::Logs { from } => self.logs(from, reader, writer).await,
            Open::Connect(endpoint) => {
                sockets::connect(&*self.machine, endpoint, reader, writer).await
            }
            Open::Listen(place) => {
                sockets::listen(&*self.machine, &self.waiting, place, reader, writer).await
            }
            Open::Accept { connection } => {
                sockets::accept(&self.waiting, connection, reader, writer).await
            }
            Open::Freeze { deadline_millis } => self.freeze(deadline_millis, reader, writer).await,
            Open::Detached(request) => {
                let (machine, turns) = (&self.machine, &self.execs);
                (self.detached.serve(machine, turns, request, reader, writer)).await
            }
            Open::Files(request) => {
                reader.set_limit(DATA_FRAME_LIMIT);
                let files = self.machine.files();
                super::files::serve(files, self.file_turns, request, reader, writer).await
            }
        };
    }

    async fn control(self, mut reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
        reader.set_limit(CONTROL_REQUEST_LIMIT);
        let mut status = self.status.subscribe();
        let now = status.borrow_and_update().clone();
        writer
            .message(&ControlEvent::Hello {
                protocol: PROTOCOL_VERSION,
                agent: env!("CARGO_PKG_VERSION").to_owned(),
                instance_id: now.instance_id.clone(),
            })
            .await?;
        let mut told = Status {
            instance_id: now.instance_id.clone(),
            ..Status::default()
        };
        tell(&mut writer, &mut told, now).await?;
        loop {
            tokio::select! {
                changed = status.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now = status.borrow_and_update().clone();
                    tell(&mut writer, &mut told, now).await?;
                }
                frame = reader.next() => {
                    let Some(frame) = frame? else { return Ok(()) };
                    if let Some(answer) = self.request(frame.message()?) {
                        writer.message(&answer).await?;
                    }
                }
            }
        }
    }

    fn request(&self, request: ControlRequest) -> Option<ControlEvent> {
        match request {
            ControlRequest::Boot { config } => return self.boot(*config),
            ControlRequest::AckLogs { seq } => self.logs.acknowledge(seq),
            ControlRequest::AckExit => {
                let mut first = false;
                self.status.update(|status| {
                    first = status.exited.is_some() && !status.exit_acknowledged;
                    status.exit_acknowledged |= first;
                });
                if first {
                    self.machine.exit_acknowledged();
                }
            }
            ControlRequest::Shutdown {
                signal,
                grace_millis,
            } => {
                Arc::clone(&self.machine).shutdown(signal, grace_millis);
            }
            ControlRequest::Signal { signal } => self.machine.signal(signal),
            ControlRequest::Ping { id } => return Some(ControlEvent::Pong { id }),
            ControlRequest::Stats { id } => {
                return Some(ControlEvent::Stats {
                    id,
                    stats: self.machine.stats(),
                });
            }
            ControlRequest::SetTime { id, unix_nanos } => {
                self.machine.set_time(unix_nanos);
                return Some(ControlEvent::Pong { id });
            }
        }
        None
    }

    fn boot(&self, config: crate::protocol::BootConfig) -> Option<ControlEvent> {
        let id = config.instance_id.clone();
        let mut present = None;
        self.status.update(|status| {
            present.clone_from(&status.instance_id);
            status.instance_id.get_or_insert_with(|| id.clone());
        });
        match present {
            None => {
                Arc::clone(&self.machine).boot(config);
                None
            }
            Some(present) if present == id => None,
            Some(present) => Some(ControlEvent::Failed {
                stage: "boot".to_owned(),
                message: format!("this guest is instance {present} already"),
            }),
        }
    }

    async fn exec(
        self,
        request: ExecRequest,
        mut reader: Reader,
        mut output: Writer,
    ) -> Result<(), FrameError> {
        let Ok(_permit) = Arc::clone(&self.execs).try_acquire_owned() else {
            let refusal = format!("{EXEC_LIMIT} commands are running already");
            output
                .message(&ExitReport::not_started(126, refusal))
                .await?;
            return output.finish().await;
        };
        reader.set_limit(DATA_FRAME_LIMIT);
        let (sender, input) = mpsc::channel(4);
        let host_gone = async {
            while let Ok(Some(frame)) = reader.next().await {
                let Ok(input) = ExecInput::from_frame(frame) else {
                    return;
                };
                if sender.send(input).await.is_err() {
                    // The command takes no more input; the report is on its way.
                    std::future::pending::<()>().await;
                }
            }
        };
        let output = ExecTarget::Host(output);
        let (report, io) = tokio::select! {
            done = Arc::clone(&self.machine).exec(request, ExecIo { input, output }) => done,
            // Dropping the other future ends the command.
            () = host_gone => return Ok(()),
        };
        let ExecTarget::Host(mut output) = io.output else {
            return Ok(());
        };
        output.message(&report).await?;
        output.finish().await
    }

    async fn input(self, mut reader: Reader) -> Result<(), FrameError> {
        reader.set_limit(DATA_FRAME_LIMIT);
        while let Some(frame) = reader.next().await? {
            self.machine.input(ExecInput::from_frame(frame)?).await;
        }
        Ok(())
    }

    async fn logs(
        self,
        from: u64,
        mut reader: Reader,
        mut writer: Writer,
    ) -> Result<(), FrameError> {
        let mut subscription = self.logs.subscribe(from);
        loop {
            let entry = tokio::select! {
                entry = subscription.next() => entry,
                // The host says nothing on this stream: whatever comes ends it.
                _ = reader.next() => return Ok(()),
            };
            let Some(entry) = entry else {
                return writer.finish().await;
            };
            let (kind, header, data) = entry.to_parts()?;
            writer.send(kind, &[&header, &data]).await?;
        }
    }

    /// Every way out of here drops the hold, and with that the guest goes on.
    async fn freeze(
        self,
        deadline_millis: u64,
        mut reader: Reader,
        mut writer: Writer,
    ) -> Result<(), FrameError> {
        reader.set_limit(DATA_FRAME_LIMIT);
        let deadline = Duration::from_millis(deadline_millis).min(FREEZE_LIMIT);
        let held = tokio::select! {
            held = self.machine.freeze(deadline) => held,
            // A host that is gone, or speaks out of turn.
            _ = reader.next() => return Ok(()),
        };
        let mut hold = match held {
            Ok(hold) => hold,
            Err(message) => {
                writer.message(&FreezeReply::Refused { message }).await?;
                return writer.finish().await;
            }
        };
        writer.message(&FreezeReply::Frozen).await?;
        let ended = tokio::select! {
            frame = reader.next() => {
                let Some(frame) = frame? else { return Ok(()) };
                let FreezeRequest::Thaw = frame.message()?;
                hold.let_go();
                hold.ended().await
            }
            early = hold.ended() => early,
        };
        let reply = match ended {
            Ok(()) => FreezeReply::Thawed,
            Err(message) => FreezeReply::Lost { message },
        };
        writer.message(&reply).await?;
        writer.finish().await
    }
}

/// Sends what is true now and was not told in this session.
async fn tell(writer: &mut Writer, told: &mut Status, now: Status) -> Result<(), FrameError> {
    if told.ready.is_none()
        && let Some(report) = now.ready
    {
        writer.message(&ControlEvent::Ready(report)).await?;
    }
    if told.started.is_none()
        && let Some(pid) = now.started
    {
        writer.message(&ControlEvent::Started { pid }).await?;
    }
    if told.failed.is_none()
        && let Some(failure) = &now.failed
    {
        let (stage, message) = (failure.stage.clone(), failure.message.clone());
        writer
            .message(&ControlEvent::Failed { stage, message })
            .await?;
    }
    if told.exited.is_none()
        && !now.exit_acknowledged
        && let Some(report) = &now.exited
    {
        writer
            .message(&ControlEvent::Exited(report.clone()))
            .await?;
    }
    *told = now;
    Ok(())
}

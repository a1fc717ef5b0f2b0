//! One attached session with one guest: what the guest reports becomes a state to wait on, and its
//! workload's output goes to the log (and to whoever is attached) and is acknowledged once it is there.

use crate::log_store::LogStore;
use crate::output::OutputTap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use warren_core::ports::Clock;
use warren_core::ports::host_link::OutputStream;
use warren_core::{PortError, Timestamp};
use warren_guest::client::{ClientError, GuestClient, GuestEvent, GuestEvents, LogReader};
use warren_guest::protocol::{self, AttachKey, ExitReport, LogEntry, ReadyReport};

/// Output is acknowledged after this much silence, or after [`ACK_EVERY`] records.
const ACK_IDLE: Duration = Duration::from_millis(100);
const ACK_EVERY: u64 = 64;

/// What the guest has told in this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestState {
    /// It has not been told what to be.
    Waiting,
    /// It was booted, and has not said yet how far it is.
    Booting,
    /// The workload was started.
    Ready,
    /// The workload has ended.
    Exited(ExitReport),
    /// It cannot become what it was told to be.
    Failed { stage: String, message: String },
    /// The session is over.
    Closed(String),
}

/// A guest's boot as it told of it in this session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Booted {
    pub(crate) report: ReadyReport,
    /// When this host heard of it.
    pub(crate) heard: Timestamp,
}

pub(crate) struct GuestSession {
    pub(crate) client: GuestClient,
    pub(crate) output: OutputTap,
    state: watch::Receiver<GuestState>,
    booted: Arc<OnceLock<Booted>>,
    logs_complete: watch::Receiver<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for GuestSession {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Turns what a guest did into what a user may read.
pub(crate) fn guest_error(error: ClientError) -> PortError {
    let class = match &error {
        ClientError::Version { .. } | ClientError::Protocol(_) => warren_core::ErrorClass::Invalid,
        ClientError::Refused { .. } | ClientError::Detached { .. } => {
            warren_core::ErrorClass::Invalid
        }
        ClientError::NotKnown { .. } => warren_core::ErrorClass::Unsupported,
        ClientError::AttachTimeout { .. }
        | ClientError::NotHeld { .. }
        | ClientError::ChannelGone(_)
        | ClientError::AnswerTimeout { .. }
        | ClientError::SessionOver => warren_core::ErrorClass::Retry,
    };
    PortError::new(
        class,
        "guest_unreachable",
        format!("the guest's agent: {error}"),
    )
    .with_source(error)
}

impl GuestSession {
    /// Attaches over a connected channel. `boot` names this boot of the guest, so that the log knows which
    /// of its output is there already.
    pub(crate) async fn attach(
        channel: OwnedFd,
        key: &AttachKey,
        boot: &str,
        log: LogStore,
        clock: Arc<dyn Clock>,
        deadline: Duration,
    ) -> Result<Self, PortError> {
        let stream = std::os::unix::net::UnixStream::from(channel);
        stream
            .set_nonblocking(true)
            .map_err(|error| PortError::io("the guest channel", error))?;
        let stream = tokio::net::UnixStream::from_std(stream)
            .map_err(|error| PortError::io("the guest channel", error))?;
        let (client, events) = GuestClient::attach(stream, key, deadline)
            .await
            .map_err(guest_error)?;
        let first = if client.instance_id().is_some() {
            GuestState::Booting
        } else {
            GuestState::Waiting
        };
        let (state_sender, state) = watch::channel(first);
        let booted = Arc::new(OnceLock::new());
        let (complete_sender, logs_complete) = watch::channel(false);
        let output = OutputTap::new();
        let from = log.begin_boot(boot);
        let reader = client.logs(from).await.map_err(guest_error)?;
        let pump = LogPump {
            client: client.clone(),
            reader,
            log,
            clock: Arc::clone(&clock),
            output: output.clone(),
        };
        let tasks = vec![
            tokio::spawn(follow_events(
                client.clone(),
                events,
                state_sender,
                Arc::clone(&booted),
                Arc::clone(&clock),
            )),
            tokio::spawn(async move {
                pump.run().await;
                complete_sender.send_replace(true);
            }),
        ];
        Ok(GuestSession {
            client,
            output,
            state,
            booted,
            logs_complete,
            tasks,
        })
    }

    /// What the guest has told so far.
    pub(crate) fn state(&self) -> GuestState {
        self.state.borrow().clone()
    }

    /// Its boot, once it is ready.
    pub(crate) fn booted(&self) -> Option<Booted> {
        self.booted.get().copied()
    }

    /// A handle to wait for changes with.
    pub(crate) fn watch(&self) -> watch::Receiver<GuestState> {
        self.state.clone()
    }

    /// Waits until the guest's state satisfies `wanted`, or the session is over.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&GuestState) -> bool) -> GuestState {
        let mut state = self.state.clone();
        let found = state
            .wait_for(|state| wanted(state) || matches!(state, GuestState::Closed(_)))
            .await;
        match found {
            Ok(state) => state.clone(),
            Err(_) => GuestState::Closed("the session is over".to_owned()),
        }
    }

    /// Waits until all of the workload's output is in the log.
    pub(crate) async fn logs_complete(&self) {
        let mut complete = self.logs_complete.clone();
        // An error means that the pump is gone, and with it the wait's reason.
        let _ = complete.wait_for(|complete| *complete).await;
    }
}

async fn follow_events(
    client: GuestClient,
    mut events: GuestEvents,
    state: watch::Sender<GuestState>,
    booted: Arc<OnceLock<Booted>>,
    clock: Arc<dyn Clock>,
) {
    while let Some(event) = events.next().await {
        match event {
            GuestEvent::Ready(report) => {
                tracing::debug!(?report, "guest ready");
                let heard = clock.now();
                booted.get_or_init(|| Booted { report, heard });
                state.send_if_modified(|state| match state {
                    GuestState::Exited(_) => false,
                    _ => std::mem::replace(state, GuestState::Ready) != GuestState::Ready,
                });
            }
            GuestEvent::Started { pid } => tracing::debug!(pid, "workload started"),
            GuestEvent::Exited(report) => {
                state.send_replace(GuestState::Exited(report));
            }
            GuestEvent::Failed { stage, message } => {
                state.send_replace(GuestState::Failed { stage, message });
            }
        }
    }
    let reason = client.closed().await.to_string();
    // What the guest said last about its workload stays true when it powers off afterwards.
    state.send_if_modified(|state| match state {
        GuestState::Exited(_) | GuestState::Failed { .. } => false,
        _ => {
            *state = GuestState::Closed(reason);
            true
        }
    });
}

struct LogPump {
    client: GuestClient,
    reader: LogReader,
    log: LogStore,
    clock: Arc<dyn Clock>,
    output: OutputTap,
}

impl LogPump {
    async fn run(mut self) {
        let (mut received, mut acknowledged) = (0u64, 0u64);
        loop {
            let next = tokio::time::timeout(ACK_IDLE, self.reader.next());
            let (entry, idle) = match next.await {
                Ok(Ok(Some(entry))) => (Some(entry), false),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "log stream ended");
                    break;
                }
                Err(_) if acknowledged < received => (None, true),
                Err(_) => match self.reader.next().await {
                    Ok(Some(entry)) => (Some(entry), false),
                    Ok(None) | Err(_) => break,
                },
            };
            let mut last = false;
            let written = match entry {
                Some(LogEntry::Record(record)) => {
                    received = record.seq;
                    let stream = match record.stream {
                        protocol::OutputStream::Stdout => OutputStream::Stdout,
                        protocol::OutputStream::Stderr => OutputStream::Stderr,
                    };
                    self.output.push(stream, record.data.clone());
                    self.log.append_record(
                        record.seq,
                        record.unix_nanos.into(),
                        stream,
                        &record.data,
                    )
                }
                Some(LogEntry::Gap { to, .. }) if to <= self.log.newest_record() => {
                    received = received.max(to);
                    Ok(())
                }
                Some(LogEntry::Gap { from, to }) => {
                    received = to;
                    let text = format!(
                        "[warren: {} pieces of output were lost here]",
                        to.saturating_sub(from) + 1
                    );
                    self.log.note(self.clock.now(), &text)
                }
                Some(LogEntry::End { last: number }) => {
                    received = received.max(number);
                    last = true;
                    self.log.flush()
                }
                None => Ok(()),
            };
            if let Err(error) = written {
                // Not acknowledged: the guest keeps it and the next session asks again.
                tracing::warn!(%error, "cannot write the workload's log");
                break;
            }
            if last || idle || received - acknowledged.min(received) >= ACK_EVERY {
                let safe = self.log.acknowledgeable(received);
                if safe > acknowledged && self.client.ack_logs(safe).await.is_err() {
                    break;
                }
                acknowledged = if idle {
                    received
                } else {
                    acknowledged.max(safe)
                };
            }
            if last {
                break;
            }
        }
        if let Err(error) = self.log.flush() {
            tracing::warn!(%error, "cannot write the workload's log");
        }
    }
}

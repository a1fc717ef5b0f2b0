//! A test double: a guest without a VM. It speaks the real guest end of the protocol ([`crate::serve`])
//! over a made-up machine, so what a host sees differs from a real guest only in what commands do.
//!
//! Commands it knows, for the workload and for exec:
//!
//! | command | does |
//! |---|---|
//! | `exit N`, `exit:N`, `sh -c 'exit N'` | exits with N |
//! | `echo …` | writes its arguments |
//! | `count [MILLIS]` | writes 1, 2, 3, … one line each MILLIS (10), until signalled |
//! | `cat` | copies standard input (exec only) |
//! | `sleep …`, and any other workload | runs until signalled |
//! | anything else in an exec | exits with 127 |
//!
//! A login shell takes one of these for its script; without one it is `cat`.
//!
//! Its files are real ones in a directory of its own, owned by whoever runs it.
//!
//! The fake hypervisor and tests use it; nothing in a real VM does.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::authorized_keys;
use crate::files::{self, Files};
use crate::protocol::files::FileFault;
use crate::protocol::unix_nanos_now;
use crate::protocol::{
    AttachKey, BootConfig, Endpoint, ExecInput, ExecRequest, ExitReport, ExitStatus, GuestStats,
    ListenPlace, OutputStream, Program, ReadyReport,
};
use crate::serve::{
    self, BoxSocket, ExecIo, Failure, HangUp, Hold, HostPresence, Listener, LogStore, Machine,
    StatusCell,
};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// How the double deviates from a good guest.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Time between a boot configuration and `Ready`.
    pub boot_delay: Duration,
    /// Fail the boot with this message.
    pub boot_failure: Option<String>,
    /// What becomes of signals to the workload.
    pub signals: SignalHandling,
    /// Whether it knows how to freeze.
    pub freezing: Freezing,
}

/// What becomes of a wish to freeze.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Freezing {
    /// It is fulfilled.
    #[default]
    Works,
    /// It is refused in words.
    Refused,
}

/// Whether the made-up disk is held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stillness {
    /// It is written to.
    Moving,
    /// It is frozen.
    Frozen,
}

/// What the workload does with signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignalHandling {
    /// It ends by them.
    #[default]
    Obeyed,
    /// Only SIGKILL ends it.
    Ignored,
}

/// A guest without a VM. Clones are the same guest; it keeps its state between hosts, as a real one does.
#[derive(Debug, Clone)]
pub struct Double {
    machine: Arc<DoubleMachine>,
}

type Disk = Result<(tempfile::TempDir, Arc<Files>), String>;

#[derive(Debug)]
struct DoubleMachine {
    behaviour: Behaviour,
    status: Arc<StatusCell>,
    logs: Arc<LogStore>,
    signal: watch::Sender<i32>,
    power: watch::Sender<Power>,
    time: Mutex<u64>,
    stillness: watch::Sender<Stillness>,
    /// Made when somebody asks for a file, and gone with the double.
    disk: OnceLock<Disk>,
}

/// Whether the made-up machine is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It is.
    On,
    /// A real VM's process would have ended.
    Off,
}

impl Double {
    /// A guest that waits for its boot. Needs a tokio runtime as soon as it is served.
    #[must_use]
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            machine: Arc::new(DoubleMachine {
                behaviour,
                status: Arc::default(),
                logs: Arc::default(),
                signal: watch::Sender::new(0),
                power: watch::Sender::new(Power::On),
                time: Mutex::new(0),
                stillness: watch::Sender::new(Stillness::Moving),
                disk: OnceLock::new(),
            }),
        }
    }

    /// Serves hosts on this stream, one after the other, until it ends or the machine powers off.
    pub async fn serve<S>(&self, stream: S, key: &AttachKey) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + HangUp + Send + Unpin + 'static,
    {
        let machine = Arc::clone(&self.machine);
        let (status, logs) = (Arc::clone(&machine.status), Arc::clone(&machine.logs));
        tokio::select! {
            served = serve::serve(stream, key, machine, status, logs) => served,
            () = self.powered_off() => Ok(()),
        }
    }

    /// Waits for the machine to power itself off.
    pub async fn powered_off(&self) {
        self.machine.powered_off().await;
    }

    /// Ends it at once, as the end of its VMM does.
    pub fn cut_power(&self) {
        self.machine.power.send_replace(Power::Off);
    }

    /// Whether its disk is held still, as it changes.
    #[must_use]
    pub fn stillness(&self) -> watch::Receiver<Stillness> {
        self.machine.stillness.subscribe()
    }

    /// The clock as a host last set it, in nanoseconds since 1970.
    #[must_use]
    pub fn clock(&self) -> u64 {
        *self
            .machine
            .time
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fresh [`Double`] on one stream, until that ends.
pub async fn serve<S>(stream: S, key: &AttachKey, behaviour: Behaviour) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + HangUp + Send + Unpin + 'static,
{
    Double::new(behaviour).serve(stream, key).await
}

enum Simulated {
    Exit(ExitReport),
    Echo(String),
    Count(Duration),
    Cat,
    Forever,
    Unknown,
}

impl Simulated {
    fn parse(command: &[String]) -> Self {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["sh" | "/bin/sh", "-c", script] => {
                let words: Vec<String> = script.split_whitespace().map(str::to_owned).collect();
                Self::parse(&words)
            }
            ["exit", code] => code
                .parse()
                .map_or(Self::Unknown, |code| Self::Exit(ExitReport::code(code))),
            ["echo", rest @ ..] => Self::Echo(rest.join(" ") + "\n"),
            ["count"] => Self::Count(Duration::from_millis(10)),
            ["count", millis] => millis.parse().map_or(Self::Unknown, |millis| {
                Self::Count(Duration::from_millis(millis))
            }),
            ["cat"] => Self::Cat,
            ["sleep", ..] => Self::Forever,
            [word] => match word
                .strip_prefix("exit:")
                .and_then(|code| code.parse().ok())
            {
                Some(code) => Self::Exit(ExitReport::code(code)),
                None => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

impl DoubleMachine {
    fn disk(&self) -> &Disk {
        self.disk.get_or_init(|| {
            let directory = tempfile::Builder::new().prefix("warren-double-").tempdir();
            let made = directory.and_then(|directory| {
                let files = Files::within(directory.path())?;
                Ok((directory, Arc::new(files)))
            });
            made.map_err(|error| error.to_string())
        })
    }

    fn root(&self) -> Result<&std::path::Path, &String> {
        self.disk().as_ref().map(|(directory, _)| directory.path())
    }

    async fn powered_off(&self) {
        let mut power = self.power.subscribe();
        // The sender lives in `self`.
        let _ = power.wait_for(|power| *power == Power::Off).await;
    }

    async fn run(&self, config: BootConfig) {
        tokio::time::sleep(self.behaviour.boot_delay).await;
        if let Some(message) = self.behaviour.boot_failure.clone() {
            let failure = Failure {
                stage: "boot".to_owned(),
                message,
            };
            return self.status.update(|status| status.failed = Some(failure));
        }
        if !config.authorized_keys.is_empty() {
            // Without files there is nobody to let in.
            if let Ok(root) = self.root() {
                let _ = authorized_keys::add(root, "/root", &config.authorized_keys);
            }
        }
        let mut signal = self.signal.subscribe();
        self.status
            .update(|status| status.ready = Some(ReadyReport::default()));
        self.status.update(|status| status.started = Some(1));
        let report = match Simulated::parse(&config.workload.command) {
            Simulated::Exit(report) => report,
            Simulated::Echo(text) => {
                self.logs
                    .push(OutputStream::Stdout, unix_nanos_now(), Bytes::from(text))
                    .await;
                ExitReport::code(0)
            }
            Simulated::Count(pause) => {
                let counting = async {
                    let mut ticks = tokio::time::interval(pause.max(Duration::from_millis(1)));
                    for number in 1u64.. {
                        ticks.tick().await;
                        let line = Bytes::from(format!("{number}\n"));
                        self.logs
                            .push(OutputStream::Stdout, unix_nanos_now(), line)
                            .await;
                    }
                };
                tokio::select! {
                    report = self.signalled(&mut signal) => report,
                    () = counting => ExitReport::code(0),
                }
            }
            Simulated::Cat | Simulated::Forever | Simulated::Unknown => {
                self.signalled(&mut signal).await
            }
        };
        self.logs.end();
        self.status.update(|status| status.exited = Some(report));
    }

    async fn signalled(&self, signal: &mut watch::Receiver<i32>) -> ExitReport {
        let obeyed = |signal: &i32| match self.behaviour.signals {
            SignalHandling::Obeyed => *signal != 0,
            SignalHandling::Ignored => *signal == SIGKILL,
        };
        let signal = signal
            .wait_for(obeyed)
            .await
            .map_or(SIGKILL, |signal| *signal);
        ExitReport {
            status: ExitStatus::Signal(signal),
            message: None,
        }
    }
}

impl Machine for DoubleMachine {
    fn boot(self: Arc<Self>, config: BootConfig) {
        tokio::spawn(async move {
            tokio::select! {
                () = self.run(config) => {}
                () = self.powered_off() => {}
            }
        });
    }

    fn shutdown(self: Arc<Self>, signal: Option<i32>, grace_millis: u64) {
        if self.status.get().started.is_none() {
            self.power.send_replace(Power::Off);
            return;
        }
        self.signal.send_replace(signal.unwrap_or(SIGTERM));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(grace_millis)).await;
            self.signal.send_replace(SIGKILL);
        });
    }

    fn signal(&self, signal: i32) {
        self.signal.send_replace(signal);
    }

    fn exit_acknowledged(&self) {
        self.power.send_replace(Power::Off);
    }

    fn host_changed(&self, _host: HostPresence) {}

    async fn input(&self, _input: ExecInput) {}

    fn set_time(&self, unix_nanos: u64) {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = unix_nanos;
    }

    fn stats(&self) -> GuestStats {
        GuestStats {
            uptime_millis: 1000,
            cpus: 1,
            memory_total_bytes: 256 << 20,
            memory_available_bytes: 200 << 20,
            tasks: 1,
            ..GuestStats::default()
        }
    }

    async fn exec(self: Arc<Self>, request: ExecRequest, mut io: ExecIo) -> (ExitReport, ExecIo) {
        let command = match &request.program {
            Program::Command | Program::FileServer => request.command.clone(),
            Program::LoginShell { script } => {
                let script = script.as_deref().unwrap_or("cat");
                script.split_whitespace().map(str::to_owned).collect()
            }
        };
        let report = match Simulated::parse(&command) {
            Simulated::Exit(report) => report,
            Simulated::Echo(text) => {
                // A host that is gone ends this future from outside.
                let _ = io.stdout(text.as_bytes()).await;
                ExitReport::code(0)
            }
            Simulated::Cat => loop {
                match io.input.recv().await {
                    Some(ExecInput::Stdin(data)) => {
                        let _ = io.stdout(&data).await;
                    }
                    Some(ExecInput::StdinClose) | None => break ExitReport::code(0),
                    Some(ExecInput::Signal(signal)) => {
                        break ExitReport {
                            status: ExitStatus::Signal(signal),
                            message: None,
                        };
                    }
                    Some(ExecInput::Resize(_)) => {}
                }
            },
            Simulated::Count(pause) => {
                let mut ticks = tokio::time::interval(pause.max(Duration::from_millis(1)));
                let mut number = 0u64;
                loop {
                    tokio::select! {
                        _ = ticks.tick() => {
                            number += 1;
                            let _ = io.stdout(format!("{number}\n").as_bytes()).await;
                        }
                        input = io.input.recv() => match input {
                            Some(ExecInput::Signal(signal)) => {
                                break ExitReport { status: ExitStatus::Signal(signal), message: None };
                            }
                            Some(ExecInput::Stdin(_) | ExecInput::StdinClose | ExecInput::Resize(_)) => {}
                            None => break ExitReport::code(0),
                        },
                    }
                }
            }
            Simulated::Forever => loop {
                match io.input.recv().await {
                    Some(ExecInput::Signal(signal)) => {
                        break ExitReport {
                            status: ExitStatus::Signal(signal),
                            message: None,
                        };
                    }
                    Some(ExecInput::Stdin(_) | ExecInput::StdinClose | ExecInput::Resize(_)) => {}
                    None => break ExitReport::code(0),
                }
            },
            Simulated::Unknown => {
                let name = command.first().map_or("", String::as_str);
                ExitReport::not_started(127, format!("exec {name}: no such file"))
            }
        };
        (report, io)
    }

    async fn freeze(&self, deadline: Duration) -> Result<Hold, String> {
        if self.behaviour.freezing == Freezing::Refused {
            return Err("its disk cannot be frozen".to_owned());
        }
        let (freeze, thaw) = (self.stillness.clone(), self.stillness.clone());
        let turn = |disk: &watch::Sender<Stillness>, into: Stillness| {
            let turned = disk.send_if_modified(|now| std::mem::replace(now, into) != into);
            turned
                .then_some(())
                .ok_or(format!("it is {into:?} already"))
        };
        let freeze = move || turn(&freeze, Stillness::Frozen);
        let thaw = move || turn(&thaw, Stillness::Moving);
        serve::hold(deadline, freeze, thaw).await
    }

    fn files(&self) -> Result<Arc<Files>, files::Failure> {
        match self.disk() {
            Ok((_, files)) => Ok(Arc::clone(files)),
            Err(message) => Err(files::Failure {
                fault: FileFault::Failed,
                message: message.clone(),
            }),
        }
    }

    /// It has no network: what it is sent comes back.
    async fn connect(&self, endpoint: Endpoint) -> io::Result<BoxSocket> {
        match endpoint {
            Endpoint::Tcp { .. } => {
                let (theirs, ours) = tokio::io::duplex(64 << 10);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(ours);
                    // Either end going is the end of it.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
                Ok(Box::new(theirs))
            }
            Endpoint::Socket { path } => {
                let message = format!("the test double has no socket {path}");
                Err(io::Error::new(io::ErrorKind::NotFound, message))
            }
        }
    }

    /// A socket in a directory of the host's, for whoever runs the double.
    async fn listen(&self, place: ListenPlace) -> io::Result<Listener> {
        match place {
            ListenPlace::Private { .. } => {
                let directory = tempfile::Builder::new()
                    .prefix("warren-double-")
                    .tempdir()?
                    .keep();
                let path = directory.join("agent");
                Ok(Listener::Socket {
                    listener: tokio::net::UnixListener::bind(&path)?,
                    path,
                    directory: Some(directory),
                })
            }
            ListenPlace::Tcp { .. } | ListenPlace::Socket { .. } => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the test double listens on private sockets only",
            )),
        }
    }
}

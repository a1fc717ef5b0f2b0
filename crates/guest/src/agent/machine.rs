//! The real machine behind the channel: boots the instance, runs its workload and commands beside it, and
//! decides when the VM powers off.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::process::{self, Connection, Control, Input, Launch, Pipe, Process};
use super::reaper::Reaper;
use super::users::{self, User};
use super::{
    capture, command, console, etc, freeze, login, mounts, network, sockets, stats, system,
};
use crate::authorized_keys;
use crate::files::{self, Files};
use crate::protocol::files::FileFault;
use crate::protocol::{
    BootConfig, Endpoint, ExecInput, ExecRequest, ExitReport, GuestStats, ListenPlace,
    OutputStream, Program, ReadyReport, StdinMode, WorkloadConfig,
};
use crate::serve::{
    BoxSocket, ExecIo, Failure, Hold, HostPresence, Listener, LogStore, Machine, StatusCell,
};

const ETC: &str = "/etc";
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// A killed workload that is still there after this long is stuck in the kernel: the VM goes anyway.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Off,
}

type RootState = Option<Result<(), String>>;

/// What of the workload is needed while it runs.
#[derive(Debug, Clone)]
struct Running {
    pid: i32,
    stdin: Option<Pipe>,
    control: Control,
}

/// What commands beside the workload inherit from it.
#[derive(Debug, Clone)]
struct Context {
    workload: WorkloadConfig,
    hostname: String,
}

#[derive(Debug)]
pub(super) struct AgentMachine {
    status: Arc<StatusCell>,
    logs: Arc<LogStore>,
    reaper: Arc<Reaper>,
    report: Mutex<ReadyReport>,
    root: watch::Sender<RootState>,
    host: watch::Sender<HostPresence>,
    power: watch::Sender<Power>,
    running: Mutex<Option<Running>>,
    context: Mutex<Option<Context>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AgentMachine {
    pub(super) fn new(
        status: Arc<StatusCell>,
        logs: Arc<LogStore>,
        reaper: Arc<Reaper>,
        init_millis: u64,
    ) -> Self {
        Self {
            status,
            logs,
            reaper,
            report: Mutex::new(ReadyReport {
                init_millis,
                ..ReadyReport::default()
            }),
            root: watch::Sender::new(None),
            host: watch::Sender::new(HostPresence::Away),
            power: watch::Sender::new(Power::On),
            running: Mutex::default(),
            context: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> &Arc<StatusCell> {
        &self.status
    }

    pub(super) fn port_is_ready(&self) {
        lock(&self.report).port_millis = system::uptime_millis();
    }

    /// The root is there, or never will be.
    pub(super) fn root_is_ready(&self, result: Result<(), String>) {
        lock(&self.report).root_millis = system::uptime_millis();
        self.root.send_replace(Some(result));
    }

    pub(super) fn power_off(&self) {
        self.power.send_replace(Power::Off);
    }

    /// Waits until the VM is to go.
    pub(super) async fn powered_off(&self) {
        // The sender lives in `self`.
        let _ = self
            .power
            .subscribe()
            .wait_for(|power| *power == Power::Off)
            .await;
    }

    #[expect(
        clippy::unused_self,
        reason = "there is one writable disk, and it is the machine's"
    )]
    pub(super) fn take_writable_root(&self) -> Option<File> {
        mounts::take_writable()
    }

    async fn run(self: Arc<Self>, config: BootConfig) {
        let linger = Duration::from_millis(config.exit_linger_millis);
        let report = match self.become_instance(&config).await {
            Ok(()) => self.run_workload(&config).await,
            Err(failure) => {
                console::say(&format!("{}: {}", failure.stage, failure.message));
                self.status.update(|status| status.failed = Some(failure));
                return self.leave_after(linger).await;
            }
        };
        *lock(&self.running) = None;
        self.logs.end();
        self.status.update(|status| status.exited = Some(report));
        self.leave_after(linger).await;
    }

    async fn become_instance(&self, config: &BootConfig) -> Result<(), Failure> {
        lock(&self.report).config_millis = system::uptime_millis();
        let fail = |stage: &str, message: String| Failure {
            stage: stage.to_owned(),
            message,
        };
        if config.unix_nanos != 0 {
            system::set_time(config.unix_nanos)
                .map_err(|error| fail("clock", error.to_string()))?;
        }
        system::add_entropy(&config.entropy).map_err(|error| fail("entropy", error.to_string()))?;
        system::set_hostname(&config.hostname)
            .map_err(|error| fail("hostname", error.to_string()))?;
        network::configure(&config.networks)
            .await
            .map_err(|error| fail("network", error.to_string()))?;
        let mut root = self.root.subscribe();
        match root.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => {}
            Ok(Some(Err(message))) => return Err(fail("root", message.clone())),
            // The sender lives in `self`, and it waited for a value.
            Ok(None) | Err(_) => return Err(fail("root", "not mounted".to_owned())),
        }
        mounts::mount_configured(&config.mounts)
            .await
            .map_err(|error| fail("mounts", error.to_string()))?;
        etc::write(Path::new(ETC), config).map_err(|error| fail("etc", error.to_string()))?;
        if !config.authorized_keys.is_empty() {
            let home = users::look_up(Path::new(ETC), "root").map(|root| root.home);
            let home = home.unwrap_or_else(|_| "/root".to_owned());
            authorized_keys::add(Path::new("/"), &home, &config.authorized_keys)
                .map_err(|error| fail("authorized_keys", error.to_string()))?;
        }
        let report = {
            let mut report = lock(&self.report);
            report.ready_millis = system::uptime_millis();
            *report
        };
        self.status.update(|status| status.ready = Some(report));
        Ok(())
    }

    async fn run_workload(&self, config: &BootConfig) -> ExitReport {
        let workload = &config.workload;
        let context = Context {
            workload: workload.clone(),
            hostname: config.hostname.clone(),
        };
        *lock(&self.context) = Some(context);
        let user = match users::look_up(Path::new(ETC), &workload.user) {
            Ok(user) => user,
            Err(error) => return ExitReport::not_started(126, error.to_string()),
        };
        if !workload.working_dir.is_empty()
            && let Err(error) = std::fs::create_dir_all(&workload.working_dir)
        {
            let directory = &workload.working_dir;
            return ExitReport::not_started(126, format!("working directory {directory}: {error}"));
        }
        let connection = match (workload.terminal, workload.stdin) {
            (Some(terminal), _) => Connection::Terminal(terminal),
            (None, StdinMode::Attached) => Connection::Pipes(Input::Pipe),
            (None, StdinMode::Null) => Connection::Pipes(Input::Null),
        };
        let launch = Launch {
            command: &workload.command,
            name: None,
            env: process::environment(&[&workload.env], &user, &config.hostname, connection),
            working_dir: &workload.working_dir,
            user: &user,
            connection,
        };
        let mut process = match process::start(&launch, &self.reaper) {
            Ok(process) => process,
            Err(report) => return report,
        };
        *lock(&self.running) = Some(Running {
            pid: process.pid,
            stdin: process.stdin.take(),
            control: process.control.clone(),
        });
        self.status
            .update(|status| status.started = Some(process.pid));
        let logs = || Arc::clone(&self.logs);
        let mut captures = vec![capture::start(
            process.stdout.clone(),
            OutputStream::Stdout,
            logs(),
        )];
        if let Some(stderr) = process.stderr.take() {
            captures.push(capture::start(stderr, OutputStream::Stderr, logs()));
        }
        let status = process.exited().await;
        capture::finish(captures, &self.logs).await;
        ExitReport {
            status,
            message: None,
        }
    }

    /// With a host there, it decides when the VM goes; without one, time does.
    async fn leave_after(&self, linger: Duration) {
        let mut host = self.host.subscribe();
        loop {
            let gone = *host.borrow_and_update() == HostPresence::Away;
            let changed = if gone {
                timeout(linger, host.changed()).await
            } else {
                Ok(host.changed().await)
            };
            if !matches!(changed, Ok(Ok(()))) {
                return self.power_off();
            }
        }
    }

    async fn start_command(&self, request: &ExecRequest) -> Result<Process, ExitReport> {
        let context = lock(&self.context).clone();
        let Some(Context { workload, hostname }) = context else {
            return Err(ExitReport::not_started(
                126,
                "the instance is not ready yet",
            ));
        };
        let user = request.user.as_ref().unwrap_or(&workload.user);
        let user: User = users::look_up(Path::new(ETC), user)
            .map_err(|error| ExitReport::not_started(126, error.to_string()))?;
        let connection = match request.terminal {
            Some(terminal) => Connection::Terminal(terminal),
            None => Connection::Pipes(Input::Pipe),
        };
        let home = match request.program {
            Program::Command => String::new(),
            Program::LoginShell { .. } | Program::FileServer => login::home(&user).await,
        };
        let program = login::program(request, &user, &home);
        let env = [
            workload.env.as_slice(),
            program.env.as_slice(),
            request.env.as_slice(),
        ];
        let working_dir = request.working_dir.as_deref().or(program.working_dir);
        let launch = Launch {
            command: &program.command,
            name: program.name.as_deref(),
            env: process::environment(&env, &user, &hostname, connection),
            working_dir: working_dir.unwrap_or(&workload.working_dir),
            user: &user,
            connection,
        };
        process::start(&launch, &self.reaper)
    }
}

impl Machine for AgentMachine {
    fn boot(self: Arc<Self>, config: BootConfig) {
        tokio::spawn(self.run(config));
    }

    fn shutdown(self: Arc<Self>, signal: Option<i32>, grace_millis: u64) {
        let running = lock(&self.running).clone();
        let Some(Running { pid, .. }) = running else {
            return self.power_off();
        };
        let own = || {
            let context = lock(&self.context);
            context
                .as_ref()
                .and_then(|context| process::parse_signal(&context.workload.stop_signal))
        };
        process::kill(pid, signal.or_else(own).unwrap_or(SIGTERM));
        tokio::spawn(async move {
            let mut status = self.status.subscribe();
            let exited = status.wait_for(|status| status.exited.is_some());
            if timeout(Duration::from_millis(grace_millis), exited)
                .await
                .is_ok()
            {
                return;
            }
            process::kill(-pid, SIGKILL);
            process::kill_everything();
            let mut status = self.status.subscribe();
            let exited = status.wait_for(|status| status.exited.is_some());
            if timeout(KILL_PATIENCE, exited).await.is_err() {
                self.power_off();
            }
        });
    }

    fn signal(&self, signal: i32) {
        if let Some(running) = &*lock(&self.running) {
            process::kill(running.pid, signal);
        }
    }

    fn exit_acknowledged(&self) {
        self.power_off();
    }

    fn host_changed(&self, host: HostPresence) {
        self.host.send_replace(host);
    }

    async fn input(&self, input: ExecInput) {
        let Some(running) = lock(&self.running).clone() else {
            return;
        };
        match input {
            ExecInput::Stdin(data) => {
                if let Some(stdin) = &running.stdin {
                    // A workload that closed its input gets none.
                    let _ = stdin.write_all(&data).await;
                }
            }
            ExecInput::StdinClose => {
                drop(running);
                close_input(&mut lock(&self.running));
            }
            ExecInput::Resize(terminal) => running.control.resize(terminal),
            ExecInput::Signal(signal) => process::kill(running.pid, signal),
        }
    }

    fn set_time(&self, unix_nanos: u64) {
        if let Err(error) = system::set_time(unix_nanos) {
            console::say(&format!("clock: {error}"));
        }
    }

    fn stats(&self) -> GuestStats {
        stats::read()
    }

    async fn exec(self: Arc<Self>, request: ExecRequest, mut io: ExecIo) -> (ExitReport, ExecIo) {
        let mut process = match self.start_command(&request).await {
            Ok(process) => process,
            Err(report) => return (report, io),
        };
        let limit = request.timeout_millis.map(Duration::from_millis);
        let connection = match request.terminal {
            Some(terminal) => Connection::Terminal(terminal),
            None => Connection::Pipes(Input::Pipe),
        };
        let report = command::attend(&mut process, &mut io, connection, limit).await;
        (report, io)
    }

    async fn freeze(&self, deadline: Duration) -> Result<Hold, String> {
        match mounts::writable() {
            Some(directory) => freeze::freeze(directory, deadline).await,
            None => Err("it has no writable disk".to_owned()),
        }
    }

    fn files(&self) -> Result<Arc<Files>, files::Failure> {
        let failed = |message: String| files::Failure {
            fault: FileFault::Failed,
            message,
        };
        if self.status.get().ready.is_none() {
            return Err(failed("the instance is not ready yet".to_owned()));
        }
        // The agent has moved into the workload's root: it can name nothing else.
        Files::within(Path::new("/"))
            .map(Arc::new)
            .map_err(|error| failed(format!("its root: {error}")))
    }

    async fn connect(&self, endpoint: Endpoint) -> io::Result<BoxSocket> {
        sockets::connect(endpoint).await
    }

    async fn listen(&self, place: ListenPlace) -> io::Result<Listener> {
        sockets::listen(place).await
    }
}

fn close_input(running: &mut Option<Running>) {
    if let Some(running) = running {
        running.stdin = None;
    }
}

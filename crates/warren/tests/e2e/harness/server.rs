//! The server's process: started, killed, restarted as another build, and gone with all it made when the test ends.

use super::http::http;
use super::image::busybox_layout;
use super::{Mode, eventually, free_port};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Somebody without privileges: Debian's `nobody`.
const NOBODY: u32 = 65534;

pub(crate) fn warren_bin() -> PathBuf {
    std::env::var_os("WARREN_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_warren")),
        PathBuf::from,
    )
}

/// Which build of the program a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// The one under test: a release build in `./dev test`.
    Chosen,
    /// The one of this test's own profile, which has crash points.
    WithCrashPoints,
    /// The one of an older release, where `WARREN_OLDER` names it; else the one under test.
    Older,
}

impl Build {
    fn program(self) -> PathBuf {
        match self {
            Build::Chosen => warren_bin(),
            Build::WithCrashPoints => PathBuf::from(env!("CARGO_BIN_EXE_warren")),
            Build::Older => std::env::var_os("WARREN_OLDER").map_or_else(warren_bin, PathBuf::from),
        }
    }
}

/// A running server.
pub(crate) struct Server {
    build: Build,
    pub(crate) mode: Mode,
    pub(crate) port: u16,
    pub(crate) subnet: u8,
    data: Option<tempfile::TempDir>,
    process: Option<Child>,
    extra: Vec<(String, String)>,
    log: PathBuf,
}

impl Server {
    /// Starts one and loads the busybox image as `busybox-web`.
    pub(crate) fn start(mode: Mode) -> Self {
        Self::start_in(mode, &[])
    }

    /// The same, with more environment.
    pub(crate) fn start_in(mode: Mode, environment: &[(&str, &str)]) -> Self {
        Self::start_build(Build::Chosen, mode, environment)
    }

    /// The same, of this build.
    pub(crate) fn start_build(build: Build, mode: Mode, environment: &[(&str, &str)]) -> Self {
        let server = Self::start_empty(build, mode, environment);
        let layout = busybox_layout().to_string_lossy().into_owned();
        server.ok(&["load", &layout, "--name", "busybox-web"]);
        server
    }

    /// The same, in bridge mode, with its data directory in a place of the test's.
    pub(crate) fn start_at(place: &Path, environment: &[(&str, &str)]) -> Self {
        let server = Self::start_empty_at(Some(place), Build::Chosen, Mode::Bridge, environment);
        let layout = busybox_layout().to_string_lossy().into_owned();
        server.ok(&["load", &layout, "--name", "busybox-web"]);
        server
    }

    fn start_empty(build: Build, mode: Mode, environment: &[(&str, &str)]) -> Self {
        Self::start_empty_at(None, build, mode, environment)
    }

    fn start_empty_at(
        place: Option<&Path>,
        build: Build,
        mode: Mode,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut named = tempfile::Builder::new();
        named.prefix("wrn");
        let data = match place {
            Some(place) => named.tempdir_in(place),
            None => named.tempdir(),
        }
        .expect("a temporary directory");
        if mode == Mode::User {
            std::os::unix::fs::chown(data.path(), Some(NOBODY), Some(NOBODY)).expect("we are root");
        }
        let port = free_port();
        let mut server = Server {
            build,
            mode,
            port,
            // Tests run at the same time in other processes: the port is as unique as anything.
            subnet: (port % 250) as u8 + 1,
            // Not where a test may fill the disk.
            log: std::env::temp_dir().join(format!("warren-e2e-{}-{port}.log", std::process::id())),
            data: Some(data),
            process: None,
            extra: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        server.launch();
        server
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.as_ref().expect("taken only by drop").path()
    }

    /// Of the server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("DATA_DIR", self.data())
            .env("PORT", self.port.to_string())
            .env("BRIDGE_NAME", format!("wrnt{}", self.port))
            .env(
                "SUBNET_CIDR",
                format!("10.{}.{}.0/24", 64 + (self.port >> 8 & 63), self.subnet),
            )
            .env(
                "SUBNET_GATEWAY",
                format!("10.{}.{}.1", 64 + (self.port >> 8 & 63), self.subnet),
            )
            .env("WARREN_SERVER", self.url())
            .env("WARREN_CONTAINER_SERVICE", "off")
            .env("WARREN_LOG", "info,warren_agent=debug")
            .env(
                "WARREN_NETWORK",
                match self.mode {
                    Mode::Bridge => "bridge",
                    Mode::User => "user",
                },
            )
            .env_remove("JWT_SECRET")
            .envs(self.extra.iter().map(|(name, value)| (name, value)));
        match self.mode {
            Mode::Bridge => {}
            Mode::User => {
                command
                    .env("HOME", self.data())
                    .env("XDG_CACHE_HOME", self.data().join("cache"));
                command.uid(NOBODY).gid(NOBODY);
            }
        }
    }

    /// (Re)starts the server process and waits until it is healthy.
    pub(crate) fn launch(&mut self) {
        self.spawn(&[]);
        self.until_healthy();
    }

    /// (Re)starts the server process with more environment for this time.
    pub(crate) fn spawn(&mut self, environment: &[(&str, &str)]) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log can be written");
        let mut command = Command::new(self.build.program());
        command
            .arg("server")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.environment(&mut command);
        command.envs(environment.iter().copied());
        self.process = Some(command.spawn().expect("the server starts"));
    }

    /// Waits until it answers.
    pub(crate) fn until_healthy(&mut self) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        eventually("the server answers", 60, || {
            let ended = self
                .process
                .as_mut()
                .and_then(|process| process.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "the server ended: {ended:?}\n{}",
                self.log()
            );
            http(address, "GET", "/health", None).filter(|answer| answer.status == 200)
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Which build of the program is started from now on.
    pub(crate) fn becomes(&mut self, build: Build) {
        self.build = build;
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.kill().expect("it is our child");
        process.wait().expect("it is our child");
    }

    /// Whether the process has ended by itself within this time; it is reaped then.
    pub(crate) fn dies_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let process = self.process.as_mut().expect("the server runs");
        loop {
            if process.try_wait().expect("it is our child").is_some() {
                self.process = None;
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// kill -9 while others still use `self`; `reap` must follow.
    pub(crate) fn kill_now(&self) {
        let process = self.process.as_ref().expect("the server runs");
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is our child");
    }

    /// Takes note of a server that was killed.
    pub(crate) fn reap(&mut self) {
        let mut process = self.process.take().expect("the server ran");
        process.wait().expect("it is our child");
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is our child");
        eventually("the server stops", 30, || {
            process.try_wait().expect("it is our child")
        })
    }

    pub(crate) fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(self.build.program());
        command.args(arguments).stdin(Stdio::null());
        self.environment(&mut command);
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.cli(arguments).output().expect("the CLI starts")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- server log:\n{}", self.log());
        }
        if let Some(mut process) = self.process.take() {
            let names = self.run(&["ps", "-a", "-o", "name"]);
            for name in String::from_utf8_lossy(&names.stdout).lines() {
                self.run(&["rm", "-f", name]);
            }
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(process.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = process.kill();
                    let _ = process.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if self.data.is_some() {
            self.run(&["system", "clean"]);
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

//! A server of one's own for each test, on a data directory, bridge, subnet and port of its own, driven
//! by the same binary's CLI; and images made on the spot. Everything started here ends with the test, by
//! pid, also when the test panics.

pub(crate) use crate::skip::skip;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How guests are connected in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As root, with a bridge.
    Bridge,
    /// As an unprivileged user, with a user-mode stack.
    User,
}

/// Somebody without privileges: Debian's `nobody`.
const NOBODY: u32 = 65534;

pub(crate) fn warren_bin() -> PathBuf {
    std::env::var_os("WARREN_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_warren")),
        PathBuf::from,
    )
}

pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the checkout exists")
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).any(|file| file.is_file())
}

/// Why a test in this mode cannot run here, if it cannot.
pub(crate) fn missing(mode: Mode) -> Option<String> {
    if !on_path("qemu-system-x86_64") {
        return Some("qemu-system-x86_64 is not installed".to_owned());
    }
    if !is_root() {
        return Some(
            "these tests start as root, which makes bridges and unprivileged users alike"
                .to_owned(),
        );
    }
    match mode {
        Mode::Bridge if !on_path("nft") => Some("nft is not installed".to_owned()),
        Mode::User if !on_path("passt") => Some("passt is not installed".to_owned()),
        Mode::Bridge | Mode::User => None,
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Repeats until it gives something, or panics with `what` after the deadline.
pub(crate) fn eventually<T>(what: &str, seconds: u64, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut pause = Duration::from_millis(3);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

/// The OCI layout of the busybox image, made once per test process.
pub(crate) fn busybox_layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let layout =
            std::env::temp_dir().join(format!("warren-e2e-{}-busybox", std::process::id()));
        let made = Command::new(checkout().join("scripts/make-busybox-image"))
            .arg(&layout)
            .status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "the busybox image could not be made"
        );
        layout
    })
}

/// A tarball of a root file system that holds one static program.
pub(crate) fn echo_tarball() -> &'static Path {
    static TARBALL: OnceLock<PathBuf> = OnceLock::new();
    TARBALL.get_or_init(|| {
        let directory =
            std::env::temp_dir().join(format!("warren-e2e-{}-echo", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        let source = checkout().join("crates/warren/tests/e2e/guest/echo.rs");
        let compiled = Command::new("rustc")
            .args([
                "--edition=2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-o",
            ])
            .arg(directory.join("echo"))
            .arg(source)
            .status();
        assert!(
            compiled.is_ok_and(|status| status.success()),
            "the test program does not compile"
        );
        let tarball = directory.join("echo.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&directory)
            .arg("-cf")
            .arg(&tarball)
            .arg("echo")
            .status();
        assert!(
            packed.is_ok_and(|status| status.success()),
            "the test image could not be packed"
        );
        tarball
    })
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

    /// What `warren fsck` finds, in its own words.
    pub(crate) fn differences(&self) -> Vec<String> {
        let (status, check) = self.api("GET", "/system/check", None);
        assert_eq!(status, 200, "{check}");
        let sentence = |one: &serde_json::Value| one["sentence"].as_str().map(str::to_owned);
        let all = check["differences"].as_array();
        all.into_iter().flatten().filter_map(sentence).collect()
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

    /// A REST call to a server that may die meanwhile: the status, or `None` without a whole answer.
    pub(crate) fn try_api(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Option<u16> {
        self.try_api_with(method, path, body, &[])
    }

    /// The same, with headers.
    pub(crate) fn try_api_with(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
        headers: &[(&str, &str)],
    ) -> Option<u16> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let body = body.map(|body| body.to_string());
        http_with(address, method, path, body.as_deref(), headers).map(|answer| answer.status)
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

    /// Runs a command that must succeed; its stdout.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        assert!(
            output.status.success(),
            "warren {} failed ({}):\n{}{}\n--- server:\n{}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A REST call; the answer's status and JSON.
    pub(crate) fn api(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> (u16, serde_json::Value) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let answer = http(
            address,
            method,
            path,
            body.map(|body| body.to_string()).as_deref(),
        )
        .expect("the server answers");
        (
            answer.status,
            serde_json::from_str(&answer.body).unwrap_or(serde_json::Value::Null),
        )
    }

    /// What is on the host of this installation: VMMs, devices, nftables tables, instance directories.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let installation =
            std::fs::read_to_string(self.data().join("installation")).unwrap_or_default();
        let installation = installation.trim();
        if installation.is_empty() {
            return found;
        }
        for entry in std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            let ours = line.contains(&self.data().to_string_lossy().into_owned());
            if ours && (line.contains("qemu-system") || line.contains("passt")) {
                found.push(format!("process {name}: {line}"));
            }
        }
        if let Ok(devices) = std::fs::read_dir("/sys/class/net") {
            for device in devices.flatten() {
                let name = device.file_name().to_string_lossy().into_owned();
                if name.starts_with(&format!("wt{installation}")) {
                    found.push(format!("device {name}"));
                }
            }
        }
        if let Ok(instances) = std::fs::read_dir(self.data().join("instances")) {
            found.extend(
                instances
                    .flatten()
                    .map(|entry| format!("directory {}", entry.path().display())),
            );
        }
        found
    }

    /// What must be gone once the server is stopped and `system clean` has run.
    pub(crate) fn network_leftovers(&self) -> Vec<String> {
        let installation =
            std::fs::read_to_string(self.data().join("installation")).unwrap_or_default();
        let mut found = Vec::new();
        if Path::new("/sys/class/net")
            .join(format!("wrnt{}", self.port))
            .exists()
        {
            found.push("the bridge".to_owned());
        }
        let tables = Command::new("nft").args(["list", "tables"]).output();
        if let Ok(tables) = tables
            && String::from_utf8_lossy(&tables.stdout)
                .contains(&format!("warren_{}", installation.trim()))
        {
            found.push("the nftables table".to_owned());
        }
        found
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

/// An HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// One HTTP/1.1 exchange with `Connection: close`; `None` when nobody answers.
pub(crate) fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Option<Answer> {
    http_with(address, method, path, body, &[])
}

/// The same, with headers.
fn http_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
    headers: &[(&str, &str)],
) -> Option<Answer> {
    let more: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let body = body.unwrap_or_default();
    let kind = if body.is_empty() {
        String::new()
    } else {
        format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )
    };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\n{kind}{more}Connection: close\r\n\r\n{body}",
        address.port()
    )
    .ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Some(Answer {
        status,
        body: if chunked {
            unchunk(rest)
        } else {
            rest.to_owned()
        },
    })
}

fn unchunk(mut text: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        let Some(chunk) = rest.get(..size).filter(|_| size > 0) else {
            break;
        };
        body.push_str(chunk);
        text = rest.get(size + 2..).unwrap_or_default();
    }
    body
}

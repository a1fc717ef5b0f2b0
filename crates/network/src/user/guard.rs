//! The process between a guest and passt: a network stack of its own for each guest, which outlives the server.
//!
//! It starts passt on one end of a socket pair, listens for the VMM, and carries frames, leaving out those that
//! would reach the host's loopback ([`super::filter`]). It may be connected to again and again; it
//! ends when passt ends or when it is killed, and passt ends with it. As root it becomes nobody once its sockets are
//! open, as passt does.
//!
//! Runs as `warren <hidden subcommand> <configuration>`, by way of [`run`], in a session of its own. Synchronous:
//! two threads, one for each direction, so that neither can wait for the other.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use warren_core::network::{MacAddress, Protocol};
use warren_core::ports::hypervisor::ProcessIdentity;

use super::filter::Filter;
use super::frames::{Frames, FromGuest, arp_request};
use super::process;
use super::queue::wait_until_read;

/// What is said on standard output when guests may connect.
pub(super) const READY: &str = "ready";
/// How long passt may take to answer its first question.
const START: Duration = Duration::from_secs(10);
const BUFFER: usize = 256 * 1024;
/// Bytes received and sent, 64 bits each, little-endian; written for the first time when guests may connect.
const COUNTERS_SIZE: usize = 16;
/// How often counters are written down while they change.
const COUNTERS: Duration = Duration::from_secs(1);
/// A VMM that does not take a frame for that long is taken for gone.
const STALLED: Duration = Duration::from_secs(10);
const NOBODY: u32 = 65_534;

/// A port on the host's loopback at which passt listens for one port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inner {
    pub(super) protocol: Protocol,
    pub(super) inner_port: u16,
    pub(super) guest_port: u16,
}

/// Everything a guard needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GuardConfig {
    /// The instance's directory, in which its files go.
    pub(super) directory: PathBuf,
    pub(super) passt: PathBuf,
    pub(super) mac: MacAddress,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Ipv4Addr,
    pub(super) ports: Vec<Inner>,
}

/// What the guard writes down about itself before it does anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) process: ProcessIdentity,
    pub(super) config: GuardConfig,
}

pub(super) fn socket_path(directory: &Path) -> PathBuf {
    directory.join("net.sock")
}

pub(super) fn record_path(directory: &Path) -> PathBuf {
    directory.join("net.json")
}

pub(super) fn counters_path(directory: &Path) -> PathBuf {
    directory.join("net.counters")
}

pub(super) fn log_path(directory: &Path) -> PathBuf {
    directory.join("net.log")
}

/// Whether a guard has come so far that guests may connect. Before that nobody is served, and whoever waited for it
/// may be gone.
pub(super) fn is_ready(directory: &Path) -> bool {
    fs::metadata(counters_path(directory)).is_ok_and(|file| file.len() >= COUNTERS_SIZE as u64)
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.join("net.lock")
}

/// Everything a guard leaves. The lock goes last: as long as it is there, something may be left.
pub(super) fn files(directory: &Path) -> [PathBuf; 5] {
    [
        socket_path(directory),
        counters_path(directory),
        log_path(directory),
        record_path(directory),
        lock_path(directory),
    ]
}

pub(super) fn read_record(directory: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(record_path(directory)).ok()?).ok()
}

/// How long a guard that is being looked for may take to show, or to go.
const FIND: Duration = Duration::from_secs(5);

/// The right to be an instance's guard. It goes with the last copy of the descriptor (flock(2)).
///
/// # Errors
/// The file system's; `WouldBlock` when a guard lives.
pub(super) fn take_lock(directory: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock_path(directory))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Whether a guard of this directory lives, recorded or not.
fn is_locked(directory: &Path) -> io::Result<bool> {
    if !lock_path(directory).exists() {
        return Ok(false);
    }
    match take_lock(directory) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Ends the guard of an instance: the one that is recorded, and one that lives without a record because its
/// starter died between the two. Blocks.
pub(super) fn end(directory: &Path) -> io::Result<()> {
    if let Some(record) = read_record(directory) {
        process::kill(&record.process)?;
    }
    let deadline = Instant::now() + FIND;
    while is_locked(directory)? {
        let found = process::find(|argument| {
            serde_json::from_str::<GuardConfig>(argument)
                .is_ok_and(|config| config.directory == directory)
        })?;
        for process in &found {
            process::kill(process)?;
        }
        if found.is_empty() {
            // It was forked and is not itself yet.
            std::thread::sleep(Duration::from_millis(5));
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the network guard cannot be found",
            ));
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

type Guest = Arc<Mutex<Option<UnixStream>>>;

/// Runs a guard with the configuration that its starter passed as the one argument. Must be called before any
/// thread is started. Returns only when it is over.
pub fn run(configuration: &str) -> ExitCode {
    let result = serde_json::from_str::<GuardConfig>(configuration)
        .map_err(io::Error::from)
        .and_then(|config| serve(&config));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the instance's net.log.
            let _ = writeln!(io::stderr(), "network guard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &GuardConfig) -> io::Result<()> {
    // Fails when it is a session leader already, which is as good.
    let _ = rustix::process::setsid();
    // Empty before the record names this guard: what an earlier one counted must not make it look ready.
    let counters_file = fs::File::create(counters_path(&config.directory))?;
    let record = Record {
        process: process::own_identity()?,
        config: config.clone(),
    };
    let path = record_path(&config.directory);
    let new = config.directory.join(".net.json.new");
    fs::write(&new, serde_json::to_vec(&record)?)?;
    fs::rename(&new, &path)?;

    let socket = socket_path(&config.directory);
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&socket)?;
    let (mut stack, theirs) = UnixStream::pair()?;
    let mut passt = start_passt(config, theirs)?;
    become_nobody()?;
    if let Err(error) = wait_for_answer(&mut stack, config) {
        // Its own words are in net.log already.
        let _ = passt.kill();
        let _ = passt.wait();
        return Err(error);
    }
    counters_file.write_all_at(&[0; COUNTERS_SIZE], 0)?;
    // The server that waits for it may have died: the next one takes this guard over.
    let _told = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());

    let guest: Guest = Guest::default();
    let counters = Arc::new(Counters::default());
    let filter = Arc::new(Filter::new(config.address, config.gateway));
    let to_stack = stack.try_clone()?;
    {
        let (guest, counters) = (Arc::clone(&guest), Arc::clone(&counters));
        let filter = Arc::clone(&filter);
        std::thread::spawn(move || from_guests(&listener, &to_stack, &guest, &counters, &filter));
    }
    {
        let counters = Arc::clone(&counters);
        std::thread::spawn(move || write_counters(&counters_file, &counters));
    }
    to_guest(&mut stack, &guest, &counters, &filter)?;
    passt.wait()?;
    Ok(())
}

fn start_passt(config: &GuardConfig, socket: UnixStream) -> io::Result<Child> {
    // One process, one thread so far: nobody else can inherit this by accident.
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty())?;
    let mut command = Command::new(&config.passt);
    command
        .env_clear()
        .args(["--foreground", "--stderr", "--quiet", "--ipv4-only"])
        // What nobody here asks for. Not --no-map-gw: with it this passt does not find the way back for UDP that
        // came in from loopback; what the gateway's address would open otherwise, the filter closes.
        .args(["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"])
        .args(["--dns", "none", "--search", "none"])
        .args(["--address", &config.address.to_string()])
        .args(["--netmask", &config.prefix.to_string()])
        .args(["--gateway", &config.gateway.to_string()])
        .args(["--fd", &socket.as_raw_fd().to_string()]);
    for port in &config.ports {
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let spec = format!("127.0.0.1/{}:{}", port.inner_port, port.guest_port);
        command.args([option, &spec]);
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

fn become_nobody() -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (NOBODY.into(), NOBODY.into());
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

/// Asks for the gateway's hardware address until passt answers: then it is ready.
fn wait_for_answer(stack: &mut UnixStream, config: &GuardConfig) -> io::Result<()> {
    let deadline = Instant::now() + START;
    stack.write_all(&arp_request(config.mac.0, config.address, config.gateway))?;
    let mut buffer = [0_u8; 4096];
    let mut frames = Frames::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "passt did not answer",
            ));
        }
        stack.set_read_timeout(Some(left))?;
        let length = stack.read(&mut buffer)?;
        if length == 0 {
            return Err(io::Error::other("passt ended at once"));
        }
        let mut answers = Vec::new();
        let is_arp = |frame: &[u8]| frame.get(12..14) == Some(&[0x08, 0x06]);
        frames
            .take(&buffer[..length], &mut answers, is_arp)
            .map_err(|_| io::ErrorKind::InvalidData)?;
        if !answers.is_empty() {
            return stack.set_read_timeout(None);
        }
    }
}

/// One VMM after the other: takes its frames and passes on what may pass.
fn from_guests(
    listener: &UnixListener,
    stack: &UnixStream,
    guest: &Guest,
    counters: &Counters,
    filter: &Filter,
) {
    let mut buffer = vec![0_u8; BUFFER];
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            continue;
        };
        let Ok(for_answers) = connection.try_clone() else {
            continue;
        };
        let _ = for_answers.set_write_timeout(Some(STALLED));
        *guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(for_answers);
        let mut frames = Frames::default();
        while let Ok(length @ 1..) = connection.read(&mut buffer) {
            let now = Instant::now();
            let may_send = |frame: &[u8]| filter.guest_may_send(frame, now);
            let Ok(taken) = frames.take_from_guest(&buffer[..length], filter.gateway(), may_send)
            else {
                break;
            };
            let sent = taken.parts.iter().map(Vec::len).sum::<usize>() + taken.rest.len();
            counters.sent.fetch_add(sent as u64, Ordering::Relaxed);
            if send_to_stack(stack, &taken).is_err() {
                // passt is gone; the other thread sees the same and ends the process.
                let _ = stack.shutdown(Shutdown::Both);
                return;
            }
            if !taken.acks.is_empty() {
                send_to_guest(guest, &taken.acks);
            }
        }
        let _ = connection.shutdown(Shutdown::Both);
        *guest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// When it returns, passt has read all but the rest.
fn send_to_stack(mut stack: &UnixStream, taken: &FromGuest) -> io::Result<()> {
    for part in &taken.parts {
        stack.write_all(part)?;
        wait_until_read(stack, STALLED)?;
    }
    stack.write_all(&taken.rest)
}

/// Passes passt's frames on to whoever is connected; whole frames only, so that a new VMM starts at a beginning.
fn to_guest(
    stack: &mut UnixStream,
    guest: &Guest,
    counters: &Counters,
    filter: &Filter,
) -> io::Result<()> {
    let mut buffer = vec![0_u8; BUFFER];
    let mut frames = Frames::default();
    let mut out = Vec::with_capacity(BUFFER);
    loop {
        let length = stack.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        out.clear();
        let now = Instant::now();
        frames
            .take(&buffer[..length], &mut out, |frame| {
                filter.note(frame, now);
                true
            })
            .map_err(|_| io::ErrorKind::InvalidData)?;
        if send_to_guest(guest, &out) {
            counters
                .received
                .fetch_add(out.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Whole frames, under the lock, since both threads send. A VMM reads whether or not it can send, so this does not
/// wait for the thread that reads from it. False when nobody is connected.
fn send_to_guest(guest: &Guest, frames: &[u8]) -> bool {
    let mut connected = guest.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(stream) = connected.as_mut() else {
        return false;
    };
    let sent = stream.write_all(frames).is_ok();
    if !sent {
        // The reading thread sees the end and waits for the next one.
        let _ = stream.shutdown(Shutdown::Both);
        *connected = None;
    }
    sent
}

fn write_counters(file: &fs::File, counters: &Counters) {
    let mut written = (0, 0);
    loop {
        std::thread::sleep(COUNTERS);
        let now = (
            counters.received.load(Ordering::Relaxed),
            counters.sent.load(Ordering::Relaxed),
        );
        if now != written {
            let bytes = [now.0.to_le_bytes(), now.1.to_le_bytes()].concat();
            let _ = file.write_all_at(&bytes, 0);
            written = now;
        }
    }
}

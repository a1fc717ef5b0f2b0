//! Starts processes as an image or an exec wants them, and moves bytes in and out of them.
#![expect(unsafe_code, reason = "signals for which no library has a type")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::reaper::Reaper;
use super::spawn::{ControllingTerminal, Program, spawn};
use super::users::User;
use crate::protocol::{ExitReport, ExitStatus, Terminal};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A command whose host has gone has this long after SIGHUP.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// Where standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Null,
    Pipe,
}

/// What a process is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    Pipes(Input),
    Terminal(Terminal),
}

/// A process to be.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) command: &'a [String],
    /// What it is to take for its own name; the program's when absent.
    pub(super) name: Option<&'a str>,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: &'a str,
    pub(super) user: &'a User,
    pub(super) connection: Connection,
}

/// A running process, leader of its own session. Dropping it hangs up on its process group.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) stdin: Option<Pipe>,
    pub(super) stdout: Pipe,
    pub(super) stderr: Option<Pipe>,
    pub(super) control: Control,
    exit: Option<oneshot::Receiver<ExitStatus>>,
}

/// Terminal size and end of input for a process on a terminal.
#[derive(Debug, Clone)]
pub(super) struct Control {
    terminal: Option<Pipe>,
}

impl Control {
    /// Sets the terminal's size, if there is a terminal.
    pub(super) fn resize(&self, terminal: Terminal) {
        if let Some(pipe) = &self.terminal {
            let _ = tcsetwinsize(pipe.0.get_ref(), winsize(terminal));
        }
    }
}

fn winsize(terminal: Terminal) -> Winsize {
    Winsize {
        ws_row: terminal.rows,
        ws_col: terminal.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// The environment of a process: what was given, and values for what every program expects.
pub(super) fn environment(
    layers: &[&[(String, String)]],
    user: &User,
    hostname: &str,
    connection: Connection,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), user.home.clone()),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
    ];
    if matches!(connection, Connection::Terminal(_)) {
        env.push(("TERM".to_owned(), "xterm-256color".to_owned()));
    }
    for (name, value) in layers.iter().copied().flatten() {
        env.retain(|(present, _)| present != name);
        env.push((name.clone(), value.clone()));
    }
    env
}

/// Starts a process. Where it cannot be started the report says why: 127 if it is not there, else 126.
pub(super) fn start(launch: &Launch<'_>, reaper: &Reaper) -> Result<Process, ExitReport> {
    let Some((program, arguments)) = launch.command.split_first() else {
        return Err(ExitReport::not_started(127, "no command to run"));
    };
    let fail = |what: &str, error: &io::Error| {
        let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR) => 127,
            _ => 126,
        };
        // The number is dropped: "(os error 2)" helps nobody.
        let words = error.to_string();
        let words = words.split(" (os error").next().unwrap_or_default();
        ExitReport::not_started(code, format!("{what}: {}", words.to_lowercase()))
    };
    if [program]
        .into_iter()
        .chain(arguments)
        .any(|word| word.contains('\0'))
        || launch
            .env
            .iter()
            .any(|(name, value)| name.contains(['\0', '=']) || value.contains('\0'))
    {
        return Err(ExitReport::not_started(
            126,
            "a NUL byte or a bad name in arguments or environment",
        ));
    }
    let directory = if launch.working_dir.is_empty() {
        "/"
    } else {
        launch.working_dir
    };
    if !Path::new(directory).is_dir() {
        return Err(ExitReport::not_started(
            126,
            format!("no working directory {directory}"),
        ));
    }
    let (stdio, wired) =
        wire(launch.connection).map_err(|error| fail("cannot connect the process", &error))?;
    let started = reaper.spawn(|| {
        spawn(&Program {
            command: launch.command,
            name: launch.name,
            env: &launch.env,
            directory,
            user: launch.user,
            stdio: &stdio,
            terminal: match launch.connection {
                Connection::Terminal(_) => ControllingTerminal::Yes,
                Connection::Pipes(_) => ControllingTerminal::No,
            },
        })
    });
    // Closes the child's ends in this process, so that its output can end.
    drop(stdio);
    let (pid, exit) = started.map_err(|error| fail(&format!("exec {program}"), &error))?;
    Ok(Process {
        pid,
        stdin: wired.stdin,
        stdout: wired.stdout,
        stderr: wired.stderr,
        control: Control {
            terminal: wired.terminal,
        },
        exit: Some(exit),
    })
}

/// Our ends of a process's connections.
struct Wired {
    stdin: Option<Pipe>,
    stdout: Pipe,
    stderr: Option<Pipe>,
    terminal: Option<Pipe>,
}

/// The ends of the process to be, and ours.
fn wire(connection: Connection) -> io::Result<([OwnedFd; 3], Wired)> {
    match connection {
        Connection::Terminal(terminal) => {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            unlockpt(&master)?;
            let slave = ioctl_tiocgptpeer(
                &master,
                OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
            )?;
            tcsetwinsize(&master, winsize(terminal))?;
            let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
            let master = Pipe::new(master)?;
            let wired = Wired {
                stdin: Some(master.clone()),
                stdout: master.clone(),
                stderr: None,
                terminal: Some(master),
            };
            Ok((stdio, wired))
        }
        Connection::Pipes(input) => {
            let (their_stdin, stdin) = match input {
                Input::Null => (std::fs::File::open("/dev/null")?.into(), None),
                Input::Pipe => {
                    let (theirs, ours) = io::pipe()?;
                    (theirs.into(), Some(Pipe::new(ours.into())?))
                }
            };
            let (stdout, their_stdout) = io::pipe()?;
            let (stderr, their_stderr) = io::pipe()?;
            let wired = Wired {
                stdin,
                stdout: Pipe::new(stdout.into())?,
                stderr: Some(Pipe::new(stderr.into())?),
                terminal: None,
            };
            Ok((
                [their_stdin, their_stdout.into(), their_stderr.into()],
                wired,
            ))
        }
    }
}

impl Process {
    /// Waits for the exit. Cancel safe; after it, dropping the process does nothing.
    pub(super) async fn exited(&mut self) -> ExitStatus {
        let Some(exit) = &mut self.exit else {
            return std::future::pending().await;
        };
        // The reaper never forgets a registered child.
        let status = exit.await.unwrap_or(ExitStatus::Code(u8::MAX));
        self.exit = None;
        status
    }

    /// Signals the process group.
    pub(super) fn signal_group(&self, signal: i32) {
        if self.exit.is_some() {
            kill(-self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(exit) = self.exit.take() else {
            return;
        };
        let pid = self.pid;
        kill(-pid, libc::SIGHUP);
        kill(-pid, libc::SIGCONT);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(HANG_UP_GRACE, exit).await.is_err() {
                    kill(-pid, libc::SIGKILL);
                }
            });
        } else {
            kill(-pid, libc::SIGKILL);
        }
    }
}

/// kill(2), for signals the type of which no library has a name for too.
pub(super) fn kill(pid: i32, signal: i32) {
    if (1..=64).contains(&signal) {
        // SAFETY: a plain system call.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Kills every process but this one. Only for PID 1.
pub(super) fn kill_everything() {
    if std::process::id() == 1 {
        kill(-1, libc::SIGKILL);
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(super) fn parse_signal(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        // 34 is the first that is left to programs by glibc and musl alike.
        return offset
            .parse::<i32>()
            .ok()
            .map(|offset| 34 + offset)
            .filter(|number| *number <= 64);
    }
    let names = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("WINCH", libc::SIGWINCH),
        ("PWR", libc::SIGPWR),
    ];
    names
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| number)
}

/// One end of a pipe, or a terminal's master; clones are the same end.
#[derive(Debug, Clone)]
pub(super) struct Pipe(Arc<AsyncFd<OwnedFd>>);

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(super::pollable::register(
            fd,
            Interest::READABLE | Interest::WRITABLE,
        )?)))
    }

    /// Reads; 0 at the end. Cancel safe.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                // A terminal nobody has open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes everything, waiting for room.
    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            data = &data[self.write(data).await?..];
        }
        Ok(())
    }

    /// Writes a part, as soon as there is room for any. Cancel safe.
    pub(super) async fn write(&self, data: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                return written;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::reaper::Scope;
    use super::*;

    fn launch(command: &[String], reaper: &Reaper) -> Result<Process, ExitReport> {
        let user = User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            name: "root".to_owned(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        };
        let connection = Connection::Pipes(Input::Pipe);
        let env = environment(
            &[&[("A".to_owned(), "b".to_owned())]],
            &user,
            "host",
            connection,
        );
        start(
            &Launch {
                command,
                name: None,
                env,
                working_dir: "/",
                user: &user,
                connection,
            },
            reaper,
        )
    }

    fn words(command: &[&str]) -> Vec<String> {
        command.iter().map(|word| (*word).to_owned()).collect()
    }

    #[tokio::test]
    async fn processes_run_in_their_environment_and_their_exits_are_collected() {
        let reaper = Arc::new(Reaper::new(Scope::Registered));
        reaper.start().unwrap();
        let script = words(&["sh", "-c", "echo $A $HOSTNAME $HOME; exit 7"]);
        let mut process = launch(&script, &reaper).unwrap();
        let limit = Duration::from_secs(10);
        let status = tokio::time::timeout(limit, process.exited()).await.unwrap();
        assert_eq!(status, ExitStatus::Code(7));
        let mut buffer = [0; 100];
        let read = process.stdout.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"b host /\n");
        for (command, code) in [
            ("/no/such/thing", 127),
            ("no-such-thing", 127),
            ("/etc", 126),
        ] {
            let report = launch(&words(&[command]), &reaper).unwrap_err();
            assert_eq!(report.status, ExitStatus::Code(code), "{report:?}");
        }
        assert!(launch(&words(&["sh", "a\0b"]), &reaper).is_err());
    }

    #[tokio::test]
    async fn dropping_a_process_hangs_up_on_its_group() {
        let reaper = Arc::new(Reaper::new(Scope::Registered));
        reaper.start().unwrap();
        let process = launch(&words(&["sh", "-c", "sleep 1000; true"]), &reaper).unwrap();
        let stdout = process.stdout.clone();
        drop(process);
        // The output ends when the last of the group is gone.
        let mut buffer = [0; 10];
        let ended = tokio::time::timeout(Duration::from_secs(10), stdout.read(&mut buffer));
        assert_eq!(ended.await.unwrap().unwrap(), 0);
    }

    #[test]
    fn signals_have_names_numbers_and_limits() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("0", None),
            ("65", None),
            ("SIGRTMIN+99", None),
            ("SIGNOTHING", None),
            ("", None),
        ] {
            assert_eq!(parse_signal(text), number, "{text}");
        }
    }
}

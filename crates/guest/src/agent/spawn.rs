//! Starts a program without copying this process: the child borrows its memory, and this thread waits, until it has become another
//! program (vfork(2)). A copy and the faults that follow it are a good part of what a short command costs in an emulated machine.
//!
//! Everything the child needs is made ready before it is there. It makes plain system calls, allocates nothing and takes no lock.
#![expect(
    unsafe_code,
    reason = "between clone and exec only plain system calls may be made"
)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::users::User;

/// For a handful of calls that keep nothing on it.
const STACK: usize = 64 * 1024;
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// Whether standard input is a terminal that the program's session is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControllingTerminal {
    No,
    Yes,
}

/// A program to be: leader of a session of its own.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// Its name, looked for in the PATH of `env` where it has no slash in it, and its arguments. None of them has a NUL in it.
    pub(super) command: &'a [String],
    /// What it is to take for its own name; the first word of `command` when absent. No NUL in it either.
    pub(super) name: Option<&'a str>,
    pub(super) env: &'a [(String, String)],
    pub(super) directory: &'a str,
    pub(super) user: &'a User,
    /// Input, output and errors. This process has its own three open, so these are none of them.
    pub(super) stdio: &'a [OwnedFd; 3],
    pub(super) terminal: ControllingTerminal,
}

/// What the child reads, and where it says why it did not become the program.
struct Child<'a> {
    stdio: [RawFd; 3],
    directory: CString,
    user: &'a User,
    terminal: ControllingTerminal,
    /// Where the program may be, in the order of PATH.
    places: Vec<CString>,
    argv: Vec<*const c_char>,
    /// For a script that names no interpreter: the shell, a gap for the script, its arguments.
    shell_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    error: c_int,
}

/// Starts it and answers with its pid.
///
/// # Errors
/// The kernel's, of the step that failed; no process is left then but one that waits to be collected.
pub(super) fn spawn(program: &Program<'_>) -> io::Result<i32> {
    let words = c_strings(program.command.iter().map(String::as_str))?;
    let env = program.env.iter();
    let env = env.map(|(name, value)| format!("{name}={value}"));
    let env = c_strings(env)?;
    let name = program.name.map(CString::new).transpose()?;
    let mut argv = pointers(&words);
    if let (Some(name), Some(first)) = (&name, argv.first_mut()) {
        *first = name.as_ptr();
    }
    let mut child = Child {
        stdio: program.stdio.each_ref().map(AsRawFd::as_raw_fd),
        directory: CString::new(program.directory)?,
        user: program.user,
        terminal: program.terminal,
        places: places(program)?,
        argv,
        shell_argv: [SHELL.as_ptr(), std::ptr::null()]
            .into_iter()
            .chain(pointers(&words).into_iter().skip(1))
            .collect(),
        envp: pointers(&env),
        error: 0,
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());
    let (mut every, mut before): (libc::sigset_t, libc::sigset_t);
    // SAFETY: signal sets are plain memory that these calls fill. The stack is big enough, aligned, and lives until the child has
    // left it: with CLONE_VFORK this thread goes on only then. So do `child` and all it points to.
    let pid = unsafe {
        (every, before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut every);
        // A handler of ours must not run in the child, on this memory.
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const every, &raw mut before);
        let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
        let pid = libc::clone(
            run,
            top.cast::<c_void>(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut child).cast::<c_void>(),
        );
        let failure = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if pid < 0 {
            return Err(failure);
        }
        pid
    };
    // Not read before the child has written it: it did so on this memory while this thread stood still.
    match std::hint::black_box(&child).error {
        0 => Ok(pid),
        error => {
            // SAFETY: a plain system call; it takes the child away that has just exited.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

fn c_strings(words: impl Iterator<Item = impl Into<Vec<u8>>>) -> io::Result<Vec<CString>> {
    words.map(|word| Ok(CString::new(word)?)).collect()
}

fn pointers(words: &[CString]) -> Vec<*const c_char> {
    let pointers = words.iter().map(|word| word.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}

/// As execvp(3) has it.
fn places(program: &Program<'_>) -> io::Result<Vec<CString>> {
    let Some(name) = program.command.first().filter(|name| !name.is_empty()) else {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    };
    if name.contains('/') {
        return c_strings([name.as_str()].into_iter());
    }
    let path = program.env.iter().find(|(name, _)| name == "PATH");
    let directories = path.map_or("", |(_, path)| path).split(':');
    c_strings(directories.map(|directory| match directory {
        "" => name.clone(),
        directory => format!("{directory}/{name}"),
    }))
}

/// In the child. Returns only to exit.
extern "C" fn run(child: *mut c_void) -> c_int {
    // SAFETY: the parent hands over a `Child` and does not touch it until this is over.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.error = match become_session(child) {
        Ok(()) => execute(child),
        Err(error) => error,
    };
    127
}

fn check(result: impl Into<i64>) -> Result<(), c_int> {
    match result.into() {
        // SAFETY: where this thread's errno is.
        ..0 => Err(unsafe { *libc::__errno_location() }),
        0.. => Ok(()),
    }
}

/// A session of its own with its terminal, its place and its user.
fn become_session(child: &Child<'_>) -> Result<(), c_int> {
    let user = child.user;
    // SAFETY: plain system calls on memory that lives. Users are changed by the bare calls: the library's change every thread of a
    // process, and the threads that it knows of are the parent's.
    unsafe {
        for (target, fd) in (0..).zip(child.stdio) {
            check(libc::dup2(fd, target))?;
        }
        check(libc::chdir(child.directory.as_ptr()))?;
        check(libc::setsid())?;
        if child.terminal == ControllingTerminal::Yes {
            // A program run by a user who is not root must be able to open its own terminal.
            check(libc::fchown(0, user.uid, libc::gid_t::MAX))?;
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        // Tests run without the right to do this and as the user they ask for.
        if libc::geteuid() == 0 {
            let groups = &user.groups;
            check(libc::syscall(
                libc::SYS_setgroups,
                groups.len(),
                groups.as_ptr(),
            ))?;
            check(libc::syscall(libc::SYS_setgid, user.gid))?;
            check(libc::syscall(libc::SYS_setuid, user.uid))?;
        }
        // What this process ignores or handles is nothing to the program.
        for signal in [libc::SIGPIPE, libc::SIGCHLD] {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))
    }
}

/// Becomes the program, from the first place where it is. Returns why it did not.
fn execute(child: &mut Child<'_>) -> c_int {
    let mut refused = None;
    for place in &child.places {
        // SAFETY: the lists end with a null, and what they point to lives.
        let mut error = unsafe {
            libc::execve(place.as_ptr(), child.argv.as_ptr(), child.envp.as_ptr());
            *libc::__errno_location()
        };
        if error == libc::ENOEXEC {
            child.shell_argv[1] = place.as_ptr();
            // SAFETY: as above.
            error = unsafe {
                let (argv, envp) = (child.shell_argv.as_ptr(), child.envp.as_ptr());
                libc::execve(SHELL.as_ptr(), argv, envp);
                *libc::__errno_location()
            };
        }
        match error {
            libc::EACCES => refused = Some(error),
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            error => return error,
        }
    }
    refused.unwrap_or(libc::ENOENT)
}

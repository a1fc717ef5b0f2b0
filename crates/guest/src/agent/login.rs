//! What an exec runs: a command as it is, or what a user gets who logs in.

use std::path::Path;

use super::console;
use super::users::User;
use crate::protocol::{ExecRequest, Program};

/// The agent's own name and argument as an SFTP server.
pub(super) const FILE_SERVER: &str = "sftp-server";
/// The agent itself, wherever its file was: in the guest it belongs to a file system that is not to be seen any more.
const ITSELF: &str = "/proc/self/exe";

/// A program to start, and what it gets beside what every exec gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen<'a> {
    pub(super) command: Vec<String>,
    pub(super) name: Option<String>,
    pub(super) env: Vec<(String, String)>,
    /// The workload's when absent.
    pub(super) working_dir: Option<&'a str>,
}

/// Where somebody starts who logs in: home, or `/` where that is not there, which is no reason to keep anybody out.
///
/// On a thread of its own: while the file system is held still, even a look at a directory may wait (overlayfs notes where it came
/// from), and the agent is who ends that.
pub(super) async fn home(user: &User) -> String {
    let home = user.home.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let there = Path::new(&home).is_dir();
        there.then_some(home)
    });
    // One that panicked has found nothing.
    looking
        .await
        .ok()
        .flatten()
        .unwrap_or_else(|| "/".to_owned())
}

/// What `request` means for this user, whose [`home`] this is.
pub(super) fn program<'a>(request: &ExecRequest, user: &User, home: &'a str) -> Chosen<'a> {
    let identity = || {
        [
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", &user.shell),
            ("HOME", &user.home),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .to_vec()
    };
    match &request.program {
        Program::Command => Chosen {
            command: request.command.clone(),
            name: None,
            env: Vec::new(),
            working_dir: None,
        },
        // As sshd does: a shell whose own name begins with a dash is a login shell.
        Program::LoginShell { script } => {
            let shell = user.shell.rsplit('/').next().unwrap_or(&user.shell);
            let (mut command, mut name) = (vec![user.shell.clone()], format!("-{shell}"));
            if let Some(script) = script {
                command.extend(["-c".to_owned(), script.clone()]);
                name = shell.to_owned();
            }
            Chosen {
                command,
                name: Some(name),
                env: identity(),
                working_dir: Some(home),
            }
        }
        Program::FileServer => Chosen {
            command: vec![ITSELF.to_owned(), FILE_SERVER.to_owned()],
            name: Some(FILE_SERVER.to_owned()),
            env: identity(),
            working_dir: Some(home),
        },
    }
}

/// What the agent does when it was started as [`FILE_SERVER`]; gives the exit code.
pub(super) fn serve_files() -> i32 {
    // New files are not for everybody to write, as with sshd.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/".into());
    let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
    match crate::sftp::serve(input, output, Path::new(&home)) {
        Ok(()) => 0,
        Err(error) => {
            console::say_on_stderr(&format!("{FILE_SERVER}: {error}"));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            uid: 7,
            gid: 7,
            groups: Vec::new(),
            name: "seven".to_owned(),
            home: "/nowhere".to_owned(),
            shell: "/usr/bin/fish".to_owned(),
        }
    }

    fn request(program: Program) -> ExecRequest {
        ExecRequest {
            program,
            command: vec!["true".to_owned()],
            ..ExecRequest::default()
        }
    }

    #[test]
    fn a_command_is_run_as_it_is() {
        let user = user();
        let chosen = program(&request(Program::Command), &user, "/home");
        assert_eq!(chosen.command, ["true"]);
        assert_eq!((chosen.name, chosen.working_dir), (None, None));
    }

    #[tokio::test]
    async fn a_login_gets_the_users_shell_and_home() {
        let user = user();
        let home = home(&user).await;
        let chosen = program(&request(Program::LoginShell { script: None }), &user, &home);
        assert_eq!(chosen.command, ["/usr/bin/fish"]);
        assert_eq!(chosen.name.as_deref(), Some("-fish"));
        assert_eq!(chosen.working_dir, Some("/"));
        assert!(
            chosen
                .env
                .contains(&("LOGNAME".to_owned(), "seven".to_owned()))
        );
        let script = Some("a b".to_owned());
        let chosen = program(&request(Program::LoginShell { script }), &user, "/home");
        assert_eq!(chosen.command, ["/usr/bin/fish", "-c", "a b"]);
        assert_eq!(chosen.name.as_deref(), Some("fish"));
    }
}

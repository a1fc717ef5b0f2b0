//! `warren ssh`: this machine's ssh, led through the API; and what it calls back for: the way there and the key to expect.

use super::{Outcome, Session};
use crate::cli::args::{Global, SshArgs};
use crate::cli::failure::CliError;
use crate::cli::output::Output;
use bytes::Bytes;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What `~/.ssh/config` knows instances by: NAME.warren.
const SUFFIX: &str = ".warren";
/// Options of ssh(1) that have a value.
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOoPpQRSWw";
/// Who logs in when no user is named.
const ROOT: &str = "root";
const CHUNK: usize = 64 << 10;

/// `warren ssh`
pub(super) async fn ssh(
    session: impl Fn() -> Result<Session, CliError>,
    args: SshArgs,
    global: &Global,
    out: &Output,
) -> Outcome {
    if args.config {
        out.line(config(&own_path()?).trim_end())?;
        return Ok(0);
    }
    let session = session()?;
    if let Some(name) = &args.proxy {
        return proxy(&session, instance_of(name)).await;
    }
    if let Some(name) = &args.host_key {
        let key = session.client.ssh_host_key(instance_of(name)).await?;
        // ssh has asked by the name that it knows: this is the key for it, whatever that is.
        out.line(format!("* {}", key.public_key))?;
        return Ok(0);
    }
    let Some(destination) = destination(&args.words) else {
        return Err(CliError::refused(
            "no instance is named",
            "warren ssh [USER@]NAME; `warren ps` shows names",
        ));
    };
    let name = destination.host.to_string_lossy().into_owned();
    let instance = session.client.instance(instance_of(&name)).await?;
    let own = own_path()?;
    let mut words = args.words.clone();
    words[destination.at] = match &destination.user {
        Some(user) => [user, OsStr::new("@"), OsStr::new(&instance.id)]
            .into_iter()
            .collect(),
        None => instance.id.clone().into(),
    };
    let mut ssh = Command::new("ssh");
    for (name, value) in ways(&own, &instance.id) {
        ssh.arg("-o").arg(format!("{name}={value}"));
    }
    if destination.user.is_none() && !destination.user_elsewhere {
        ssh.args(["-l", ROOT]);
    }
    // What led us to the server leads what ssh starts to it as well; a token is nothing for a command line.
    for (name, value) in [
        ("WARREN_SERVER", &global.server),
        ("WARREN_TOKEN", &global.token),
        ("WARREN_CONTEXT", &global.context),
    ] {
        if let Some(value) = value {
            ssh.env(name, value);
        }
    }
    let error = ssh.args(words).exec();
    Err(CliError::refused(
        format!("ssh does not start: {error}"),
        "install OpenSSH's client (openssh-client), or use `warren exec -it`",
    ))
}

fn own_path() -> Result<OsString, CliError> {
    std::env::current_exe()
        .map(|path| path.into_os_string())
        .map_err(|error| CliError::plain(format!("where this program is cannot be told: {error}")))
}

/// The instance that a host's name stands for.
fn instance_of(host: &str) -> &str {
    let host = host
        .trim_start_matches('[')
        .split(']')
        .next()
        .unwrap_or(host);
    host.strip_suffix(SUFFIX).unwrap_or(host)
}

/// How ssh gets to an instance and knows it: ssh_config(5). `name` may be one of ssh's own tokens.
fn ways(own: &OsStr, name: &str) -> [(&'static str, String); 5] {
    let own = quoted(own);
    [
        ("ProxyCommand", format!("{own} ssh --proxy {name}")),
        ("KnownHostsCommand", format!("{own} ssh --host-key {name}")),
        // Others' keys are none of an instance's, and its own is asked for each time.
        ("UserKnownHostsFile", "/dev/null".to_owned()),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
    ]
}

/// For a shell, and for ssh's own way of taking words apart; a percent sign is a token's.
fn quoted(path: &OsStr) -> String {
    let path = Path::new(path).display().to_string().replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+%".contains(c);
    if path.chars().all(plain) {
        path
    } else {
        format!(
            "\"{}\"",
            path.replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('$', "\\$")
                .replace('`', "\\`")
        )
    }
}

fn config(own: &OsStr) -> String {
    let mut text = format!(
        "# Instances of Warren by name: ssh NAME{SUFFIX}\nHost *{SUFFIX}\n    User {ROOT}\n"
    );
    for (name, value) in ways(own, "%n") {
        text.push_str(&format!("    {name} {value}\n"));
    }
    text
}

/// The word among ssh's that says where to.
#[derive(Debug, PartialEq, Eq)]
struct Destination {
    at: usize,
    user: Option<OsString>,
    host: OsString,
    /// An option names the user.
    user_elsewhere: bool,
}

fn destination(words: &[OsString]) -> Option<Destination> {
    let mut user_elsewhere = false;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            at += 1;
            break;
        }
        let Some(letters) = bytes
            .strip_prefix(b"-")
            .filter(|letters| !letters.is_empty())
        else {
            break;
        };
        if let Some(place) = letters
            .iter()
            .position(|letter| WITH_VALUE.contains(letter))
        {
            let value = match &letters[place + 1..] {
                [] => {
                    at += 1;
                    words.get(at).map_or(&[][..], |word| word.as_bytes())
                }
                value => value,
            };
            user_elsewhere |= letters[place] == b'l'
                || (letters[place] == b'o' && value.to_ascii_lowercase().starts_with(b"user="));
        }
        at += 1;
    }
    let word = words.get(at)?.as_bytes();
    let of = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let (user, host) = match word.iter().rposition(|byte| *byte == b'@') {
        Some(place) => (Some(of(&word[..place])), of(&word[place + 1..])),
        None => (None, of(word)),
    };
    Some(Destination {
        at,
        user,
        host,
        user_elsewhere,
    })
}

/// Carries bytes between this program's input and output and the instance's server, until that ends.
async fn proxy(session: &Session, name: &str) -> Outcome {
    let (mut writer, mut reader) = session.client.ssh(name).await?;
    let sending = tokio::spawn(async move {
        let mut input = tokio::io::stdin();
        let mut chunk = Vec::with_capacity(CHUNK);
        while let Ok(1..) = input.read_buf(&mut chunk).await {
            let data = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
            if writer.send(Bytes::from(data)).await.is_err() {
                return;
            }
        }
        // ssh has gone: the server hears it.
        let _ = writer.close().await;
    });
    let mut output = tokio::io::stdout();
    let mut outcome = Ok(0);
    while let Some(data) = reader.next().await {
        let written = match data {
            Ok(data) => {
                let written = output.write_all(&data).await;
                written.and(output.flush().await)
            }
            Err(error) => {
                outcome = Err(error.into());
                break;
            }
        };
        if written.is_err() {
            break;
        }
    }
    sending.abort();
    // A read of standard input cannot be taken back: the runtime would wait for it.
    let _ = std::io::stdout().flush();
    match outcome {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            session.out.error(&error);
            std::process::exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &str) -> Option<(usize, Option<String>, String, bool)> {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        let text = |word: OsString| word.into_string().unwrap_or_default();
        destination(&words).map(|it| (it.at, it.user.map(text), text(it.host), it.user_elsewhere))
    }

    #[test]
    fn the_destination_is_found_among_options() {
        let user = |user: &str| Some(user.to_owned());
        for (words, expected) in [
            ("web", (0, None, "web", false)),
            ("app@web ls -l", (0, user("app"), "web", false)),
            ("-v -L 80:a:80 web -l x", (3, None, "web", false)),
            ("-tt -l app web", (3, None, "web", true)),
            ("-lapp web", (1, None, "web", true)),
            ("-o User=app web", (2, None, "web", true)),
            ("-oPort=1 a@b@web", (1, user("a@b"), "web", false)),
            ("-- web", (1, None, "web", false)),
            ("-vNL 1:a:1 web", (2, None, "web", false)),
        ] {
            let (at, user, host, elsewhere) = expected;
            assert_eq!(
                found(words),
                Some((at, user, host.to_owned(), elsewhere)),
                "{words}"
            );
        }
        for none in ["-v", "-L 1:a:1", "-l"] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn instances_are_known_by_name_and_by_suffix() {
        for (host, instance) in [
            ("web", "web"),
            ("web.warren", "web"),
            ("[web.warren]:2222", "web"),
            ("warren", "warren"),
        ] {
            assert_eq!(instance_of(host), instance);
        }
    }

    #[test]
    fn a_path_survives_a_shell_and_ssh() {
        assert_eq!(quoted(OsStr::new("/usr/bin/warren")), "/usr/bin/warren");
        assert_eq!(
            quoted(OsStr::new("/my tools/50%/$x")),
            "\"/my tools/50%%/\\$x\""
        );
    }
}

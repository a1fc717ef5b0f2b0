//! The words of `warren ssh`.

use clap::Args;
use std::ffi::OsString;

const SSH_EXAMPLES: &str = "\
Examples:
  warren ssh web                                A shell as root
  warren ssh app@web ls -l                      A command as another user
  warren ssh -L 8080:localhost:80 web           A port of the instance on this machine
  warren ssh -A -R 9000:localhost:9000 web      This machine's SSH agent, and a port of it, in the instance
  rsync -a -e 'warren ssh' ./site/ web:/srv/    For programs that start ssh; the image needs rsync for this one

With other programs, once:
  warren ssh --config >> ~/.ssh/config
  scp -r ./site web.warren:/srv
  sftp web.warren
  ssh app@web.warren";

/// Log in to a running instance by SSH
///
/// Starts this machine's own ssh with everything that comes after `warren ssh`: its options, [USER@]NAME (root unless
/// told otherwise), and a command. The image needs no SSH server and you need no key: the connection goes through Warren's API,
/// and the server's key is checked by it. Shells, commands, scp, sftp, rsync, forwarded ports and sockets, and your
/// agent work as they do with any server.
///
/// `warren server --ssh-listen ADDRESS:PORT` lets machines in that have no Warren but a key of the instance's
/// authorized_keys: ssh -p PORT USER+NAME@ADDRESS.
#[derive(Debug, Clone, Args)]
#[command(after_help = SSH_EXAMPLES)]
pub(crate) struct SshArgs {
    /// Print what ~/.ssh/config needs for ssh, scp and sftp to know every instance as NAME.warren
    #[arg(long, conflicts_with_all = ["proxy", "host_key", "words"])]
    pub(crate) config: bool,
    /// Carry the connection of an ssh that this was started by (ProxyCommand)
    #[arg(long, value_name = "NAME")]
    pub(crate) proxy: Option<String>,
    /// Print the key of an instance's server as a line of known_hosts (KnownHostsCommand)
    #[arg(long, value_name = "NAME", conflicts_with = "proxy")]
    pub(crate) host_key: Option<String>,
    /// Options of ssh, [USER@]NAME, and a command
    #[arg(
        value_name = "SSH_WORDS",
        allow_hyphen_values = true,
        trailing_var_arg = true,
        required_unless_present_any = ["config", "proxy", "host_key"],
        conflicts_with_all = ["proxy", "host_key"]
    )]
    pub(crate) words: Vec<OsString>,
}

/// What `warren ssh` keeps for itself; all other words are ssh's, whatever they would be elsewhere (`-o`, `-q`).
const OWN: [&str; 7] = [
    "--config",
    "--proxy",
    "--host-key",
    "--help",
    "-h",
    "--",
    "--version",
];
/// Options before the command that take the next word with them.
const WITH_VALUE: [&str; 5] = ["--server", "--token", "--context", "--output", "-o"];

/// The words of a command line, with `--` where those of ssh begin.
pub(crate) fn with_ssh_words_apart(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    let mut at = 1;
    while let Some(word) = words.get(at).and_then(|word| word.to_str()) {
        if WITH_VALUE.contains(&word) {
            at += 2;
        } else if word.starts_with('-') {
            at += 1;
        } else {
            let is_own = |next: &str| next.split('=').next().is_some_and(|it| OWN.contains(&it));
            let next = words.get(at + 1);
            let for_ssh = next.is_some_and(|next| !next.to_str().is_some_and(is_own));
            if word == "ssh" && for_ssh {
                words.insert(at + 1, "--".into());
            }
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(words: &str) -> String {
        let words = words.split(' ').map(OsString::from);
        let words = with_ssh_words_apart(words);
        words
            .join(std::ffi::OsStr::new(" "))
            .into_string()
            .unwrap_or_default()
    }

    #[test]
    fn words_of_ssh_are_told_from_our_own() {
        for (typed, understood) in [
            ("warren ssh web", "warren ssh -- web"),
            (
                "warren ssh -o A=b -q web -o c",
                "warren ssh -- -o A=b -q web -o c",
            ),
            (
                "warren --server http://x ssh -v web",
                "warren --server http://x ssh -- -v web",
            ),
            ("warren -q ssh web", "warren -q ssh -- web"),
            ("warren ssh --config", "warren ssh --config"),
            ("warren ssh --proxy web", "warren ssh --proxy web"),
            ("warren ssh --host-key=web", "warren ssh --host-key=web"),
            ("warren ssh -h", "warren ssh -h"),
            ("warren ssh", "warren ssh"),
            (
                "warren exec web ssh -o A=b x",
                "warren exec web ssh -o A=b x",
            ),
        ] {
            assert_eq!(apart(typed), understood);
        }
    }
}

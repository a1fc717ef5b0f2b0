//! How many files the server may have open: a handful for each instance, its image pulls and its clients.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the systemd unit says too; the kernel's own default for fs.nr_open.
const WANTED: u64 = 1 << 20;

/// Raises the limit as far as this process may: a privileged one to what is wanted, any other to its hard limit. Gives what holds
/// then. VMMs inherit it.
pub(super) fn raise_limit() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(u64::MAX);
    let wanted = Rlimit {
        current: Some(WANTED),
        maximum: Some(hard.max(WANTED)),
    };
    let allowed = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // Without the privilege only the second is allowed; where neither is, the limit stays as it was.
    let _unchanged = setrlimit(Resource::Nofile, wanted)
        .or_else(|_| setrlimit(Resource::Nofile, allowed))
        .is_err();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

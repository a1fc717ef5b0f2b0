//! Who a process is: its pid, when it started, and since which boot. A pid alone may be somebody else's by now.

use std::sync::OnceLock;
use std::time::Duration;
use warren_core::ports::hypervisor::{ProcessIdentity, VmmUsage};

/// Clock ticks per second in `/proc/<pid>/stat`: `USER_HZ`, 100 on every architecture Warren runs on
/// (include/asm-generic/param.h).
const USER_HZ: u64 = 100;

/// Whether an identity still names a running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended and its parent has not asked for its exit status yet.
    Zombie,
    /// There is no such process.
    Gone,
    /// Its pid belongs to another process now, or it is of an earlier boot.
    Stranger,
}

/// The fields of `/proc/<pid>/stat` that matter here (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) ticks: u64,
    pub(crate) start_time: u64,
}

/// Field 2 is the program's own choice and may hold spaces and parentheses: the rest starts after the last `)`.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let rest = text.get(text.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields[0]` is field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        ticks: number(14)?.saturating_add(number(15)?),
        start_time: number(22)?,
    })
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// This boot's id, in lower-case hexadecimal with dashes.
pub fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    })
}

/// The identity of the process that has this pid now; `None` when there is none, or a zombie.
pub fn identify(pid: u32) -> Option<ProcessIdentity> {
    let stat = read_stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X'))?;
    Some(identity(pid, &stat))
}

fn identity(pid: u32, stat: &Stat) -> ProcessIdentity {
    ProcessIdentity {
        pid,
        start_time: stat.start_time,
        boot_id: boot_id().to_owned(),
    }
}

/// The identity of a child that was just started and is not reaped yet: also when it is a zombie already.
pub(crate) fn identify_child(pid: u32) -> Option<ProcessIdentity> {
    read_stat(pid).map(|stat| identity(pid, &stat))
}

/// Whether `process` still runs.
pub fn liveness(process: &ProcessIdentity) -> Liveness {
    if process.boot_id != boot_id() {
        return Liveness::Stranger;
    }
    match read_stat(process.pid) {
        None => Liveness::Gone,
        Some(stat) if stat.start_time != process.start_time => Liveness::Stranger,
        Some(stat) if matches!(stat.state, 'Z' | 'X') => Liveness::Zombie,
        Some(_) => Liveness::Alive,
    }
}

/// What `process` has used; `None` when it does not run any more.
pub(crate) fn usage(process: &ProcessIdentity) -> Option<VmmUsage> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
    // After the other file: a matching start time means that both are of this process.
    let stat = read_stat(process.pid).filter(|stat| stat.start_time == process.start_time)?;
    let kibibytes = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|value| value.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    Some(VmmUsage {
        cpu: Duration::from_millis(stat.ticks.saturating_mul(1000 / USER_HZ)),
        memory_rss: kibibytes("VmRSS:").saturating_mul(1024),
        memory_vms: kibibytes("VmSize:").saturating_mul(1024),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_fields() {
        let line = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 1 0 12345 1000 20 18446744073709551615 1";
        assert_eq!(
            parse_stat(line).unwrap(),
            Stat {
                state: 'S',
                ticks: 110,
                start_time: 12345
            }
        );
        assert!(parse_stat("7 (a").is_none());
        assert!(parse_stat("7 (a) S 1").is_none());
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_a_stranger() {
        let me = identify(std::process::id()).unwrap();
        assert_eq!(liveness(&me), Liveness::Alive);
        assert!(usage(&me).unwrap().memory_rss > 0);
        let earlier = ProcessIdentity {
            start_time: me.start_time - 1,
            ..me.clone()
        };
        assert_eq!(liveness(&earlier), Liveness::Stranger);
        assert!(usage(&earlier).is_none());
        let other_boot = ProcessIdentity {
            boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
            ..me
        };
        assert_eq!(liveness(&other_boot), Liveness::Stranger);
    }
}

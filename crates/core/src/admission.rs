//! What may be asked of an instance in which state: one table, read by every way in.

use crate::instance::Desired;
use crate::state::StateName;

/// What a user can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Start the workload.
    Start,
    /// End it; the disk stays.
    Stop,
    /// Stop the processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Save the machine and free its host.
    Standby,
    /// Bring a saved machine back.
    Restore,
    /// Remove everything.
    Delete,
    /// Run a command in it.
    Exec,
    /// Copy files in or out.
    Copy,
    /// Make an image of its changes.
    Commit,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 10] = [
        Operation::Start,
        Operation::Stop,
        Operation::Pause,
        Operation::Resume,
        Operation::Standby,
        Operation::Restore,
        Operation::Delete,
        Operation::Exec,
        Operation::Copy,
        Operation::Commit,
    ];
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Go on.
    Accept,
    /// It is so already: succeed and change nothing.
    AlreadySo,
    /// Not in this state.
    Refuse(Refusal),
}

/// Why, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} an instance that is {state}{}", verb(*.operation), .next.map(|next| format!(": {next}")).unwrap_or_default())]
pub struct Refusal {
    /// What was asked.
    pub operation: Operation,
    /// The state it is in.
    pub state: StateName,
    /// What to do first, where something helps.
    pub next: Option<&'static str>,
}

fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Start => "start",
        Operation::Stop => "stop",
        Operation::Pause => "pause",
        Operation::Resume => "resume",
        Operation::Standby => "put into standby",
        Operation::Restore => "restore",
        Operation::Delete => "delete",
        Operation::Exec => "run a command in",
        Operation::Copy => "copy files to or from",
        Operation::Commit => "commit",
    }
}

/// Decides. `desired` is what the instance is already on its way to: a start of an instance that is
/// being stopped is accepted (the actor sees only the newest wish), work in a deleted one is not.
pub fn admit(operation: Operation, state: StateName, desired: Desired) -> Admission {
    use Admission::{Accept, AlreadySo};
    let refuse = |next| {
        Admission::Refuse(Refusal {
            operation,
            state,
            next,
        })
    };
    if desired == Desired::Deleted {
        return match operation {
            Operation::Delete => AlreadySo,
            _ => refuse(Some("it is being deleted")),
        };
    }
    match (operation, state) {
        (Operation::Delete, _) => Accept,
        (Operation::Start, StateName::Running | StateName::Initializing)
            if desired == Desired::Running =>
        {
            AlreadySo
        }
        (Operation::Start, StateName::Created) if desired == Desired::Running => AlreadySo,
        (Operation::Start, StateName::Paused) => refuse(Some("resume it")),
        (Operation::Start, StateName::Standby) => refuse(Some(
            "restore it, or stop it, which gives up what was in its memory",
        )),
        (Operation::Start, StateName::Unknown) => refuse(Some("wait until its host answers")),
        (
            Operation::Start,
            StateName::Created
            | StateName::Running
            | StateName::Initializing
            | StateName::Shutdown
            | StateName::Stopped,
        ) => Accept,
        (Operation::Stop, StateName::Stopped) if desired == Desired::Stopped => AlreadySo,
        (Operation::Stop, _) => Accept,
        (Operation::Pause, StateName::Paused) => AlreadySo,
        (Operation::Pause, StateName::Running) => Accept,
        (Operation::Pause, StateName::Initializing | StateName::Created) => {
            refuse(Some("wait until it is Running"))
        }
        (Operation::Pause, StateName::Standby) => refuse(Some("restore it")),
        (Operation::Pause, _) => refuse(Some("start it")),
        (Operation::Resume, StateName::Running) => AlreadySo,
        (Operation::Resume, StateName::Paused) => Accept,
        (Operation::Resume, StateName::Standby) => refuse(Some("restore it")),
        (Operation::Resume, _) => refuse(Some("start it")),
        (Operation::Standby, StateName::Running | StateName::Paused) => Accept,
        (Operation::Standby, StateName::Standby) => AlreadySo,
        (Operation::Standby, StateName::Initializing | StateName::Created) => {
            refuse(Some("wait until it is Running"))
        }
        (Operation::Standby, _) => refuse(Some("start it")),
        (Operation::Restore, StateName::Standby) => Accept,
        (Operation::Restore, StateName::Running) => refuse(None),
        (Operation::Restore, _) => refuse(Some("it has no snapshot: start it")),
        (Operation::Exec | Operation::Copy, StateName::Running) => Accept,
        (Operation::Exec | Operation::Copy, StateName::Initializing | StateName::Created) => {
            refuse(Some("wait until it is Running"))
        }
        (Operation::Exec | Operation::Copy, StateName::Paused) => refuse(Some("resume it")),
        (Operation::Exec | Operation::Copy, StateName::Standby) => refuse(Some("restore it")),
        (Operation::Exec | Operation::Copy, _) => refuse(Some("start it")),
        (Operation::Commit, StateName::Running | StateName::Stopped) => Accept,
        (Operation::Commit, StateName::Initializing | StateName::Created) => {
            refuse(Some("wait until it is Running"))
        }
        (Operation::Commit, StateName::Shutdown) => refuse(Some("wait until it is Stopped")),
        (Operation::Commit, StateName::Paused) => refuse(Some("resume it, or stop it")),
        (Operation::Commit, StateName::Standby) => refuse(Some("restore it")),
        (Operation::Commit, StateName::Unknown) => refuse(Some("wait until its host answers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_an_answer_in_every_state() {
        for operation in Operation::ALL {
            for state in StateName::ALL {
                for desired in [
                    Desired::Running,
                    Desired::Paused,
                    Desired::Standby,
                    Desired::Stopped,
                    Desired::Deleted,
                ] {
                    if let Admission::Refuse(refusal) = admit(operation, state, desired) {
                        assert!(
                            refusal.to_string().contains(&state.to_string()),
                            "{refusal}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn delete_is_never_refused() {
        for state in StateName::ALL {
            for desired in [
                Desired::Running,
                Desired::Paused,
                Desired::Standby,
                Desired::Stopped,
                Desired::Deleted,
            ] {
                assert!(
                    !matches!(
                        admit(Operation::Delete, state, desired),
                        Admission::Refuse(_)
                    ),
                    "{state}"
                );
            }
        }
    }

    #[test]
    fn a_failed_instance_can_be_started() {
        assert_eq!(
            admit(Operation::Start, StateName::Stopped, Desired::Running),
            Admission::Accept
        );
    }

    #[test]
    fn a_refusal_says_what_to_do_next() {
        let Admission::Refuse(refusal) =
            admit(Operation::Exec, StateName::Stopped, Desired::Stopped)
        else {
            panic!("exec in a stopped instance");
        };
        assert_eq!(
            refusal.to_string(),
            "cannot run a command in an instance that is Stopped: start it"
        );
    }
}

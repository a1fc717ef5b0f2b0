//! The operations at whose places the server dies, each with what is there before and may be there after.

use super::stage::Stage;
use crate::harness::Mode;
use serde_json::json;

/// What is there of the one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Gone,
    Running,
    Paused,
    Standby,
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    /// On a host that has nothing of this installation yet.
    CreateFirst,
    Create,
    Stop,
    Start,
    /// Somebody else has its port by now.
    StartInVain,
    Pause,
    Resume,
    Standby,
    /// Back from standby.
    Wake,
    /// What was saved is damaged by now.
    WakeInVain,
    /// What was saved is given up.
    StopSaved,
    Restart,
    Update,
    Delete,
    DeleteStopped,
    DeleteSaved,
    /// An image is made of its changes.
    Commit,
    /// The record is copied.
    Backup,
    /// The record is rebuilt.
    Recover,
    /// The server is started while an instance runs.
    Adopt,
    /// The server is started where something was left.
    Sweep,
    /// A new installation is made.
    Install,
    /// A backup is put in the record's place.
    Restore,
    /// The server is started on the record of an older one.
    Upgrade,
}

impl Operation {
    /// Those that make sense with this network.
    pub(super) fn of(mode: Mode) -> &'static [Operation] {
        use Operation::{
            Adopt, Backup, Commit, Create, CreateFirst, Delete, DeleteSaved, DeleteStopped,
            Install, Pause, Recover, Restart, Restore, Resume, Standby, Start, StartInVain, Stop,
            StopSaved, Sweep, Update, Upgrade, Wake, WakeInVain,
        };
        match mode {
            Mode::Bridge => &[
                Create,
                CreateFirst,
                Stop,
                Start,
                Pause,
                Resume,
                Standby,
                Wake,
                WakeInVain,
                Delete,
                DeleteStopped,
                DeleteSaved,
                Adopt,
                Sweep,
                Commit,
                Backup,
                Recover,
                Restore,
                Install,
                Upgrade,
            ],
            Mode::User => &[
                Create,
                Stop,
                Start,
                StartInVain,
                Pause,
                Resume,
                Standby,
                Wake,
                StopSaved,
                Restart,
                Update,
                Delete,
                DeleteStopped,
                Adopt,
            ],
        }
    }

    /// What must be there before.
    pub(super) fn before(self) -> State {
        match self {
            Operation::CreateFirst | Operation::Create | Operation::Sweep | Operation::Install => {
                State::Gone
            }
            Operation::Start | Operation::StartInVain | Operation::DeleteStopped => State::Stopped,
            Operation::Stop
            | Operation::Pause
            | Operation::Standby
            | Operation::Restart
            | Operation::Update
            | Operation::Delete
            | Operation::Commit
            | Operation::Backup
            | Operation::Recover
            | Operation::Restore
            | Operation::Upgrade
            | Operation::Adopt => State::Running,
            Operation::Resume => State::Paused,
            Operation::Wake
            | Operation::WakeInVain
            | Operation::StopSaved
            | Operation::DeleteSaved => State::Standby,
        }
    }

    /// What is there once it is done.
    pub(super) fn after(self) -> State {
        match self {
            Operation::CreateFirst
            | Operation::Create
            | Operation::Start
            | Operation::Resume
            | Operation::Wake
            | Operation::Restart
            | Operation::Update
            | Operation::Commit
            | Operation::Backup
            | Operation::Recover
            | Operation::Restore
            | Operation::Upgrade
            | Operation::Adopt => State::Running,
            Operation::Stop | Operation::StartInVain | Operation::StopSaved => State::Stopped,
            Operation::Pause => State::Paused,
            Operation::Standby | Operation::WakeInVain => State::Standby,
            Operation::Delete
            | Operation::DeleteStopped
            | Operation::DeleteSaved
            | Operation::Sweep
            | Operation::Install => State::Gone,
        }
    }

    /// Whether a start of the server is the operation itself.
    pub(super) fn is_a_start(self) -> bool {
        matches!(
            self,
            Operation::Adopt | Operation::Sweep | Operation::Install | Operation::Upgrade
        )
    }

    /// Asks a running server; the answer does not matter, because it may die before it gives one.
    pub(super) fn ask(self, stage: &Stage) {
        let ask = |method: &str, path: &str, body| {
            let _ = stage.server().try_api(method, path, body);
        };
        let on = |verb: &str| format!("/instances/{}{verb}", Stage::ID);
        match self {
            Operation::CreateFirst | Operation::Create => stage.create(),
            Operation::Stop | Operation::StopSaved => ask("POST", &on("/stop"), None),
            Operation::Standby => ask("POST", &on("/standby"), None),
            Operation::Wake | Operation::WakeInVain => ask("POST", &on("/restore"), None),
            Operation::Start | Operation::StartInVain => ask("POST", &on("/start"), None),
            Operation::Pause => ask("POST", &on("/pause"), None),
            Operation::Resume => ask("POST", &on("/resume"), None),
            Operation::Restart => {
                ask("POST", &on("/stop"), None);
                ask("POST", &on("/start"), None);
            }
            Operation::Update => {
                let number = stage.fresh().to_string();
                ask("PATCH", &on(""), Some(json!({"env": {"NUMBER": number}})));
            }
            Operation::Delete | Operation::DeleteStopped | Operation::DeleteSaved => {
                ask("DELETE", &on(""), None)
            }
            Operation::Commit => {
                // Another image each time, with a disk of its own.
                let number = stage.fresh().to_string();
                let name = format!("localhost/crashed:{number}");
                let body = json!({"name": name, "message": number});
                ask("POST", &on("/commit"), Some(body));
            }
            Operation::Backup => ask("POST", "/system/backup", None),
            Operation::Recover => ask("POST", "/system/recover", None),
            // Not asked of a server.
            Operation::Adopt
            | Operation::Sweep
            | Operation::Install
            | Operation::Restore
            | Operation::Upgrade => {}
        }
    }
}

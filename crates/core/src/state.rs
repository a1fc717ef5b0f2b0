//! The states of an instance and the moves between them.
//!
//! ```text
//!             start                 ready
//!   Stopped ────────► Created ─► Initializing ─► Running ◄──► Paused
//!      ▲                 │            │             │           │
//!      │                 ▼            ▼             ▼           ▼
//!      └───────────── Shutdown ◄──────┴─────────────┴───────────┘     Standby ◄─► Running
//!                                                            (Unknown: the host cannot be asked)
//! ```

use crate::Timestamp;
use crate::ports::hypervisor::ProcessIdentity;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The machine, each variant with exactly the data that is legal in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state")]
pub enum InstanceState {
    /// Its parts are being made; a VMM may exist, no guest code has run.
    Created,
    /// The VMM runs; the guest is not ready yet.
    Initializing {
        /// Which process.
        vmm: ProcessIdentity,
        /// Since when.
        since: Timestamp,
    },
    /// The guest's agent has reported ready and the workload was started.
    Running {
        /// Which process.
        vmm: ProcessIdentity,
        /// Since when.
        since: Timestamp,
    },
    /// Processors stopped, memory held.
    Paused {
        /// Which process.
        vmm: ProcessIdentity,
        /// Since when.
        since: Timestamp,
    },
    /// The guest is off; the VMM is still there and is being taken away.
    Shutdown {
        /// Which process.
        vmm: ProcessIdentity,
    },
    /// No VMM and no snapshot.
    Stopped,
    /// No VMM; a snapshot to restore from.
    Standby,
    /// The host cannot be asked.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A state without its data: what users see and filter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StateName {
    /// See [`InstanceState::Created`].
    Created,
    /// See [`InstanceState::Initializing`].
    Initializing,
    /// See [`InstanceState::Running`].
    Running,
    /// See [`InstanceState::Paused`].
    Paused,
    /// See [`InstanceState::Shutdown`].
    Shutdown,
    /// See [`InstanceState::Stopped`].
    Stopped,
    /// See [`InstanceState::Standby`].
    Standby,
    /// See [`InstanceState::Unknown`].
    Unknown,
}

impl StateName {
    /// All of them.
    pub const ALL: [StateName; 8] = [
        StateName::Created,
        StateName::Initializing,
        StateName::Running,
        StateName::Paused,
        StateName::Shutdown,
        StateName::Stopped,
        StateName::Standby,
        StateName::Unknown,
    ];
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::str::FromStr for StateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        StateName::ALL
            .into_iter()
            .find(|state| state.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("{text:?} is not a state: use one of {:?}", StateName::ALL))
    }
}

/// A move that is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance cannot go from {from} to {to}")]
pub struct IllegalMove {
    /// Where it is.
    pub from: StateName,
    /// Where it was to go.
    pub to: StateName,
}

impl InstanceState {
    /// The state without its data.
    pub fn name(&self) -> StateName {
        match self {
            InstanceState::Created => StateName::Created,
            InstanceState::Initializing { .. } => StateName::Initializing,
            InstanceState::Running { .. } => StateName::Running,
            InstanceState::Paused { .. } => StateName::Paused,
            InstanceState::Shutdown { .. } => StateName::Shutdown,
            InstanceState::Stopped => StateName::Stopped,
            InstanceState::Standby => StateName::Standby,
            InstanceState::Unknown { .. } => StateName::Unknown,
        }
    }

    /// The VMM process that must exist in this state.
    pub fn vmm(&self) -> Option<&ProcessIdentity> {
        match self {
            InstanceState::Initializing { vmm, .. }
            | InstanceState::Running { vmm, .. }
            | InstanceState::Paused { vmm, .. }
            | InstanceState::Shutdown { vmm } => Some(vmm),
            InstanceState::Created
            | InstanceState::Stopped
            | InstanceState::Standby
            | InstanceState::Unknown { .. } => None,
        }
    }

    /// Checks a move against the table.
    ///
    /// # Errors
    /// [`IllegalMove`] that names both states.
    pub fn check_move(from: StateName, to: StateName) -> Result<(), IllegalMove> {
        use StateName::{
            Created, Initializing, Paused, Running, Shutdown, Standby, Stopped, Unknown,
        };
        let legal = match (from, to) {
            (from, to) if from == to => true,
            // A host that cannot be asked, and one that answers again, may show anything.
            (_, Unknown) | (Unknown, _) => true,
            // Whatever ran may be found dead.
            (Created | Initializing | Running | Paused | Shutdown, Stopped) => true,
            (Stopped, Created | Initializing | Standby) => true,
            (Created, Initializing) => true,
            (Initializing, Running | Paused | Shutdown) => true,
            (Running, Paused | Shutdown | Standby | Initializing) => true,
            (Paused, Running | Shutdown | Standby) => true,
            (Standby, Initializing | Running | Paused | Stopped) => true,
            (Standby, Created | Shutdown)
            | (Created, Running | Paused | Shutdown | Standby)
            | (Initializing, Created | Standby)
            | (Running | Paused | Shutdown, Created)
            | (Paused, Initializing)
            | (Shutdown, Initializing | Running | Paused | Standby)
            | (Stopped, Running | Paused | Shutdown) => false,
            (Created, Created)
            | (Initializing, Initializing)
            | (Running, Running)
            | (Paused, Paused)
            | (Shutdown, Shutdown)
            | (Stopped, Stopped)
            | (Standby, Standby) => true,
        };
        if legal {
            Ok(())
        } else {
            Err(IllegalMove { from, to })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_reach_stopped() {
        for from in StateName::ALL {
            assert_eq!(
                InstanceState::check_move(from, StateName::Stopped),
                Ok(()),
                "{from}"
            );
        }
    }

    #[test]
    fn an_illegal_move_names_both_states() {
        let error =
            InstanceState::check_move(StateName::Stopped, StateName::Running).expect_err("illegal");
        assert_eq!(
            error.to_string(),
            "an instance cannot go from Stopped to Running"
        );
    }

    #[test]
    fn state_names_are_read_in_any_case() {
        for state in StateName::ALL {
            assert_eq!(state.to_string().to_lowercase().parse(), Ok(state));
        }
        assert!("Exploded".parse::<StateName>().is_err());
    }
}

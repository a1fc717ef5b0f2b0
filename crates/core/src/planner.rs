//! The pure heart of the agent: from what is wanted and what is seen, the steps to take next.
//!
//! Level-triggered: nothing here knows why it was asked. A step's effect shows in the next `Seen`;
//! steps in one plan do not depend on each other and run together. The teardown of a deleted
//! instance, of a failed start and of a stopped one is the same code: take away what is there.

use crate::Timestamp;
use crate::instance::{Desired, Exit, InstanceIntent, NetworkChoice};
use crate::ports::Presence;
use crate::ports::hypervisor::{Room, VmmSeen};
use crate::restart::{self, RestartStatus, Verdict};
use serde::{Deserialize, Serialize};

/// What the agent sees of the guest through its channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestSeen {
    /// No session with its agent.
    Detached,
    /// A session; the workload's configuration has not been taken.
    Attached,
    /// The workload was started.
    Ready,
    /// The workload has ended; the guest still runs.
    Exited(Exit),
}

/// Everything the planner may look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The instance's directory and record on the host.
    pub directory: Presence,
    /// The image's disk.
    pub image: Presence,
    /// The writable disk.
    pub disk: Presence,
    /// The attachment.
    pub network: Presence,
    /// The machine.
    pub vmm: VmmSeen,
    /// The guest.
    pub guest: GuestSeen,
    /// The last run that is over, and how it ended.
    pub ended: Option<(u64, Exit)>,
    /// When the guest of the last run became ready.
    pub started_at: Option<Timestamp>,
    /// Restarts so far.
    pub restart: RestartStatus,
    /// A step failed for good in this run of this generation: nothing more is tried until the user acts.
    pub given_up: GivenUp,
    /// Whether anything of the workload can have run on the machine.
    pub told: Told,
}

/// Whether the guest's agent was told what to run since its machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was, or that is not known: the end of the machine is the end of the run.
    Perhaps,
    /// It was not: when the machine ends, nothing is lost by starting it again.
    No {
        /// Machines started for this run so far.
        starts: u32,
    },
}

/// A machine that ends before its guest's agent was told what to run is started so many times in all.
pub const STARTS: u32 = 3;

/// Whether a start is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// It may be tried.
    No,
    /// This run failed and is over.
    Yes,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Make the directory and write the record of what will exist.
    RecordIntent,
    /// Make sure the image's disk is there.
    EnsureImage,
    /// Make the writable disk.
    EnsureDisk,
    /// Make the attachment, ports included.
    EnsureNetwork,
    /// Start the VMM.
    StartVmm,
    /// Open the channel to the guest's agent.
    AttachGuest,
    /// Tell the agent what to run.
    BootGuest,
    /// Stop the processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Ask the workload to end, then the guest.
    ShutDownGuest,
    /// Note how the run ended, so that it is not run again by mistake.
    RecordExit,
    /// End the VMM and remove its sockets and records.
    DestroyVmm,
    /// Take the attachment away.
    ReleaseNetwork,
    /// Remove the writable disk.
    RemoveDisk,
    /// Remove the directory: the last trace.
    RemoveDirectory,
}

impl Step {
    /// Every step: the crash tests are generated from this list.
    pub const ALL: [Step; 15] = [
        Step::RecordIntent,
        Step::EnsureImage,
        Step::EnsureDisk,
        Step::EnsureNetwork,
        Step::StartVmm,
        Step::AttachGuest,
        Step::BootGuest,
        Step::Pause,
        Step::Resume,
        Step::ShutDownGuest,
        Step::RecordExit,
        Step::DestroyVmm,
        Step::ReleaseNetwork,
        Step::RemoveDisk,
        Step::RemoveDirectory,
    ];

    /// Its name in logs and in crash points.
    pub fn name(self) -> &'static str {
        match self {
            Step::RecordIntent => "record-intent",
            Step::EnsureImage => "ensure-image",
            Step::EnsureDisk => "ensure-disk",
            Step::EnsureNetwork => "ensure-network",
            Step::StartVmm => "start-vmm",
            Step::AttachGuest => "attach-guest",
            Step::BootGuest => "boot-guest",
            Step::Pause => "pause",
            Step::Resume => "resume",
            Step::ShutDownGuest => "shut-down-guest",
            Step::RecordExit => "record-exit",
            Step::DestroyVmm => "destroy-vmm",
            Step::ReleaseNetwork => "release-network",
            Step::RemoveDisk => "remove-disk",
            Step::RemoveDirectory => "remove-directory",
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// These, together; then look again.
    Do(Vec<Step>),
    /// Nothing before this time.
    WaitUntil {
        /// Then look again.
        at: Timestamp,
        /// Which restart is being waited for.
        attempt: u32,
    },
    /// Nothing before the host's disk has room again.
    WaitForRoom,
    /// Nothing: what is wanted is so.
    Settled,
}

/// Whether a machine should run now, by intent, history and restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunWish {
    /// Yes, as this attempt of the restart policy (0: an explicit start).
    Run {
        /// Counting from 1; 0 for an explicit start.
        attempt: u32,
    },
    /// Later.
    Wait {
        /// Not before.
        at: Timestamp,
        /// Which restart.
        attempt: u32,
    },
    /// No.
    Rest,
}

/// See [`RunWish`].
pub fn run_wish(intent: &InstanceIntent, seen: &Seen, now: Timestamp) -> RunWish {
    match intent.desired {
        Desired::Stopped | Desired::Deleted => RunWish::Rest,
        // Before the restart policy: else a run that was given up is started only to be taken down.
        Desired::Running | Desired::Paused if seen.given_up == GivenUp::Yes => RunWish::Rest,
        Desired::Running | Desired::Paused => match &seen.ended {
            Some((run, exit)) if *run >= intent.run => {
                // Room for one more: a count read from a damaged record must not overflow.
                let restarts = RestartStatus {
                    attempts: seen.restart.attempts.min(u32::MAX - 1),
                    ..seen.restart
                };
                match restart::decide(
                    &intent.spec.restart,
                    &restarts,
                    exit.code,
                    seen.started_at,
                    exit.at,
                ) {
                    Verdict::Stay => RunWish::Rest,
                    // A clock that was set back must not make a restart wait for years.
                    Verdict::Restart { at, attempt }
                        if at > now && at - now <= restart::LONGEST_BACKOFF =>
                    {
                        RunWish::Wait { at, attempt }
                    }
                    Verdict::Restart { attempt, .. } => RunWish::Run { attempt },
                }
            }
            _ => RunWish::Run {
                attempt: seen.restart.attempts,
            },
        },
    }
}

/// The next steps towards `intent`. Total; applied until `Settled` it ends, and then stays `Settled`.
pub fn plan(intent: &InstanceIntent, seen: &Seen, now: Timestamp) -> Plan {
    if intent.desired == Desired::Deleted {
        return tear_down(seen);
    }
    // A workload that has ended ends its machine, and the end is noted first: a crash in between
    // must not run it again.
    if let GuestSeen::Exited(_) = seen.guest {
        return Plan::Do(vec![Step::RecordExit]);
    }
    match &seen.vmm {
        VmmSeen::Dead | VmmSeen::ShutDown { .. } => {
            if let Told::No { starts } = seen.told
                && starts < STARTS
                && matches!(run_wish(intent, seen, now), RunWish::Run { .. })
            {
                return Plan::Do(vec![Step::DestroyVmm]);
            }
            // Nobody saw the workload end; the machine is gone all the same.
            if seen.ended.as_ref().is_none_or(|(run, _)| *run < intent.run)
                && seen.given_up == GivenUp::No
            {
                return Plan::Do(vec![Step::RecordExit]);
            }
            return Plan::Do(vec![Step::DestroyVmm]);
        }
        // Nothing has run, so nothing has ended.
        VmmSeen::NeverStarted => return Plan::Do(vec![Step::DestroyVmm]),
        VmmSeen::Running { .. }
        | VmmSeen::Paused { .. }
        | VmmSeen::Stalled { .. }
        | VmmSeen::Absent => {}
    }
    match run_wish(intent, seen, now) {
        RunWish::Run { .. } => bring_up(intent, seen),
        RunWish::Wait { at, attempt } => match rest(seen) {
            Plan::Settled => Plan::WaitUntil { at, attempt },
            busy @ (Plan::Do(_) | Plan::WaitUntil { .. } | Plan::WaitForRoom) => busy,
        },
        RunWish::Rest => rest(seen),
    }
}

fn bring_up(intent: &InstanceIntent, seen: &Seen) -> Plan {
    if seen.directory != Presence::Present {
        return Plan::Do(vec![Step::RecordIntent]);
    }
    let wants_network = intent.spec.network == NetworkChoice::Default;
    match &seen.vmm {
        VmmSeen::Absent => {
            let mut steps = Vec::new();
            if seen.image != Presence::Present {
                steps.push(Step::EnsureImage);
            }
            if seen.disk != Presence::Present {
                steps.push(Step::EnsureDisk);
            }
            if wants_network && seen.network != Presence::Present {
                steps.push(Step::EnsureNetwork);
            }
            if steps.is_empty() {
                steps.push(Step::StartVmm);
            }
            Plan::Do(steps)
        }
        VmmSeen::Paused { .. } if intent.desired == Desired::Paused => Plan::Settled,
        VmmSeen::Paused { .. } => Plan::Do(vec![Step::Resume]),
        // As good as paused.
        VmmSeen::Stalled { .. } if intent.desired == Desired::Paused => Plan::Settled,
        VmmSeen::Stalled { room, .. } => match room {
            Room::Some => Plan::Do(vec![Step::Resume]),
            Room::None => Plan::WaitForRoom,
        },
        VmmSeen::Running { .. } => {
            let mut steps = Vec::new();
            if wants_network && seen.network != Presence::Present {
                // Adopted after a restart: its listening sockets went with the old process.
                steps.push(Step::EnsureNetwork);
            }
            match seen.guest {
                GuestSeen::Detached => steps.push(Step::AttachGuest),
                GuestSeen::Attached => steps.push(Step::BootGuest),
                GuestSeen::Ready if intent.desired == Desired::Paused => steps.push(Step::Pause),
                GuestSeen::Ready | GuestSeen::Exited(_) => {}
            }
            if steps.is_empty() {
                Plan::Settled
            } else {
                Plan::Do(steps)
            }
        }
        VmmSeen::NeverStarted | VmmSeen::Dead | VmmSeen::ShutDown { .. } => {
            Plan::Do(vec![Step::DestroyVmm])
        }
    }
}

/// No machine, no network; the disk stays.
fn rest(seen: &Seen) -> Plan {
    match (&seen.vmm, &seen.guest) {
        (VmmSeen::Absent, _) => {
            if seen.network != Presence::Absent {
                Plan::Do(vec![Step::ReleaseNetwork])
            } else {
                Plan::Settled
            }
        }
        // Its processors must run for it to hear that it is to stop.
        (
            VmmSeen::Paused { .. }
            | VmmSeen::Stalled {
                room: Room::Some, ..
            },
            _,
        ) if seen.ended.is_none() => Plan::Do(vec![Step::Resume]),
        (VmmSeen::Running { .. }, GuestSeen::Ready) => Plan::Do(vec![Step::ShutDownGuest]),
        _ => Plan::Do(vec![Step::DestroyVmm]),
    }
}

/// Nothing may be left. Depends on nothing working: the machine is killed, not asked.
fn tear_down(seen: &Seen) -> Plan {
    if seen.vmm != VmmSeen::Absent {
        return Plan::Do(vec![Step::DestroyVmm]);
    }
    let mut steps = Vec::new();
    if seen.network != Presence::Absent {
        steps.push(Step::ReleaseNetwork);
    }
    if seen.disk != Presence::Absent {
        steps.push(Step::RemoveDisk);
    }
    if steps.is_empty() && seen.directory != Presence::Absent {
        steps.push(Step::RemoveDirectory);
    }
    if steps.is_empty() {
        Plan::Settled
    } else {
        Plan::Do(steps)
    }
}

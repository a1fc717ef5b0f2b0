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
    /// What was saved of the machine for standby: whole or not.
    pub saved: Presence,
    /// Whether the newest wish has turned out to be one that cannot be granted.
    pub refused: Refused,
    /// Whether the guest's agent can be found, as far as that was tried.
    pub reach: Reach,
}

/// What came of the last attempt to find the agent of a machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// None was made, or it was found.
    Unknown,
    /// It does not answer.
    Silent,
}

/// Whether a standby or a restore has failed for good: then what was before stays, and nothing is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not that one knows.
    No,
    /// It has.
    Yes,
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
    /// Write a paused machine's memory and devices to files.
    SaveMachine,
    /// Start the VMM with what was saved; its processors stay stopped.
    RestoreVmm,
    /// Let the processors go on. What was saved of the machine goes first: it is not of this moment any more.
    Resume,
    /// Ask the workload to end, then the guest.
    ShutDownGuest,
    /// Note how the run ended, so that it is not run again by mistake.
    RecordExit,
    /// End the VMM and remove its sockets and records.
    DestroyVmm,
    /// Take the attachment away.
    ReleaseNetwork,
    /// Remove what was saved of the machine.
    RemoveSaved,
    /// Remove the writable disk.
    RemoveDisk,
    /// Remove the directory: the last trace.
    RemoveDirectory,
}

impl Step {
    /// Every step: the crash tests are generated from this list.
    pub const ALL: [Step; 18] = [
        Step::RecordIntent,
        Step::EnsureImage,
        Step::EnsureDisk,
        Step::EnsureNetwork,
        Step::StartVmm,
        Step::AttachGuest,
        Step::BootGuest,
        Step::Pause,
        Step::SaveMachine,
        Step::RestoreVmm,
        Step::Resume,
        Step::ShutDownGuest,
        Step::RecordExit,
        Step::DestroyVmm,
        Step::ReleaseNetwork,
        Step::RemoveSaved,
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
            Step::SaveMachine => "save-machine",
            Step::RestoreVmm => "restore-vmm",
            Step::RemoveSaved => "remove-saved",
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

/// What is worked towards: a standby or a restore that cannot be had leaves the instance as it was.
pub fn goal(intent: &InstanceIntent, seen: &Seen) -> Desired {
    match (intent.desired, seen.refused) {
        (Desired::Standby, Refused::Yes) => Desired::Running,
        (Desired::Running | Desired::Paused, Refused::Yes) if is_saved(intent, seen) => {
            Desired::Standby
        }
        (desired, _) => desired,
    }
}

/// Whether the run that is wanted can go on from what was saved of it.
pub fn is_saved(intent: &InstanceIntent, seen: &Seen) -> bool {
    seen.saved == Presence::Present && !has_ended(intent, seen)
}

fn has_ended(intent: &InstanceIntent, seen: &Seen) -> bool {
    seen.ended
        .as_ref()
        .is_some_and(|(run, _)| *run >= intent.run)
}

/// See [`RunWish`].
pub fn run_wish(intent: &InstanceIntent, seen: &Seen, now: Timestamp) -> RunWish {
    match goal(intent, seen) {
        Desired::Stopped | Desired::Deleted | Desired::Standby => RunWish::Rest,
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
    let goal = goal(intent, seen);
    if goal == Desired::Deleted {
        return tear_down(seen);
    }
    // A workload that has ended ends its machine, and the end is noted first: a crash in between
    // must not run it again.
    if let GuestSeen::Exited(_) = seen.guest {
        return Plan::Do(vec![Step::RecordExit]);
    }
    let over = has_ended(intent, seen) || seen.given_up == GivenUp::Yes;
    if goal == Desired::Standby && !over {
        return put_away(seen);
    }
    match &seen.vmm {
        // What was saved is still there, so nothing has run since.
        VmmSeen::Dead | VmmSeen::ShutDown { .. } if is_saved(intent, seen) => {
            return Plan::Do(vec![Step::DestroyVmm]);
        }
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
        RunWish::Run { .. } => bring_up(intent, seen, goal),
        RunWish::Wait { at, attempt } => match rest(intent, seen) {
            Plan::Settled => Plan::WaitUntil { at, attempt },
            busy @ (Plan::Do(_) | Plan::WaitUntil { .. } | Plan::WaitForRoom) => busy,
        },
        RunWish::Rest => rest(intent, seen),
    }
}

/// Into standby, and there.
fn put_away(seen: &Seen) -> Plan {
    let saved = seen.saved == Presence::Present;
    match &seen.vmm {
        VmmSeen::NeverStarted => Plan::Do(vec![Step::DestroyVmm]),
        VmmSeen::Absent if saved && seen.network != Presence::Absent => {
            Plan::Do(vec![Step::ReleaseNetwork])
        }
        VmmSeen::Absent if saved => Plan::Settled,
        _ if saved => Plan::Do(vec![Step::DestroyVmm]),
        // It ended before it could be saved.
        VmmSeen::Absent | VmmSeen::Dead | VmmSeen::ShutDown { .. } => {
            Plan::Do(vec![Step::RecordExit])
        }
        VmmSeen::Running { .. } => Plan::Do(vec![Step::Pause]),
        VmmSeen::Paused { .. } => Plan::Do(vec![Step::SaveMachine]),
        // In the middle of a write: it can be saved once that is done.
        VmmSeen::Stalled { room, .. } => match room {
            Room::Some => Plan::Do(vec![Step::Resume]),
            Room::None => Plan::WaitForRoom,
        },
    }
}

fn bring_up(intent: &InstanceIntent, seen: &Seen, goal: Desired) -> Plan {
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
            if seen.saved != Presence::Absent && !is_saved(intent, seen) {
                steps.push(Step::RemoveSaved);
            }
            if steps.is_empty() {
                steps.push(match is_saved(intent, seen) {
                    true => Step::RestoreVmm,
                    false => Step::StartVmm,
                });
            }
            Plan::Do(steps)
        }
        VmmSeen::Paused { .. } if goal == Desired::Paused => Plan::Settled,
        VmmSeen::Paused { .. } => Plan::Do(vec![Step::Resume]),
        // As good as paused.
        VmmSeen::Stalled { .. } if goal == Desired::Paused => Plan::Settled,
        VmmSeen::Stalled { room, .. } => match room {
            Room::Some => Plan::Do(vec![Step::Resume]),
            Room::None => Plan::WaitForRoom,
        },
        // Processors have not run while what was saved is there: whoever was to restore the machine did not get to its end.
        VmmSeen::Running { .. } if is_saved(intent, seen) => Plan::Do(vec![Step::DestroyVmm]),
        VmmSeen::Running { .. } => {
            let mut steps = Vec::new();
            if wants_network && seen.network != Presence::Present {
                // Adopted after a restart: its listening sockets went with the old process.
                steps.push(Step::EnsureNetwork);
            }
            match seen.guest {
                GuestSeen::Detached => steps.push(Step::AttachGuest),
                GuestSeen::Attached => steps.push(Step::BootGuest),
                GuestSeen::Ready if goal == Desired::Paused => steps.push(Step::Pause),
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
fn rest(intent: &InstanceIntent, seen: &Seen) -> Plan {
    let keeps = intent.desired != Desired::Stopped && is_saved(intent, seen);
    match (&seen.vmm, &seen.guest) {
        (VmmSeen::Absent, _) => {
            let mut steps = Vec::new();
            if seen.network != Presence::Absent {
                steps.push(Step::ReleaseNetwork);
            }
            if seen.saved != Presence::Absent && !keeps {
                steps.push(Step::RemoveSaved);
            }
            if steps.is_empty() {
                Plan::Settled
            } else {
                Plan::Do(steps)
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
        // It was ready, and nobody has talked to it since: after a restore, or a start of this host's agent.
        (VmmSeen::Running { .. }, GuestSeen::Detached)
            if seen.started_at.is_some()
                && seen.reach == Reach::Unknown
                && !has_ended(intent, seen)
                && seen.saved == Presence::Absent =>
        {
            Plan::Do(vec![Step::AttachGuest])
        }
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
    if seen.saved != Presence::Absent {
        steps.push(Step::RemoveSaved);
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

//! What everybody else is told of an instance.

use super::Actor;
use warren_core::instance::{Desired, Gone, InstanceStatus};
use warren_core::planner::{self, GuestSeen, Plan, Refused, RunWish};
use warren_core::ports::hypervisor::{HypervisorKind, VmmSeen};
use warren_core::state::InstanceState;

impl Actor {
    pub(super) fn state(&self, wish: RunWish) -> InstanceState {
        let since = self
            .record
            .started_at
            .unwrap_or(self.record.intent.created_at);
        let saved = planner::is_saved(&self.record.intent, &self.seen);
        let kept = match self.record.intent.desired {
            Desired::Running | Desired::Paused | Desired::Standby => saved,
            Desired::Stopped | Desired::Deleted => false,
        };
        let goal = planner::goal(&self.record.intent, &self.seen);
        match &self.seen.vmm {
            VmmSeen::Absent | VmmSeen::NeverStarted | VmmSeen::Dead if kept => {
                InstanceState::Standby
            }
            // It has, or waits for, what was saved.
            VmmSeen::Running { .. } if kept => InstanceState::Standby,
            VmmSeen::Paused { .. } if kept && goal != Desired::Standby => InstanceState::Standby,
            VmmSeen::Absent | VmmSeen::NeverStarted | VmmSeen::Dead => match wish {
                RunWish::Run { .. } if self.record.intent.desired != Desired::Deleted => {
                    InstanceState::Created
                }
                RunWish::Run { .. } | RunWish::Wait { .. } | RunWish::Rest => {
                    InstanceState::Stopped
                }
            },
            VmmSeen::ShutDown { process } => InstanceState::Shutdown {
                vmm: process.clone(),
            },
            VmmSeen::Paused { process } | VmmSeen::Stalled { process, .. } => {
                InstanceState::Paused {
                    vmm: process.clone(),
                    since,
                }
            }
            VmmSeen::Running { process } => match &self.seen.guest {
                GuestSeen::Exited(_) => InstanceState::Shutdown {
                    vmm: process.clone(),
                },
                GuestSeen::Ready => InstanceState::Running {
                    vmm: process.clone(),
                    since,
                },
                GuestSeen::Detached | GuestSeen::Attached if self.seen.ended.is_some() => {
                    InstanceState::Shutdown {
                        vmm: process.clone(),
                    }
                }
                GuestSeen::Detached | GuestSeen::Attached
                    if self.record.started_at.is_some() && !self.waking =>
                {
                    InstanceState::Running {
                        vmm: process.clone(),
                        since,
                    }
                }
                GuestSeen::Detached | GuestSeen::Attached => InstanceState::Initializing {
                    vmm: process.clone(),
                    since,
                },
            },
        }
    }

    pub(super) fn publish(&mut self, plan: &Plan) {
        if let Some(process) = self.process().cloned() {
            self.last_process = Some(process);
        }
        let wish = planner::run_wish(&self.record.intent, &self.seen, self.now());
        self.record.restart.next_attempt_at = match wish {
            RunWish::Wait { at, .. } => Some(at),
            RunWish::Run { .. } | RunWish::Rest => None,
        };
        let intent = &self.record.intent;
        let deleted = intent.desired == Desired::Deleted;
        let gone = if deleted && *plan == Plan::Settled {
            Gone::Yes
        } else {
            Gone::No
        };
        let over = wish == RunWish::Rest && self.process().is_none();
        self.shared
            .output_over
            .send_if_modified(|seen| std::mem::replace(seen, over) != over);
        let kind: Option<HypervisorKind> = Some(self.record.hypervisor);
        self.context.board.publish(InstanceStatus {
            id: intent.id.clone(),
            generation: intent.generation,
            state: self.state(wish),
            failure: self.failure.clone(),
            refused: match self.seen.refused {
                Refused::Yes => self.record.refused.clone().map(|(_, failure)| failure),
                Refused::No => None,
            },
            run: intent.run,
            started_at: self.record.started_at,
            stopped_at: self.stopped_at,
            exit: self.record.ended.as_ref().map(|(_, exit)| exit.clone()),
            restart: self.record.restart,
            hypervisor: kind,
            address: self
                .attachment
                .as_ref()
                .map(|attachment| attachment.guest.address.addr())
                .or(intent.address),
            mac: self
                .attachment
                .as_ref()
                .map(|attachment| attachment.guest.mac.to_string()),
            phases: self.phases.clone(),
            gone,
        });
    }
}

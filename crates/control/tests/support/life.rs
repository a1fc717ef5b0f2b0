//! What becomes of an instance: what is wanted of it comes true at once, as its command says.

use super::{Host, now};
use warren_core::error::Failure;
use warren_core::instance::{Desired, Exit, Gone, InstanceIntent, InstanceStatus};
use warren_core::ports::hypervisor::{HypervisorKind, ProcessIdentity};
use warren_core::state::InstanceState;
use warren_core::{ErrorClass, InstanceId};

fn vmm() -> ProcessIdentity {
    ProcessIdentity {
        pid: 1,
        start_time: 1,
        boot_id: "boot".into(),
    }
}

impl Host {
    fn say(&self, intent: &InstanceIntent, change: impl FnOnce(&mut InstanceStatus)) {
        let mut statuses = Self::lock(&self.statuses);
        let status = statuses
            .entry(intent.id.clone())
            .or_insert_with(|| InstanceStatus::unreported(intent));
        status.generation = intent.generation;
        status.refused = None;
        change(status);
        let _ = self.changes.send(status.clone());
    }

    fn ended(&self, intent: &InstanceIntent, code: i32) {
        self.say(intent, |status| {
            status.state = InstanceState::Stopped;
            status.run = intent.run;
            status.stopped_at = Some(now());
            status.exit = Some(Exit {
                code: Some(code),
                message: None,
                at: now(),
            });
        });
    }

    /// The workload of an instance ends by itself.
    pub(crate) fn end(&self, id: &str, code: i32) {
        let intent = Self::lock(&self.intents)[&id.parse::<InstanceId>().expect("an id")].clone();
        self.ended(&intent, code);
    }

    /// An instance's state is this, whatever was wanted.
    pub(crate) fn force(&self, id: &str, state: InstanceState) {
        let intent = Self::lock(&self.intents)[&id.parse::<InstanceId>().expect("an id")].clone();
        self.say(&intent, |status| {
            status.state = state;
            status.failure = None;
            status.exit = None;
        });
    }

    fn play(&self, intent: &InstanceIntent) {
        let words: Vec<&str> = intent
            .spec
            .cmd
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let since = now();
        let running = Self::lock(&self.statuses)
            .get(&intent.id)
            .is_some_and(|s| s.run == intent.run && s.state.vmm().is_some());
        match (intent.desired, words.as_slice()) {
            (Desired::Deleted, _) => {
                self.say(intent, |status| {
                    status.state = InstanceState::Stopped;
                    status.gone = Gone::Yes;
                });
                Self::lock(&self.statuses).remove(&intent.id);
                Self::lock(&self.intents).remove(&intent.id);
            }
            (Desired::Stopped, _) => self.ended(intent, 143),
            (Desired::Standby, ["unsavable"]) => self.say(intent, |status| {
                status.refused = Some(Failure {
                    class: ErrorClass::NoSpace,
                    code: "host_disk_full".into(),
                    message: "the double has no room".into(),
                });
                status.failure.clone_from(&status.refused);
            }),
            (Desired::Standby, _) => self.say(intent, |status| {
                status.state = InstanceState::Standby;
            }),
            (Desired::Paused, _) => self.say(intent, |status| {
                status.state = InstanceState::Paused { vmm: vmm(), since };
            }),
            (Desired::Running, ["fail"]) => self.say(intent, |status| {
                status.state = InstanceState::Stopped;
                status.run = intent.run;
                status.failure = Some(Failure {
                    class: ErrorClass::Invalid,
                    code: "start_failed".into(),
                    message: "the double was told to fail".into(),
                });
            }),
            (Desired::Running, ["hang"]) => self.say(intent, |status| {
                status.state = InstanceState::Initializing { vmm: vmm(), since };
                status.run = intent.run;
            }),
            (Desired::Running, words) => {
                if !running {
                    self.say(intent, |status| {
                        status.state = InstanceState::Initializing { vmm: vmm(), since };
                        status.run = intent.run;
                        status.exit = None;
                        status.failure = None;
                    });
                }
                self.say(intent, |status| {
                    status.state = InstanceState::Running { vmm: vmm(), since };
                    status.started_at = Some(since);
                    status.hypervisor = Some(HypervisorKind::Fake);
                });
                if let ["exit", code] = words {
                    self.ended(intent, code.parse().expect("a number"));
                }
            }
        }
    }

    pub(super) fn take(&self, intent: InstanceIntent) {
        let newer = Self::lock(&self.intents)
            .get(&intent.id)
            .is_none_or(|held| held.generation < intent.generation);
        if newer {
            Self::lock(&self.intents).insert(intent.id.clone(), intent.clone());
            self.play(&intent);
        }
    }
}

//! What a step that was carried out changes of what is known.

use super::Actor;
use super::failing::machine_ended;
use crate::guest_session::GuestState;
use crate::steps::Effect;
use crate::trace;
use std::sync::Arc;
use std::time::Duration;
use warren_core::Timestamp;
use warren_core::planner::{self, GuestSeen, Reach, RunWish, Step, Told};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::VmmSeen;
use warren_crashpoint::reached;

impl Actor {
    /// What must be on disk before the machine of a (re)start exists.
    pub(super) fn begin_run(&mut self) {
        if let RunWish::Run { attempt } =
            planner::run_wish(&self.record.intent, &self.seen, self.now())
        {
            let again = self
                .record
                .ended
                .as_ref()
                .is_some_and(|(run, _)| *run >= self.record.intent.run);
            if again {
                self.record.restart.attempts = attempt;
                self.record.restart.last_attempt_at = Some(self.now());
            }
            self.record.restart.next_attempt_at = None;
            // The first run's record says all of this since it was made.
            let changed = again || self.record.ended.is_some() || self.record.started_at.is_some();
            self.record.ended = None;
            self.record.started_at = None;
            self.record.boot = None;
            self.seen.ended = None;
            self.seen.started_at = None;
            self.seen.restart = self.record.restart;
            if changed {
                self.write_record();
            }
            reached("run.recorded");
        }
    }

    pub(super) fn note_phase(&mut self, step: Step, took: Duration) {
        match step {
            Step::RecordIntent
            | Step::EnsureImage
            | Step::EnsureDisk
            | Step::EnsureNetwork
            | Step::StartVmm
            | Step::AttachGuest
            | Step::BootGuest => {
                let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                self.phases
                    .insert(trace::step_name(step).to_owned(), millis);
            }
            Step::Pause
            | Step::SaveMachine
            | Step::RestoreVmm
            | Step::Resume
            | Step::ShutDownGuest
            | Step::RecordExit
            | Step::DestroyVmm
            | Step::ReleaseNetwork
            | Step::RemoveSaved
            | Step::RemoveDisk
            | Step::RemoveDirectory => {}
        }
    }

    fn count_start(&mut self) {
        self.seen.guest = GuestSeen::Detached;
        self.seen.reach = Reach::Unknown;
        self.waking = false;
        self.seen.told = match self.seen.told {
            Told::No { starts } => Told::No { starts: starts + 1 },
            Told::Perhaps => Told::No { starts: 1 },
        };
    }

    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Recorded => self.seen.directory = Presence::Present,
            Effect::Image(path) => {
                self.image_disk = Some(path);
                self.seen.image = Presence::Present;
            }
            Effect::Disk => self.seen.disk = Presence::Present,
            Effect::Network(attachment) => {
                self.attachment = Some(*attachment);
                self.seen.network = Presence::Present;
            }
            Effect::Started(process) => {
                self.shared.output_over.send_replace(false);
                self.seen.vmm = VmmSeen::Running { process };
                self.count_start();
            }
            Effect::Saved => {
                self.seen.saved = Presence::Present;
                self.failure = None;
            }
            Effect::Restored(process) => {
                self.seen.vmm = VmmSeen::Paused { process };
                self.count_start();
            }
            Effect::SavedRemoved => self.seen.saved = Presence::Absent,
            Effect::Attached(session) => {
                self.waking = false;
                self.seen.reach = Reach::Unknown;
                if session.state() == GuestState::Ready && self.record.started_at.is_none() {
                    self.note_ready(self.now());
                }
                self.shared.session.send_replace(Some(Arc::clone(&session)));
                self.heard = Some(session.watch());
                self.session = Some(session);
                self.hear_guest();
            }
            Effect::Ready(at) => {
                if let Some(booted) = self.session.as_ref().and_then(|session| session.booted()) {
                    self.change.guest_booted(booted);
                }
                self.note_ready(at);
                self.hear_guest();
            }
            Effect::Paused => {
                if let Some(process) = self.process().cloned() {
                    self.seen.vmm = VmmSeen::Paused { process };
                }
            }
            Effect::Resumed(boot) => {
                if self.seen.saved == Presence::Present {
                    self.seen.saved = Presence::Absent;
                    self.seen.told = Told::Perhaps;
                    self.stopped_at = None;
                    self.failure = None;
                    self.waking = true;
                    // The same guest, and nothing to hear of it before it is found again.
                    self.drop_session();
                }
                self.record.boot = boot.or(self.record.boot.take());
                if let Some(process) = self.process().cloned() {
                    self.see_machine(VmmSeen::Running { process });
                }
            }
            Effect::ShutDown => {
                self.hear_guest();
                if !matches!(self.seen.guest, GuestSeen::Exited(_)) {
                    self.drop_session();
                }
            }
            Effect::Ended(exit) => {
                self.seen.told = Told::Perhaps;
                self.record.ended = Some((self.record.intent.run, exit.clone()));
                self.seen.ended = self.record.ended.clone();
                self.stopped_at = Some(exit.at);
                if exit.code.is_none() && self.record.started_at.is_none() && self.failure.is_none()
                {
                    self.failure = Some(machine_ended(None));
                }
                self.drop_session();
            }
            Effect::Destroyed => {
                self.drop_session();
                self.image_disk = None;
                self.seen.image = Presence::Absent;
                self.seen.vmm = VmmSeen::Absent;
                self.stopped_at
                    .get_or_insert(self.context.ports.clock.now());
            }
            Effect::Released => {
                self.attachment = None;
                self.seen.network = Presence::Absent;
            }
            Effect::DiskRemoved => self.seen.disk = Presence::Absent,
            Effect::DirectoryRemoved => self.seen.directory = Presence::Absent,
        }
    }

    fn note_ready(&mut self, at: Timestamp) {
        self.record.started_at = Some(at);
        self.seen.started_at = Some(at);
        self.stopped_at = None;
        self.failure = None;
        // Not settled: what it says is of a machine that a power failure ends as well.
        self.say_unwritten(self.record.put(&self.shared.home.directory));
        reached("ready.recorded");
    }
}

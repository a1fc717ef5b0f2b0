//! One task per instance: look, plan, take the steps, look again. It owns the instance on this host;
//! others hold an [`InstanceShared`] and change nothing but the wish.
//!
//! Level-triggered: a change of intent, a word from the guest, the end of the VMM and a timer all do
//! the same, which is to wake it up.

mod effects;
mod failing;
mod room;
mod telling;

use crate::context::{Context, InstanceShared, attachment_spec, disk_path};
use crate::guest_session::{GuestSession, GuestState};
use crate::record::{HostRecord, sync_directory};
use crate::saved::Saved;
use crate::steps::StepScope;
use crate::trace::{self, Change};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;
use warren_core::error::Failure;
use warren_core::instance::{Desired, InstanceIntent, NetworkChoice};
use warren_core::planner::{
    self, GivenUp, GuestSeen, Plan, Reach, Refused, RunWish, Seen, Step, Told,
};
use warren_core::ports::hypervisor::{ProcessIdentity, VmmSeen};
use warren_core::ports::network::Attachment;
use warren_core::ports::{Hypervisor, Presence};
use warren_core::restart::RestartStatus;
use warren_core::{PortError, Timestamp};
use warren_crashpoint::reached;

/// Everything is looked at anew this often, whatever has been heard.
const RESYNC: Duration = Duration::from_secs(60);

pub(crate) struct Actor {
    context: Arc<Context>,
    shared: Arc<InstanceShared>,
    wishes: watch::Receiver<InstanceIntent>,
    record: HostRecord,
    hypervisor: Arc<dyn Hypervisor>,
    seen: Seen,
    session: Option<Arc<GuestSession>>,
    /// What the guest says, and how much of it this actor has heard.
    heard: Option<watch::Receiver<GuestState>>,
    attachment: Option<Attachment>,
    image_disk: Option<PathBuf>,
    failure: Option<Failure>,
    stopped_at: Option<Timestamp>,
    /// The VMM this actor saw last.
    last_process: Option<ProcessIdentity>,
    /// Consecutive failures of steps, and the time (monotonic) before which none is tried again.
    failures: u32,
    not_before: Option<Duration>,
    phases: BTreeMap<String, u64>,
    change: Change,
    /// The record was changed, and its directory not synced since.
    unsettled: bool,
    /// It was restored, and its guest has not been found again yet.
    waking: bool,
}

impl Actor {
    pub(crate) fn new(
        context: Arc<Context>,
        shared: Arc<InstanceShared>,
        record: HostRecord,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Self {
        let seen = Seen {
            directory: Presence::Absent,
            image: Presence::Absent,
            disk: Presence::Absent,
            network: Presence::Absent,
            vmm: VmmSeen::Absent,
            guest: GuestSeen::Detached,
            ended: record.ended.clone(),
            started_at: record.started_at,
            restart: record.restart,
            given_up: GivenUp::No,
            told: Told::Perhaps,
            saved: Presence::Absent,
            refused: Refused::No,
            reach: Reach::Unknown,
        };
        let mut actor = Actor {
            wishes: shared.wish.subscribe(),
            stopped_at: record.ended.as_ref().map(|(_, exit)| exit.at),
            context,
            shared,
            record,
            hypervisor,
            seen,
            session: None,
            heard: None,
            attachment: None,
            image_disk: None,
            failure: None,
            last_process: None,
            failures: 0,
            not_before: None,
            phases: BTreeMap::new(),
            change: Change::default(),
            unsettled: false,
            waking: false,
        };
        actor.recall_failures();
        actor
    }

    fn now(&self) -> Timestamp {
        self.context.ports.clock.now()
    }

    fn recall_failures(&mut self) {
        match &self.record.given_up {
            Some((run, failure)) if *run >= self.record.intent.run => {
                self.seen.given_up = GivenUp::Yes;
                self.failure = Some(failure.clone());
            }
            Some(_) | None => self.seen.given_up = GivenUp::No,
        }
        match &self.record.refused {
            Some((generation, failure)) if *generation >= self.record.intent.generation => {
                self.seen.refused = Refused::Yes;
                self.failure = Some(failure.clone());
            }
            Some(_) | None => self.seen.refused = Refused::No,
        }
    }

    /// Until nothing of the instance is left.
    pub(crate) async fn run(mut self) {
        self.observe().await;
        loop {
            self.accept_wish();
            self.hear_guest();
            let plan = planner::plan(&self.record.intent, &self.seen, self.now());
            self.publish(&plan);
            match plan {
                Plan::Do(steps) => {
                    self.change.begin(&self.record.intent, &self.shared.cause);
                    self.take(steps).await;
                }
                Plan::WaitUntil { at, .. } => {
                    self.rest();
                    let left = Duration::try_from(at - self.now()).unwrap_or(Duration::ZERO);
                    self.wait(Some(left)).await;
                }
                Plan::WaitForRoom => {
                    self.rest();
                    self.wait_for_room().await;
                }
                Plan::Settled if self.record.intent.desired == Desired::Deleted => return,
                Plan::Settled => {
                    self.rest();
                    self.wait(None).await;
                }
            }
        }
    }

    /// There is nothing to be done for now: what could wait is done.
    fn rest(&mut self) {
        self.settle_record();
        self.change.end();
    }

    /// Takes over a newer intent. It is on disk before anything is done about it.
    fn accept_wish(&mut self) {
        let intent = self.wishes.borrow_and_update().clone();
        if intent.generation <= self.record.intent.generation {
            return;
        }
        if intent.run > self.record.intent.run || intent.desired != self.record.intent.desired {
            self.failures = 0;
            self.not_before = None;
        }
        if intent.run > self.record.intent.run {
            self.failure = None;
            self.record.restart = RestartStatus::default();
            self.seen.restart = self.record.restart;
            self.phases.clear();
            self.image_disk = None;
            self.seen.image = Presence::Absent;
        }
        self.record.intent = intent;
        self.recall_failures();
        self.write_record();
        reached("wish.recorded");
    }

    /// Whole for the next process, whatever happens to this one; durable when there is nothing more urgent. A power failure
    /// before that brings the older one back, and with it no machine: the store says what is wanted.
    fn write_record(&mut self) {
        if self.seen.directory == Presence::Present {
            self.say_unwritten(self.record.put(&self.shared.home.directory));
            self.unsettled = true;
        }
    }

    fn say_unwritten(&self, written: std::io::Result<()>) {
        if let Err(error) = written {
            // The store has the wish; the host's copy is brought up to date at the next change.
            tracing::warn!(instance = %self.record.intent.id, %error, "cannot write the instance's record");
        }
    }

    fn hear_guest(&mut self) {
        let Some(heard) = &mut self.heard else { return };
        // From here on only what it says next wakes this actor.
        let state = heard.borrow_and_update().clone();
        match state {
            GuestState::Waiting | GuestState::Booting => self.seen.guest = GuestSeen::Attached,
            GuestState::Ready => self.seen.guest = GuestSeen::Ready,
            GuestState::Exited(report) => {
                self.seen.guest = GuestSeen::Exited(warren_core::instance::Exit {
                    code: Some(report.status.shell_code()),
                    message: report.message,
                    at: self.now(),
                });
            }
            GuestState::Failed { .. } => self.seen.guest = GuestSeen::Attached,
            GuestState::Closed(_) => self.drop_session(),
        }
    }

    fn drop_session(&mut self) {
        self.session = None;
        self.heard = None;
        self.shared.session.send_replace(None);
        self.seen.guest = GuestSeen::Detached;
    }

    /// Looks at everything anew: on adoption, after an error, and now and then.
    async fn observe(&mut self) {
        let home = self.shared.home.clone();
        let context = Arc::clone(&self.context);
        let ports = &context.ports;
        let spec = attachment_spec(&home, &self.record.intent);
        let disk = disk_path(&home);
        let (vmm, network, disk) = tokio::join!(
            self.hypervisor.observe(&home),
            ports.network.observe(&spec),
            ports.volumes.observe(&disk),
        );
        self.seen.directory = match (home.directory.is_dir(), HostRecord::is_in(&home.directory)) {
            (true, true) => Presence::Present,
            (true, false) => Presence::Partial,
            (false, _) => Presence::Absent,
        };
        let unclear = |what: &str, error: PortError| {
            tracing::warn!(instance = %home.id, %error, "cannot look at the {what}");
        };
        self.seen.saved = Saved::of(&home.directory).presence();
        match vmm {
            Ok(vmm) => self.see_machine(vmm),
            Err(error) => unclear("machine", error),
        }
        match network {
            Ok(network) => self.seen.network = network,
            Err(error) => unclear("network", error),
        }
        match disk {
            Ok(disk) => self.seen.disk = disk,
            Err(error) => unclear("disk", error),
        }
        // Looked up by a step of its own before each start, and needed for nothing else.
        self.seen.image = if self.image_disk.is_some() {
            Presence::Present
        } else {
            Presence::Absent
        };
        if self.attachment.is_none() && self.record.intent.spec.network == NetworkChoice::Default {
            // The attachment's details are known only to whoever ensures it.
            let running = self.is_on();
            let wanted =
                planner::run_wish(&self.record.intent, &self.seen, self.now()) != RunWish::Rest;
            if wanted && (running || self.seen.network == Presence::Present) {
                match ports.network.ensure(&spec).await {
                    Ok(attachment) => {
                        self.attachment = Some(attachment);
                        self.seen.network = Presence::Present;
                    }
                    Err(error) => {
                        unclear("network", error);
                        self.seen.network = Presence::Absent;
                    }
                }
            }
        }
        if !self.is_on()
            && !matches!(
                self.session.as_ref().map(|session| session.state()),
                Some(GuestState::Exited(_))
            )
        {
            self.drop_session();
        }
    }

    fn process(&self) -> Option<&ProcessIdentity> {
        match &self.seen.vmm {
            VmmSeen::Running { process }
            | VmmSeen::Paused { process }
            | VmmSeen::Stalled { process, .. }
            | VmmSeen::ShutDown { process } => Some(process),
            VmmSeen::Absent | VmmSeen::NeverStarted | VmmSeen::Dead => None,
        }
    }

    /// Whether the machine has a guest that runs, or can go on.
    fn is_on(&self) -> bool {
        match &self.seen.vmm {
            VmmSeen::Running { .. } | VmmSeen::Paused { .. } | VmmSeen::Stalled { .. } => true,
            VmmSeen::Absent | VmmSeen::NeverStarted | VmmSeen::Dead | VmmSeen::ShutDown { .. } => {
                false
            }
        }
    }

    async fn take(&mut self, steps: Vec<Step>) {
        let monotonic = self.context.ports.clock.monotonic();
        if let Some(at) = self.not_before.take()
            && at > monotonic
        {
            self.wait(Some(at - monotonic)).await;
            return;
        }
        if steps.contains(&Step::StartVmm) {
            self.begin_run();
        }
        if self.seen.vmm == VmmSeen::Dead && matches!(self.seen.told, Told::No { .. }) {
            self.machine_ended_early().await;
            if self.gives_up_restoring() {
                return;
            }
        }
        if steps.contains(&Step::BootGuest) {
            self.seen.told = Told::Perhaps;
        }
        let scope = StepScope {
            context: &self.context,
            shared: &self.shared,
            intent: &self.record.intent,
            wishes: self.wishes.clone(),
            record: &self.record,
            hypervisor: &self.hypervisor,
            session: self.session.as_ref(),
            attachment: self.attachment.as_ref(),
            image_disk: self.image_disk.as_ref(),
            process: self.process(),
        };
        let clock = &self.context.ports.clock;
        let results = futures::future::join_all(steps.iter().map(|step| {
            let scope = &scope;
            let span = self.change.step(*step);
            async move {
                let start = clock.monotonic();
                tracing::debug!(instance = %scope.intent.id, ?step, "step");
                let result = scope.carry_out(*step).instrument(span.clone()).await;
                if let Err(error) = &result {
                    trace::failed(&span, error);
                }
                (*step, result, clock.monotonic().saturating_sub(start))
            }
        }))
        .await;
        let mut failed = None;
        for (step, result, took) in results {
            match result {
                Ok(effect) => {
                    self.note_phase(step, took);
                    self.apply(effect);
                }
                Err(error) => failed = Some((step, error)),
            }
        }
        match failed {
            Some((step, error)) => self.failed(step, error).await,
            None => self.failures = 0,
        }
    }

    /// Makes durable what was told already. The next process reads it in any case; a power failure ends the machine that
    /// it is about as well.
    fn settle_record(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            self.say_unwritten(sync_directory(&self.shared.home.directory));
        }
    }

    /// Until something happens, or for this long.
    async fn wait(&mut self, time: Option<Duration>) {
        let pause = time.map_or(RESYNC, |time| time.clamp(Duration::from_millis(1), RESYNC));
        let clock = Arc::clone(&self.context.ports.clock);
        let lives = self.process().is_some();
        let runs = matches!(self.seen.vmm, VmmSeen::Running { .. });
        let guest_speaks = async {
            // The end of a session is its last word; behind that comes nothing.
            if let Some(heard) = &mut self.heard
                && heard.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        let machine_ends = async {
            match lives {
                true => drop(self.hypervisor.wait_exit(&self.shared.home).await),
                false => std::future::pending().await,
            }
        };
        let machine_stalls = async {
            match runs {
                true => self.hypervisor.wait_stall(&self.shared.home).await,
                false => std::future::pending().await,
            }
        };
        enum Woken {
            Wish,
            Guest,
            Machine,
            Time,
        }
        let woken = tokio::select! {
            changed = self.wishes.changed() => {
                if changed.is_err() { Woken::Time } else { Woken::Wish }
            }
            () = guest_speaks => Woken::Guest,
            () = machine_ends => Woken::Machine,
            () = machine_stalls => Woken::Machine,
            () = self.shared.look_again.notified() => Woken::Machine,
            () = clock.sleep(pause) => Woken::Time,
        };
        match woken {
            Woken::Wish | Woken::Guest => {}
            Woken::Time if time.is_some() => {}
            Woken::Machine | Woken::Time => self.observe().await,
        }
    }
}

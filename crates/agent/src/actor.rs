//! One task per instance: look, plan, take the steps, look again. It owns the instance on this host;
//! others hold an [`InstanceShared`] and change nothing but the wish.
//!
//! Level-triggered: a change of intent, a word from the guest, the end of the VMM and a timer all do
//! the same, which is to wake it up.

mod room;

use crate::context::{Context, InstanceShared, attachment_spec, disk_path};
use crate::guest_session::{GuestSession, GuestState};
use crate::record::{HostRecord, sync_directory};
use crate::steps::{Effect, INTERRUPTED, StepScope, printable};
use crate::trace::{self, Change};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;
use warren_core::error::Failure;
use warren_core::instance::{Desired, Gone, InstanceIntent, InstanceStatus, NetworkChoice};
use warren_core::planner::{self, GivenUp, GuestSeen, Plan, RunWish, Seen, Step, Told};
use warren_core::ports::host_link::{LogQuery, LogSource};
use warren_core::ports::hypervisor::{HypervisorKind, ProcessIdentity, VmmSeen};
use warren_core::ports::network::Attachment;
use warren_core::ports::{Hypervisor, Presence};
use warren_core::restart::RestartStatus;
use warren_core::state::InstanceState;
use warren_core::{ErrorClass, PortError, Timestamp};
use warren_crashpoint::reached;

/// Everything is looked at anew this often, whatever has been heard.
const RESYNC: Duration = Duration::from_secs(60);
/// A failed step that may work later is tried again this many times before its run is given up.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between attempts of what is never given up: taking things away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
        };
        actor.recall_given_up();
        actor
    }

    fn now(&self) -> Timestamp {
        self.context.ports.clock.now()
    }

    fn recall_given_up(&mut self) {
        match &self.record.given_up {
            Some((run, failure)) if *run >= self.record.intent.run => {
                self.seen.given_up = GivenUp::Yes;
                self.failure = Some(failure.clone());
            }
            Some(_) | None => self.seen.given_up = GivenUp::No,
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
        self.recall_given_up();
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

    /// What must be on disk before the machine of a (re)start exists.
    fn begin_run(&mut self) {
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
            self.seen.ended = None;
            self.seen.started_at = None;
            self.seen.restart = self.record.restart;
            if changed {
                self.write_record();
            }
            reached("run.recorded");
        }
    }

    fn note_phase(&mut self, step: Step, took: Duration) {
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
            | Step::Resume
            | Step::ShutDownGuest
            | Step::RecordExit
            | Step::DestroyVmm
            | Step::ReleaseNetwork
            | Step::RemoveDisk
            | Step::RemoveDirectory => {}
        }
    }

    fn apply(&mut self, effect: Effect) {
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
                self.seen.guest = GuestSeen::Detached;
                self.seen.told = match self.seen.told {
                    Told::No { starts } => Told::No { starts: starts + 1 },
                    Told::Perhaps => Told::No { starts: 1 },
                };
            }
            Effect::Attached(session) => {
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
            Effect::Resumed => {
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

    /// Makes durable what was told already. The next process reads it in any case; a power failure ends the machine that
    /// it is about as well.
    fn settle_record(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            self.say_unwritten(sync_directory(&self.shared.home.directory));
        }
    }

    async fn failed(&mut self, step: Step, error: PortError) {
        if error.code != INTERRUPTED {
            let cause = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            tracing::warn!(instance = %self.record.intent.id, ?step, code = error.code, %error, cause, "step failed");
            self.failures += 1;
            let taking_away = matches!(
                step,
                Step::DestroyVmm
                    | Step::ReleaseNetwork
                    | Step::RemoveDisk
                    | Step::RemoveDirectory
                    | Step::RecordExit
            );
            // A guest that was ready once is never given up for a lost session; what is said of an earlier run is not
            // about this one.
            let ran = self.record.started_at.is_some() && self.process().is_some();
            let hopeless = error.class != ErrorClass::Retry || self.failures >= ATTEMPTS;
            let ended = error.code == "machine_ended";
            if !taking_away && !ran && hopeless && !ended {
                self.give_up(&error);
            } else if !ended {
                self.failure = Some(Failure::from(&error));
                let pause = RETRY_PAUSE
                    .saturating_mul(1 << self.failures.min(16))
                    .min(LONGEST_PAUSE);
                self.not_before = Some(self.context.ports.clock.monotonic() + pause);
            }
        }
        self.observe().await;
    }

    /// Whatever step noticed it, this is what happened; the console's last words say why.
    async fn machine_ended_early(&mut self) {
        let query = LogQuery {
            source: LogSource::Console,
            tail: Some(40),
            ..LogQuery::default()
        };
        let over = watch::channel(true).1;
        let words: Vec<String> = match self.shared.console_log.lines(query, over) {
            Ok(lines) => lines.map(|line| printable(&line.text)).collect().await,
            Err(error) => vec![error.to_string()],
        };
        let panic = words.iter().find_map(|line| {
            let start = line.find("Kernel panic")?;
            Some(line[start..].to_owned())
        });
        let last = words[words.len().saturating_sub(5)..].join(" | ");
        tracing::warn!(
            instance = %self.record.intent.id,
            panic,
            console = last,
            "the machine ended before its guest was ready"
        );
        self.failure = Some(machine_ended(panic.as_deref()));
        // The next start, if there is one, need not wait.
        self.not_before = None;
    }

    fn give_up(&mut self, error: &PortError) {
        let failure = Failure::from(error);
        self.record.given_up = Some((self.record.intent.run, failure.clone()));
        self.seen.given_up = GivenUp::Yes;
        self.failure = Some(failure);
        self.failures = 0;
        self.stopped_at = Some(self.now());
        self.write_record();
        reached("failure.recorded");
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

    fn state(&self, wish: RunWish) -> InstanceState {
        let since = self
            .record
            .started_at
            .unwrap_or(self.record.intent.created_at);
        match &self.seen.vmm {
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
                GuestSeen::Detached | GuestSeen::Attached if self.record.started_at.is_some() => {
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

    fn publish(&mut self, plan: &Plan) {
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

/// In the words of its kernel, where that had some.
fn machine_ended(panic: Option<&str>) -> Failure {
    let why = panic.map_or_else(String::new, |words| format!(" ({words})"));
    Failure {
        class: ErrorClass::Retry,
        code: "machine_ended".to_owned(),
        message: format!(
            "the machine ended before it was ready{why}: see its console with warren logs --source console"
        ),
    }
}

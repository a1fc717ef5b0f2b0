//! What the planner promises, for any intent and any sight, also sights that make no sense: a host
//! after a crash, a restore or somebody's `rm` makes little sense either.

use proptest::prelude::{
    BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};
use std::time::Duration;
use time::macros::datetime;
use warren_core::Timestamp;
use warren_core::id::{Handle, InstanceId};
use warren_core::image::ImageConfig;
use warren_core::instance::{Desired, Exit, InstanceIntent, InstanceSpec, NetworkChoice};
use warren_core::planner::{
    GivenUp, GuestSeen, Plan, RunWish, STARTS, Seen, Step, Told, plan, run_wish,
};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::{ProcessIdentity, Room, VmmSeen};
use warren_core::restart::{LONGEST_BACKOFF, RestartPolicy, RestartStatus, RestartWhen};
use warren_core::units::{ByteSize, MemoryMib};

const NOW: Timestamp = datetime!(2026-01-01 00:00 UTC);
/// How many looks it may take until nothing is left to do.
const ROUNDS: usize = 30;

fn process() -> ProcessIdentity {
    ProcessIdentity {
        pid: 4242,
        start_time: 1,
        boot_id: "boot".to_owned(),
    }
}

fn presence() -> impl Strategy<Value = Presence> + Clone {
    prop_oneof![
        Just(Presence::Present),
        Just(Presence::Partial),
        Just(Presence::Absent),
    ]
}

fn stalled(room: Room) -> VmmSeen {
    let process = process();
    VmmSeen::Stalled { process, room }
}

fn vmm() -> impl Strategy<Value = VmmSeen> {
    prop_oneof![
        Just(VmmSeen::Absent),
        Just(VmmSeen::NeverStarted),
        Just(VmmSeen::Dead),
        Just(VmmSeen::Running { process: process() }),
        Just(VmmSeen::Paused { process: process() }),
        Just(stalled(Room::Some)),
        Just(stalled(Room::None)),
        Just(VmmSeen::ShutDown { process: process() }),
    ]
}

/// Around now, long ago, and from a clock that was wrong.
fn moment() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        4 => (-1_000i64..1_000).prop_map(|seconds| NOW + time::Duration::seconds(seconds)),
        1 => (-40_000i64..40_000).prop_map(|days| NOW + time::Duration::days(days)),
    ]
}

fn exit() -> impl Strategy<Value = Exit> {
    let code = prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(137))];
    (code, moment()).prop_map(|(code, at)| Exit {
        code,
        message: None,
        at,
    })
}

fn guest() -> impl Strategy<Value = GuestSeen> {
    prop_oneof![
        Just(GuestSeen::Detached),
        Just(GuestSeen::Attached),
        Just(GuestSeen::Ready),
        exit().prop_map(GuestSeen::Exited),
    ]
}

fn sight() -> BoxedStrategy<Seen> {
    let things = (presence(), presence(), presence(), presence());
    let history = (
        proptest::option::of((0..4u64, exit())),
        proptest::option::of(moment()),
        prop_oneof![0..6u32, Just(u32::MAX)],
        prop_oneof![4 => Just(GivenUp::No), 1 => Just(GivenUp::Yes)],
        prop_oneof![
            1 => Just(Told::Perhaps),
            1 => (0..6u32).prop_map(|starts| Told::No { starts }),
        ],
    );
    (things, vmm(), guest(), history)
        .prop_map(|((directory, image, disk, network), vmm, guest, history)| {
            let (ended, started_at, attempts, given_up, told) = history;
            Seen {
                directory,
                image,
                disk,
                network,
                vmm,
                guest,
                ended,
                started_at,
                restart: RestartStatus {
                    attempts,
                    ..RestartStatus::default()
                },
                given_up,
                told,
            }
        })
        .boxed()
}

fn intent() -> impl Strategy<Value = InstanceIntent> {
    let desired = prop_oneof![
        Just(Desired::Running),
        Just(Desired::Paused),
        Just(Desired::Stopped),
        Just(Desired::Deleted),
    ];
    let network = prop_oneof![Just(NetworkChoice::Default), Just(NetworkChoice::Disabled)];
    let when = prop_oneof![
        Just(RestartWhen::Never),
        Just(RestartWhen::OnFailure),
        Just(RestartWhen::Always),
    ];
    let policy = (
        when,
        prop_oneof![0..5_000u64, Just(u64::MAX)],
        0..4u32,
        prop_oneof![0..700_000u64, Just(u64::MAX)],
    )
        .prop_map(
            |(when, backoff_ms, max_attempts, stable_after_ms)| RestartPolicy {
                when,
                backoff_ms,
                max_attempts,
                stable_after_ms,
            },
        );
    (desired, 0..4u64, network, policy).prop_map(|(desired, run, network, restart)| {
        InstanceIntent {
            id: InstanceId::from_entropy([1; 8]),
            handle: Handle::from_entropy([1; 5]),
            tenant: "default".to_owned(),
            spec: InstanceSpec {
                name: "i".to_owned(),
                image: "i".to_owned(),
                vcpus: 1,
                memory: MemoryMib(64),
                memory_max: MemoryMib(64),
                disk: ByteSize(16 << 20),
                env: Default::default(),
                entrypoint: None,
                cmd: None,
                working_dir: None,
                user: None,
                hostname: None,
                ssh_keys: Vec::new(),
                labels: Default::default(),
                ports: vec![],
                network,
                restart,
                hypervisor: Default::default(),
                terminal: Default::default(),
                stdin: Default::default(),
                removal: Default::default(),
                timeout_seconds: None,
                carried: Default::default(),
            },
            slug: "i".to_owned(),
            image_digest: "sha256:0".to_owned(),
            image_config: ImageConfig::default(),
            generation: 1,
            desired,
            run,
            address: None,
            stop_grace_seconds: 1,
            created_at: NOW,
        }
    })
}

/// A host on which each step does what its documentation says.
#[derive(Debug)]
struct Host {
    seen: Seen,
    now: Timestamp,
    /// Runs that were started, by the attempt they were started as.
    started: Vec<RunWish>,
    taken: Vec<Step>,
}

impl Host {
    fn new(seen: Seen) -> Self {
        Host {
            seen,
            now: NOW,
            started: Vec::new(),
            taken: Vec::new(),
        }
    }

    fn carry_out(&mut self, intent: &InstanceIntent, step: Step) {
        let wish = run_wish(intent, &self.seen, self.now);
        self.taken.push(step);
        let seen = &mut self.seen;
        match step {
            Step::RecordIntent => seen.directory = Presence::Present,
            Step::EnsureImage => seen.image = Presence::Present,
            Step::EnsureDisk => seen.disk = Presence::Present,
            Step::EnsureNetwork => seen.network = Presence::Present,
            Step::StartVmm => {
                seen.vmm = VmmSeen::Running { process: process() };
                seen.guest = GuestSeen::Detached;
                seen.started_at = None;
                if let RunWish::Run { attempt } = wish {
                    seen.restart.attempts = attempt;
                }
                // A new attempt of the same run has not ended; the agent forgets how the last one did.
                seen.ended = None;
                seen.told = match seen.told {
                    Told::No { starts } => Told::No {
                        starts: starts.saturating_add(1),
                    },
                    Told::Perhaps => Told::No { starts: 1 },
                };
                self.started.push(wish);
            }
            Step::AttachGuest => seen.guest = GuestSeen::Attached,
            Step::BootGuest => {
                seen.told = Told::Perhaps;
                seen.guest = GuestSeen::Ready;
                seen.started_at = Some(self.now);
            }
            Step::Pause => seen.vmm = VmmSeen::Paused { process: process() },
            Step::Resume => seen.vmm = VmmSeen::Running { process: process() },
            Step::ShutDownGuest => {
                seen.guest = GuestSeen::Exited(Exit {
                    code: Some(143),
                    message: None,
                    at: self.now,
                });
            }
            Step::RecordExit => {
                let exit = match &seen.guest {
                    GuestSeen::Exited(exit) => exit.clone(),
                    GuestSeen::Detached | GuestSeen::Attached | GuestSeen::Ready => Exit {
                        code: None,
                        message: None,
                        at: self.now,
                    },
                };
                seen.ended = Some((intent.run, exit));
                // What was said is said: the session is over.
                seen.guest = GuestSeen::Detached;
                seen.told = Told::Perhaps;
            }
            Step::DestroyVmm => {
                seen.vmm = VmmSeen::Absent;
                seen.guest = GuestSeen::Detached;
            }
            Step::ReleaseNetwork => seen.network = Presence::Absent,
            Step::RemoveDisk => seen.disk = Presence::Absent,
            Step::RemoveDirectory => {
                seen.directory = Presence::Absent;
                seen.disk = Presence::Absent;
            }
        }
    }

    /// Until there is nothing to do. `fails` tells which steps, by their count, do nothing.
    fn settle(&mut self, intent: &InstanceIntent, fails: &[bool]) -> Option<Plan> {
        let mut count = 0;
        let failures = fails.iter().filter(|fails| **fails).count();
        for _ in 0..ROUNDS + failures {
            match plan(intent, &self.seen, self.now) {
                Plan::Do(steps) => {
                    for step in steps {
                        if !fails.get(count).copied().unwrap_or(false) {
                            self.carry_out(intent, step);
                        }
                        count += 1;
                    }
                }
                end @ (Plan::Settled | Plan::WaitUntil { .. } | Plan::WaitForRoom) => {
                    return Some(end);
                }
            }
        }
        None
    }
}

fn is_running(vmm: &VmmSeen) -> bool {
    matches!(vmm, VmmSeen::Running { .. })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_plan_is_total_and_asks_each_thing_once(
        intent in intent(), seen in sight(), now in moment(),
    ) {
        match plan(&intent, &seen, now) {
            Plan::Do(steps) => {
                let mut once = steps.clone();
                once.sort();
                once.dedup();
                prop_assert!(!steps.is_empty() && once.len() == steps.len(), "{:?}", steps);
                prop_assert!(steps.iter().all(|step| Step::ALL.contains(step)));
            }
            Plan::WaitUntil { at, attempt } => {
                prop_assert!(at > now && at - now <= LONGEST_BACKOFF && attempt > 0);
            }
            Plan::WaitForRoom => prop_assert_eq!(seen.vmm, stalled(Room::None)),
            Plan::Settled => {}
        }
    }

    #[test]
    fn a_guest_without_room_waits_and_goes_on_when_there_is_some(
        mut intent in intent(), mut seen in sight(),
    ) {
        intent.desired = Desired::Running;
        seen.given_up = GivenUp::No;
        seen.ended = None;
        seen.directory = Presence::Present;
        seen.guest = GuestSeen::Ready;
        seen.vmm = stalled(Room::None);
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::WaitForRoom));
        prop_assert!(host.taken.is_empty(), "{:?}", host.taken);
        host.seen.vmm = stalled(Room::Some);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        prop_assert!(is_running(&host.seen.vmm) && host.started.is_empty(), "{:?}", host);
        prop_assert_eq!(host.taken.first(), Some(&Step::Resume));
    }

    #[test]
    fn stop_and_delete_do_not_wait_for_room(
        mut intent in intent(), mut seen in sight(), desired in prop_oneof![
            Just(Desired::Stopped), Just(Desired::Deleted)
        ],
    ) {
        intent.desired = desired;
        seen.vmm = stalled(Room::None);
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        prop_assert_eq!(host.seen.vmm, VmmSeen::Absent);
        prop_assert!(!host.taken.contains(&Step::Resume));
    }

    #[test]
    fn it_ends_and_then_asks_for_nothing(
        intent in intent(),
        seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        let mut host = Host::new(seen);
        let Some(end) = host.settle(&intent, &fails) else {
            return Err(proptest::test_runner::TestCaseError::fail(format!("no end: {host:?}")));
        };
        prop_assert_eq!(plan(&intent, &host.seen, host.now), end);
    }

    #[test]
    fn after_a_wait_it_goes_on(intent in intent(), seen in sight()) {
        let mut host = Host::new(seen);
        if let Some(Plan::WaitUntil { at, .. }) = host.settle(&intent, &[]) {
            prop_assert!(host.seen.vmm == VmmSeen::Absent && host.seen.network == Presence::Absent);
            host.now = at;
            prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
            prop_assert!(host.seen.vmm != VmmSeen::Absent, "{:?}", host);
        }
    }

    #[test]
    fn of_what_is_deleted_nothing_is_left(
        mut intent in intent(),
        seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        intent.desired = Desired::Deleted;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &fails), Some(Plan::Settled));
        let left = (&host.seen.vmm, host.seen.network, host.seen.disk, host.seen.directory);
        let absent = Presence::Absent;
        prop_assert_eq!(left, (&VmmSeen::Absent, absent, absent, absent));
    }

    #[test]
    fn delete_asks_nobody_and_makes_nothing(mut intent in intent(), seen in sight()) {
        intent.desired = Desired::Deleted;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        for step in host.taken {
            prop_assert!(
                matches!(
                    step,
                    Step::DestroyVmm
                        | Step::ReleaseNetwork
                        | Step::RemoveDisk
                        | Step::RemoveDirectory
                ),
                "{:?}", step
            );
        }
    }

    #[test]
    fn the_directory_goes_last(mut intent in intent(), seen in sight()) {
        intent.desired = Desired::Deleted;
        if let Plan::Do(steps) = plan(&intent, &seen, NOW) && steps.contains(&Step::RemoveDirectory)
        {
            // While anything else is left, the directory is what names it.
            prop_assert_eq!(steps, vec![Step::RemoveDirectory]);
            prop_assert_eq!(seen.vmm, VmmSeen::Absent);
            prop_assert_eq!((seen.network, seen.disk), (Presence::Absent, Presence::Absent));
        }
    }

    #[test]
    fn what_is_stopped_keeps_its_disk_and_nothing_that_runs(
        mut intent in intent(),
        seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        intent.desired = Desired::Stopped;
        let disk = seen.disk;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &fails), Some(Plan::Settled));
        prop_assert_eq!(&host.seen.vmm, &VmmSeen::Absent);
        prop_assert_eq!((host.seen.network, host.seen.disk), (Presence::Absent, disk));
        prop_assert!(host.started.is_empty());
    }

    #[test]
    fn what_should_run_and_has_not_ended_runs(
        mut intent in intent(),
        mut seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        intent.desired = Desired::Running;
        seen.given_up = GivenUp::No;
        seen.ended = seen.ended.filter(|(run, _)| *run < intent.run);
        // Its machine is not one whose workload has ended, seen or unseen.
        if matches!(seen.guest, GuestSeen::Exited(_)) {
            seen.guest = GuestSeen::Detached;
        }
        if matches!(seen.vmm, VmmSeen::Dead | VmmSeen::ShutDown { .. }) {
            seen.vmm = VmmSeen::Absent;
        }
        if seen.vmm == stalled(Room::None) {
            seen.vmm = stalled(Room::Some);
        }
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &fails), Some(Plan::Settled));
        prop_assert!(is_running(&host.seen.vmm));
        prop_assert_eq!(&host.seen.guest, &GuestSeen::Ready);
        prop_assert_eq!(host.seen.directory, Presence::Present);
        if intent.spec.network == NetworkChoice::Default {
            prop_assert_eq!(host.seen.network, Presence::Present);
        }
    }

    #[test]
    fn what_should_be_paused_and_has_not_ended_is_paused(mut intent in intent(), mut seen in sight()) {
        intent.desired = Desired::Paused;
        seen.given_up = GivenUp::No;
        seen.ended = None;
        if !matches!(seen.vmm, VmmSeen::Running { .. } | VmmSeen::Paused { .. }) {
            seen.vmm = VmmSeen::Absent;
        }
        if matches!(seen.guest, GuestSeen::Exited(_)) {
            seen.guest = GuestSeen::Detached;
        }
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        let paused = matches!(host.seen.vmm, VmmSeen::Paused { .. });
        prop_assert!(paused, "{:?}", host);
    }

    #[test]
    fn an_ended_run_starts_again_only_by_policy_or_as_a_new_run(
        intent in intent(),
        mut seen in sight(),
        exit in exit(),
        ahead in 0..2u64,
    ) {
        // A machine that still runs has a run that has not ended.
        if is_running(&seen.vmm)
            || matches!(seen.vmm, VmmSeen::Paused { .. } | VmmSeen::Stalled { .. })
        {
            seen.vmm = VmmSeen::Dead;
        }
        seen.guest = GuestSeen::Detached;
        let code = exit.code;
        seen.ended = Some((intent.run + ahead, exit));
        let attempts = seen.restart.attempts;
        let mut host = Host::new(seen);
        let mut end = host.settle(&intent, &[]);
        if let Some(Plan::WaitUntil { at, .. }) = end {
            host.now = at;
            end = host.settle(&intent, &[]);
        }
        prop_assert_eq!(end, Some(Plan::Settled));
        let policy = intent.spec.restart;
        let may = match policy.when {
            RestartWhen::Never => false,
            RestartWhen::OnFailure => code != Some(0),
            RestartWhen::Always => true,
        } && matches!(intent.desired, Desired::Running | Desired::Paused);
        prop_assert!(host.started.len() <= usize::from(may), "{:?}", host);
        if let [RunWish::Run { attempt }] = host.started[..] {
            prop_assert!(attempt == 1 || attempt == attempts.saturating_add(1), "{}", attempt);
            prop_assert!(policy.max_attempts == 0 || attempt <= policy.max_attempts);
        }
    }

    #[test]
    fn a_machine_that_ends_before_its_guest_is_told_anything_is_started_again_a_few_times(
        mut intent in intent(), mut seen in sight()
    ) {
        intent.desired = Desired::Running;
        intent.spec.restart.when = RestartWhen::Never;
        intent.run = 1;
        seen.vmm = VmmSeen::Absent;
        seen.guest = GuestSeen::Detached;
        seen.ended = None;
        seen.given_up = GivenUp::No;
        seen.told = Told::Perhaps;
        let mut host = Host::new(seen);
        for _ in 0..ROUNDS {
            let Plan::Do(steps) = plan(&intent, &host.seen, host.now) else { break };
            for step in steps {
                if step == Step::AttachGuest {
                    host.seen.vmm = VmmSeen::Dead;
                } else {
                    host.carry_out(&intent, step);
                }
            }
        }
        prop_assert_eq!(host.started.len(), STARTS as usize);
        prop_assert_eq!(plan(&intent, &host.seen, host.now), Plan::Settled);
        prop_assert!(host.seen.ended.is_some());
    }

    #[test]
    fn an_end_is_noted_before_its_machine_goes(intent in intent(), mut seen in sight(), exit in exit()) {
        // Killed after any step, the next look must not run it again.
        seen.guest = GuestSeen::Exited(exit);
        if intent.desired != Desired::Deleted {
            prop_assert_eq!(plan(&intent, &seen, NOW), Plan::Do(vec![Step::RecordExit]));
        }
    }

    #[test]
    fn what_was_given_up_is_not_tried_again(
        intent in intent(),
        mut seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        // Whatever the restart policy says, and however the run before ended.
        seen.given_up = GivenUp::Yes;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &fails), Some(Plan::Settled));
        prop_assert!(host.started.is_empty(), "{:?}", host);
        prop_assert_eq!(&host.seen.vmm, &VmmSeen::Absent);
        prop_assert_eq!(host.seen.network, Presence::Absent);
    }
}

#[test]
fn a_clock_set_back_does_not_delay_a_restart_for_years() {
    let at = NOW + Duration::from_secs(10 * 365 * 86_400);
    let seen = Seen {
        directory: Presence::Present,
        image: Presence::Present,
        disk: Presence::Present,
        network: Presence::Absent,
        vmm: VmmSeen::Absent,
        guest: GuestSeen::Detached,
        ended: Some((
            1,
            Exit {
                code: Some(1),
                message: None,
                at,
            },
        )),
        started_at: None,
        restart: RestartStatus::default(),
        given_up: GivenUp::No,
        told: Told::Perhaps,
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = intent().new_tree(&mut runner).map(|tree| {
        let mut intent = proptest::strategy::ValueTree::current(&tree);
        intent.desired = Desired::Running;
        intent.run = 1;
        intent.spec.restart = RestartPolicy {
            when: RestartWhen::Always,
            ..RestartPolicy::default()
        };
        run_wish(&intent, &seen, NOW)
    });
    assert_eq!(tree, Ok(RunWish::Run { attempt: 1 }));
}

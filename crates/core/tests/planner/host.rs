//! Any intent, any sight of a host, and a host on which each step does what its documentation says.

use proptest::prelude::{BoxedStrategy, Just, Strategy, prop_oneof};
use time::macros::datetime;
use warren_core::Timestamp;
use warren_core::id::{Handle, InstanceId};
use warren_core::image::ImageConfig;
use warren_core::instance::{Desired, Exit, InstanceIntent, InstanceSpec, NetworkChoice};
use warren_core::planner::{
    GivenUp, GuestSeen, Plan, Reach, Refused, RunWish, Seen, Step, Told, plan, run_wish,
};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::{ProcessIdentity, Room, VmmSeen};
use warren_core::restart::{RestartPolicy, RestartStatus, RestartWhen};
use warren_core::units::{ByteSize, MemoryMib};

pub(crate) const NOW: Timestamp = datetime!(2026-01-01 00:00 UTC);
/// How many looks it may take until nothing is left to do.
pub(crate) const ROUNDS: usize = 30;

pub(crate) fn process() -> ProcessIdentity {
    ProcessIdentity {
        pid: 4242,
        start_time: 1,
        boot_id: "boot".to_owned(),
    }
}

pub(crate) fn presence() -> impl Strategy<Value = Presence> + Clone {
    prop_oneof![
        Just(Presence::Present),
        Just(Presence::Partial),
        Just(Presence::Absent),
    ]
}

pub(crate) fn stalled(room: Room) -> VmmSeen {
    let process = process();
    VmmSeen::Stalled { process, room }
}

pub(crate) fn vmm() -> impl Strategy<Value = VmmSeen> {
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
pub(crate) fn moment() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        4 => (-1_000i64..1_000).prop_map(|seconds| NOW + time::Duration::seconds(seconds)),
        1 => (-40_000i64..40_000).prop_map(|days| NOW + time::Duration::days(days)),
    ]
}

pub(crate) fn exit() -> impl Strategy<Value = Exit> {
    let code = prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), Just(Some(137))];
    (code, moment()).prop_map(|(code, at)| Exit {
        code,
        message: None,
        at,
    })
}

pub(crate) fn guest() -> impl Strategy<Value = GuestSeen> {
    prop_oneof![
        Just(GuestSeen::Detached),
        Just(GuestSeen::Attached),
        Just(GuestSeen::Ready),
        exit().prop_map(GuestSeen::Exited),
    ]
}

pub(crate) fn sight() -> BoxedStrategy<Seen> {
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
    let standby = (
        presence(),
        prop_oneof![3 => Just(Refused::No), 1 => Just(Refused::Yes)],
        prop_oneof![Just(Reach::Unknown), Just(Reach::Silent)],
    );
    (things, vmm(), guest(), history, standby)
        .prop_map(
            |((directory, image, disk, network), vmm, guest, history, (saved, refused, reach))| {
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
                    saved,
                    refused,
                    reach,
                }
            },
        )
        .boxed()
}

pub(crate) fn intent() -> impl Strategy<Value = InstanceIntent> {
    let desired = prop_oneof![
        Just(Desired::Running),
        Just(Desired::Paused),
        Just(Desired::Standby),
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
pub(crate) struct Host {
    pub(crate) seen: Seen,
    pub(crate) now: Timestamp,
    /// Runs that were started, by the attempt they were started as.
    pub(crate) started: Vec<RunWish>,
    pub(crate) taken: Vec<Step>,
}

impl Host {
    pub(crate) fn new(seen: Seen) -> Self {
        Host {
            seen,
            now: NOW,
            started: Vec::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) fn carry_out(&mut self, intent: &InstanceIntent, step: Step) {
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
            // One that was ready says so at once.
            Step::AttachGuest if seen.started_at.is_some() => seen.guest = GuestSeen::Ready,
            Step::AttachGuest => seen.guest = GuestSeen::Attached,
            Step::BootGuest => {
                seen.told = Told::Perhaps;
                seen.guest = GuestSeen::Ready;
                seen.started_at = Some(self.now);
            }
            Step::Pause => seen.vmm = VmmSeen::Paused { process: process() },
            Step::SaveMachine => seen.saved = Presence::Present,
            Step::RestoreVmm => {
                seen.vmm = VmmSeen::Paused { process: process() };
                seen.guest = GuestSeen::Detached;
            }
            Step::Resume => {
                seen.saved = Presence::Absent;
                seen.vmm = VmmSeen::Running { process: process() };
            }
            Step::RemoveSaved => seen.saved = Presence::Absent,
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
                seen.saved = Presence::Absent;
            }
        }
    }

    /// Until there is nothing to do. `fails` tells which steps, by their count, do nothing.
    pub(crate) fn settle(&mut self, intent: &InstanceIntent, fails: &[bool]) -> Option<Plan> {
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

pub(crate) fn is_running(vmm: &VmmSeen) -> bool {
    matches!(vmm, VmmSeen::Running { .. })
}

//! What the planner promises, for any intent and any sight, also sights that make no sense: a host
//! after a crash, a restore or somebody's `rm` makes little sense either.

mod host;
mod standby;

use host::{Host, NOW, ROUNDS, exit, intent, is_running, moment, process, sight, stalled};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use std::time::Duration;
use warren_core::instance::{Desired, Exit, NetworkChoice};
use warren_core::planner::{
    GivenUp, GuestSeen, Plan, Reach, Refused, RunWish, STARTS, Seen, Step, Told, goal, plan,
    run_wish,
};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::{Room, VmmSeen};
use warren_core::restart::{LONGEST_BACKOFF, RestartPolicy, RestartStatus, RestartWhen};

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
        seen.refused = Refused::No;
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
                        | Step::RemoveSaved
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
            prop_assert_eq!(
                (seen.network, seen.disk, seen.saved),
                (Presence::Absent, Presence::Absent, Presence::Absent)
            );
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
    fn a_workload_that_runs_is_asked_to_end_also_by_who_has_not_talked_to_it_yet(
        mut intent in intent(), mut seen in sight(), detached in any::<bool>(),
    ) {
        intent.desired = Desired::Stopped;
        seen.vmm = VmmSeen::Running { process: process() };
        seen.guest = if detached { GuestSeen::Detached } else { GuestSeen::Ready };
        seen.started_at = Some(NOW);
        seen.ended = None;
        seen.saved = Presence::Absent;
        let silent = detached && seen.reach == Reach::Silent;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        prop_assert_eq!(host.taken.contains(&Step::ShutDownGuest), !silent, "{:?}", host.taken);
    }

    #[test]
    fn what_should_run_and_has_not_ended_runs(
        mut intent in intent(),
        mut seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        intent.desired = Desired::Running;
        seen.given_up = GivenUp::No;
        seen.refused = Refused::No;
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
        seen.refused = Refused::No;
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
        } && matches!(goal(&intent, &host.seen), Desired::Running | Desired::Paused);
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
        seen.saved = Presence::Absent;
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
        saved: Presence::Absent,
        refused: Refused::No,
        reach: Reach::Unknown,
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

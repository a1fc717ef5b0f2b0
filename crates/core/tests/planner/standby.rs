//! Into standby and back: the very machine, or all as it was before.

use crate::host::{Host, intent, is_running, process, sight};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use warren_core::instance::Desired;
use warren_core::planner::{GivenUp, GuestSeen, Plan, Refused, Step};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::VmmSeen;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_put_into_standby_is_saved_and_takes_nothing_but_its_disk(
        mut intent in intent(),
        mut seen in sight(),
        fails in proptest::collection::vec(any::<bool>(), 0..25),
    ) {
        intent.desired = Desired::Standby;
        let seen = {
            seen.refused = Refused::No;
            seen.given_up = GivenUp::No;
            seen.ended = seen.ended.filter(|(run, _)| *run < intent.run);
            if !matches!(seen.vmm, VmmSeen::Running { .. } | VmmSeen::Paused { .. }) {
                seen.vmm = VmmSeen::Absent;
                seen.saved = Presence::Present;
            }
            if matches!(seen.guest, GuestSeen::Exited(_)) {
                seen.guest = GuestSeen::Ready;
            }
            seen
        };
        let disk = seen.disk;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &fails), Some(Plan::Settled));
        prop_assert_eq!(&host.seen.vmm, &VmmSeen::Absent);
        let left = (host.seen.saved, host.seen.network, host.seen.disk);
        prop_assert_eq!(left, (Presence::Present, Presence::Absent, disk));
        prop_assert!(host.started.is_empty() && host.seen.ended.is_none_or(|(run, _)| run < intent.run));
        // And back: the very machine, not another one.
        host.seen.given_up = GivenUp::No;
        intent.desired = Desired::Running;
        host.seen.ended = None;
        host.taken.clear();
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        prop_assert!(is_running(&host.seen.vmm) && host.started.is_empty(), "{:?}", host);
        prop_assert_eq!(host.seen.saved, Presence::Absent);
        prop_assert!(host.taken.contains(&Step::RestoreVmm));
    }

    #[test]
    fn a_standby_that_cannot_be_had_leaves_what_runs_running(mut intent in intent(), mut seen in sight()) {
        intent.desired = Desired::Standby;
        seen.refused = Refused::Yes;
        seen.given_up = GivenUp::No;
        seen.ended = None;
        seen.guest = GuestSeen::Ready;
        seen.saved = Presence::Absent;
        seen.vmm = VmmSeen::Paused { process: process() };
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        prop_assert!(is_running(&host.seen.vmm) && host.started.is_empty(), "{:?}", host);
    }

    #[test]
    fn a_restore_that_cannot_be_had_keeps_what_was_saved(mut intent in intent(), mut seen in sight()) {
        intent.desired = Desired::Running;
        seen.refused = Refused::Yes;
        seen.ended = None;
        seen.guest = GuestSeen::Detached;
        seen.saved = Presence::Present;
        seen.vmm = VmmSeen::Dead;
        let mut host = Host::new(seen);
        prop_assert_eq!(host.settle(&intent, &[]), Some(Plan::Settled));
        let left = (&host.seen.vmm, host.seen.saved, host.seen.network);
        prop_assert_eq!(left, (&VmmSeen::Absent, Presence::Present, Presence::Absent));
    }
}

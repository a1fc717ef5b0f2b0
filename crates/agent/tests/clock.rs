//! Clocks that are moved (reliability: nothing is reaped).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{
    Kernel, TurnClock, TurnDisks, TurnMachines, TurnNetwork, Turns, installation, intent,
};
use warren_agent::{Agent, AgentConfig, AgentLink, Ports, SealKey};
use warren_core::instance::Desired;
use warren_core::ports::HostLink;
use warren_image::{ImageStore, Options};

#[tokio::test]
async fn a_clock_moved_by_an_hour_or_ten_years_takes_nothing_away_that_runs() {
    let place = tempfile::tempdir().unwrap();
    let turns = Turns::new(1);
    let kernel = Arc::new(Mutex::new(Kernel::default()));
    let machines = TurnMachines::new(&turns);
    let clock = Arc::new(TurnClock::new(&turns));
    let store = Arc::new(ImageStore::open(place.path(), Options::default()).unwrap());
    let ports = Ports {
        hypervisors: vec![machines.clone()],
        images: Arc::new(TurnDisks(Arc::clone(&turns))),
        registry: store.clone(),
        outlet: store.clone(),
        commits: store,
        volumes: Arc::new(TurnDisks(Arc::clone(&turns))),
        network: Arc::new(TurnNetwork {
            turns: Arc::clone(&turns),
            kernel: Arc::clone(&kernel),
        }),
        clock: clock.clone(),
    };
    let config = AgentConfig {
        data: place.path().to_owned(),
        instances: place.path().join("instances"),
        set_aside: place.path().join("set-aside"),
        installation: installation(),
        seal: SealKey::new(&[7; 32]),
        unusable: Vec::new(),
    };
    let link = AgentLink(Agent::start(config, ports).unwrap());
    link.sync(Vec::new()).await.unwrap();
    for number in 0..3 {
        link.apply(intent(number, 1, Desired::Running))
            .await
            .unwrap();
    }
    let running = || machines.running.lock().unwrap().clone();
    while running().len() < 3 {
        tokio::task::yield_now().await;
    }
    let before = running();
    for moved in [
        time::Duration::hours(1),
        time::Duration::hours(-1),
        time::Duration::days(3653),
        time::Duration::days(-3653),
        time::Duration::ZERO,
    ] {
        *clock.moved.lock().unwrap() = moved;
        // Long enough for many looks at everything, and many sweeps.
        let begun = *clock.passed.lock().unwrap();
        while *clock.passed.lock().unwrap() < begun + Duration::from_secs(1800) {
            tokio::task::yield_now().await;
        }
        assert_eq!(running(), before, "{moved}");
        let kernel = kernel.lock().unwrap();
        assert_eq!((kernel.taps.len(), kernel.swept.len()), (3, 0), "{moved}");
    }
}

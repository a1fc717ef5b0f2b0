//! The sweep against creates and deletes in flight (reliability: nothing live is swept), in 1,000 interleavings.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use futures::StreamExt;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex};
use support::{
    Kernel, TurnClock, TurnDisks, TurnMachines, TurnNetwork, Turns, installation, intent,
};
use warren_agent::{Agent, AgentConfig, AgentLink, Ports, SealKey};
use warren_core::Handle;
use warren_core::instance::{Desired, Gone};
use warren_core::ports::HostLink;
use warren_image::{ImageStore, Options};

const INTERLEAVINGS: u64 = 1000;
const INSTANCES: u8 = 3;
/// What an earlier process left.
const LEAK: u8 = 200;

/// Three instances are made and taken away while the sweep looks again and again; gives what happened.
async fn interleave(seed: u64, place: &Path, store: &Arc<ImageStore>) -> Vec<String> {
    let turns = Turns::new(seed);
    let kernel = Arc::new(Mutex::new(Kernel::default()));
    let leak = Handle::from_entropy([LEAK; 5]);
    kernel.lock().unwrap().taps.insert(leak.clone());
    let ports = Ports {
        hypervisors: vec![TurnMachines::new(&turns)],
        images: Arc::new(TurnDisks(Arc::clone(&turns))),
        registry: store.clone(),
        outlet: store.clone(),
        commits: store.clone(),
        volumes: Arc::new(TurnDisks(Arc::clone(&turns))),
        network: Arc::new(TurnNetwork {
            turns: Arc::clone(&turns),
            kernel: Arc::clone(&kernel),
        }),
        clock: Arc::new(TurnClock::new(&turns)),
    };
    let config = AgentConfig {
        data: place.to_owned(),
        instances: place.join("instances"),
        set_aside: place.join("set-aside"),
        installation: installation(),
        seal: SealKey::new(&[7; 32]),
        unusable: Vec::new(),
    };
    let link = AgentLink(Agent::start(config, ports).unwrap());
    let mut statuses = link.statuses().await.unwrap();
    link.sync(Vec::new()).await.unwrap();
    let lives = (0..INSTANCES).map(|number| {
        let (link, turns, kernel) = (&link, &turns, &kernel);
        async move {
            turns.pass().await;
            let handle = Handle::from_entropy([number; 5]);
            kernel.lock().unwrap().wanted.insert(handle.clone());
            link.apply(intent(number, 1, Desired::Running))
                .await
                .unwrap();
            for _ in 0..turns.below(40) {
                turns.pass().await;
            }
            kernel.lock().unwrap().wanted.remove(&handle);
            link.apply(intent(number, 2, Desired::Deleted))
                .await
                .unwrap();
        }
    });
    let all_gone = async {
        let mut left: BTreeSet<String> =
            (0..INSTANCES).map(|number| format!("i{number}")).collect();
        while !left.is_empty() {
            let status = statuses.next().await.unwrap();
            if status.gone == Gone::Yes {
                left.remove(status.id.as_str());
            }
        }
    };
    futures::join!(futures::future::join_all(lives), all_gone);
    // However it went, a leak that is one is found within two more looks.
    while kernel.lock().unwrap().taps.contains(&leak) {
        tokio::task::yield_now().await;
    }
    let kernel = kernel.lock().unwrap();
    assert_eq!(kernel.wronged, [], "seed {seed}: {:#?}", kernel.history);
    assert_eq!(kernel.swept.first(), Some(&leak), "seed {seed}");
    assert_eq!(kernel.taps, BTreeSet::new(), "seed {seed}");
    kernel.history.clone()
}

#[test]
fn nothing_live_is_swept_in_a_thousand_interleavings_with_creates_and_deletes() {
    // In memory where there is a place: every instance's record is synced.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    // Nobody asks it for anything.
    let store = Arc::new(ImageStore::open(place.path(), Options::default()).unwrap());
    let mut histories = BTreeSet::new();
    for seed in 0..INTERLEAVINGS {
        let here = place.path().join(seed.to_string());
        // One thread, no timers, no kernel: the seed alone decides.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let history = runtime.block_on(interleave(seed, &here, &store));
        if seed < 10 {
            let again = place.path().join(format!("{seed}-again"));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            assert_eq!(
                runtime.block_on(interleave(seed, &again, &store)),
                history,
                "a seed replays"
            );
        }
        let mut hash = DefaultHasher::new();
        history.hash(&mut hash);
        histories.insert(hash.finish());
    }
    println!(
        "{INTERLEAVINGS} seeds gave {} different interleavings",
        histories.len()
    );
    assert!(histories.len() > 900, "the seeds do not make a difference");
}

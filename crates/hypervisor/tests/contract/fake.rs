//! The fake against the contract, and what only the fake can do.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use crate::suite::{self, Place, Subject};
use std::io::Read;
use std::sync::{Arc, Mutex};
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{Hypervisor, ProcessIdentity, VmmSeen};
use warren_hypervisor::fake::{Failure, Fake, GuestLine, GuestSide};

/// Guests that hold their ends open and do nothing.
struct Subjects {
    guests: Arc<Mutex<Vec<GuestSide>>>,
}

impl Subjects {
    fn new() -> Self {
        Subjects {
            guests: Arc::default(),
        }
    }

    fn fake(&self) -> Fake {
        let guests = self.guests.clone();
        Fake::new(Arc::new(move |side| guests.lock().unwrap().push(side)))
    }
}

impl Subject for Subjects {
    fn driver(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.fake())
    }

    fn kill(&self, home: &InstanceHome, _process: &ProcessIdentity) {
        Fake::die(home).unwrap();
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    suite::all(&Subjects::new()).await;
}

#[tokio::test]
async fn a_guest_that_powers_off_ends_its_machine_and_its_lines() {
    let subjects = Subjects::new();
    let fake = subjects.fake();
    let place = Place::new();
    let process = fake.start(&place.machine).await.unwrap();
    let channel = fake.open_channel(place.home()).await.unwrap();
    let side = subjects.guests.lock().unwrap().pop().unwrap();
    assert_eq!(side.line, GuestLine::Channel);
    assert_eq!(side.machine, place.machine);
    assert_eq!(side.process, process);
    side.power.off();
    fake.wait_exit(place.home()).await.unwrap();
    assert_eq!(fake.observe(place.home()).await.unwrap(), VmmSeen::Dead);
    let mut channel = std::os::unix::net::UnixStream::from(channel);
    assert_eq!(channel.read(&mut [0; 8]).unwrap(), 0, "end of stream");

    let next = fake.start(&place.machine).await.unwrap();
    side.power.off();
    assert_eq!(
        fake.observe(place.home()).await.unwrap(),
        VmmSeen::Running { process: next },
        "an old guest does not end a new machine"
    );
}

#[tokio::test]
async fn failures_happen_when_they_were_asked_for() {
    let fake = Subjects::new().fake();
    let place = Place::new();
    fake.inject(Failure::Starts(2));
    fake.inject(Failure::DiesAtStart(1));
    for _ in 0..2 {
        assert!(fake.start(&place.machine).await.is_err());
        assert_eq!(fake.observe(place.home()).await.unwrap(), VmmSeen::Absent);
    }
    fake.start(&place.machine).await.unwrap();
    assert_eq!(fake.observe(place.home()).await.unwrap(), VmmSeen::Dead);
    fake.start(&place.machine).await.unwrap();
    assert!(matches!(
        fake.observe(place.home()).await.unwrap(),
        VmmSeen::Running { .. }
    ));
}

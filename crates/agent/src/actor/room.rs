//! A guest in a write for which the host's disk has no room: its machine is stopped in the middle of it, which harms
//! nobody. It is told, and goes on by itself once there is room.

use super::Actor;
use std::time::Duration;
use warren_core::ErrorClass;
use warren_core::error::Failure;
use warren_core::ports::hypervisor::{HOST_DISK_FULL, VmmSeen};

/// How often the host's disk is looked at while a guest waits for room, and how long one waits at least: where little
/// becomes free now and then, a guest must not be continued for each block.
const LOOK: Duration = Duration::from_secs(2);

impl Actor {
    /// Takes in what a look at the machine showed.
    pub(super) fn see_machine(&mut self, vmm: VmmSeen) {
        let stalled = matches!(vmm, VmmSeen::Stalled { .. });
        let before = matches!(self.seen.vmm, VmmSeen::Stalled { .. });
        self.seen.vmm = vmm;
        match (before, stalled) {
            (false, true) => {
                let failure = no_room();
                tracing::warn!(instance = %self.record.intent.id, "{}", failure.message);
                self.failure = Some(failure);
                self.not_before = Some(self.context.ports.clock.monotonic() + LOOK);
            }
            (true, false) => {
                self.failure
                    .take_if(|failure| failure.code == HOST_DISK_FULL);
            }
            (false, false) | (true, true) => {}
        }
    }

    /// Looks at everything anew after a while, or when something happens.
    pub(super) async fn wait_for_room(&mut self) {
        self.wait(Some(LOOK)).await;
        self.observe().await;
    }
}

/// What a user is told while a guest waits.
fn no_room() -> Failure {
    Failure {
        class: ErrorClass::NoSpace,
        code: HOST_DISK_FULL.to_owned(),
        message: "the host's disk is full: the guest waits in a write and goes on by itself once there is room on the \
                  data directory's file system"
            .to_owned(),
    }
}

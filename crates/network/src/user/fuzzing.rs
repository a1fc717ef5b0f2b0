//! Ways in for `fuzz/`: frames of a guest and of passt, as the guard takes them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::filter::Filter;
use super::frames::Frames;

/// A guard without sockets.
pub struct Guard {
    filter: Filter,
    guest: Frames,
    stack: Frames,
    now: Instant,
}

impl Guard {
    /// The guard of a guest with this address behind this gateway.
    pub fn new(guest: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        Guard {
            filter: Filter::new(guest, gateway),
            guest: Frames::default(),
            stack: Frames::default(),
            now: Instant::now(),
        }
    }

    /// Time passes.
    pub fn wait(&mut self, seconds: u8) {
        self.now += Duration::from_secs(seconds.into());
    }

    /// Bytes from the guest: what passt gets, and what the guest gets back. `None` when the stream is garbled.
    pub fn from_guest(&mut self, bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (filter, now) = (&self.filter, self.now);
        let may_send = |frame: &[u8]| filter.guest_may_send(frame, now);
        let taken = self
            .guest
            .take_from_guest(bytes, filter.gateway(), may_send);
        let taken = taken.ok()?;
        let out = [taken.parts.concat(), taken.rest].concat();
        Some((out, taken.acks))
    }

    /// Bytes from passt: what the guest gets. `None` when the stream is garbled.
    pub fn from_stack(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let (filter, now) = (&self.filter, self.now);
        let note = |frame: &[u8]| {
            filter.note(frame, now);
            true
        };
        self.stack.take(bytes, &mut out, note).ok()?;
        Some(out)
    }
}

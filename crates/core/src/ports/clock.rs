//! Time as a port, so that leases, backoff and time-outs can be tested without waiting.

use crate::Timestamp;
use async_trait::async_trait;
use std::time::Duration;

/// Wall-clock and monotonic time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The wall clock: for people and records, never for measuring.
    fn now(&self) -> Timestamp;
    /// Time since some fixed start, never going back and never moved by anybody: for deadlines and leases. Goes on
    /// where it was, or a little before, in the next process.
    fn monotonic(&self) -> Duration;
    /// Returns once `monotonic` has advanced by `time`.
    async fn sleep(&self, time: Duration);
}

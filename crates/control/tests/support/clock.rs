//! The time of a test.

use super::now;
use async_trait::async_trait;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use warren_core::Timestamp;
use warren_core::ports::Clock;

/// The real clock, whose wall can be pushed forward.
pub(crate) struct TestClock {
    started: std::time::Instant,
    /// Time that has passed besides what really has.
    pub(crate) passed: Mutex<Duration>,
    /// By how much somebody has moved the wall clock.
    pub(crate) moved: Mutex<time::Duration>,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(TestClock {
            started: std::time::Instant::now(),
            passed: Mutex::default(),
            moved: Mutex::default(),
        })
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        now()
            + *self.passed.lock().expect("no test panics with it")
            + *self.moved.lock().expect("no test panics with it")
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed() + *self.passed.lock().expect("no test panics with it")
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

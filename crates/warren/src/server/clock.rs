//! The real clock behind the [`Clock`] port.
//!
//! Monotonic time is the time that servers have run on this data directory, kept in a file of it. What is counted on
//! it outlives a restart, and whoever moves the wall clock by an hour or ten years ends nothing. What a process that
//! is killed did not write down is lost: a lease then lasts that much longer.

use async_trait::async_trait;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use warren_core::Timestamp;
use warren_core::ports::Clock;

/// How often it is written down.
const WRITTEN: Duration = Duration::from_secs(60);

pub(crate) struct SystemClock {
    start: Instant,
    /// What earlier processes have counted.
    before: Duration,
    file: PathBuf,
}

impl SystemClock {
    /// Goes on where `file` says; at the beginning where it says nothing. Only reads.
    pub(crate) fn going_on(file: PathBuf) -> Self {
        let before = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        SystemClock {
            start: Instant::now(),
            before,
            file,
        }
    }

    /// Writes the time down every minute until the server stops, and then once more.
    pub(crate) async fn keep(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            let stopped = tokio::select! {
                () = self.sleep(WRITTEN) => false,
                () = stopping.cancelled() => true,
            };
            let clock = Arc::clone(&self);
            let written = tokio::task::spawn_blocking(move || clock.write_down()).await;
            if let Ok(Err(error)) = written {
                tracing::debug!(%error, "the time could not be written down");
            }
            if stopped {
                return;
            }
        }
    }

    /// Always as many bytes in one write, so that no half of it is ever read.
    fn write_down(&self) -> std::io::Result<()> {
        let text = format!("{:020}\n", self.monotonic().as_secs());
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.file)?
            .write_all_at(text.as_bytes(), 0)
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now_utc()
    }

    fn monotonic(&self) -> Duration {
        self.before + self.start.elapsed()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn time_goes_on_where_the_last_process_wrote_it_down() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("uptime");
        let open = || SystemClock::going_on(file.clone());
        assert!(open().monotonic() < Duration::from_secs(60));
        assert!(!file.exists(), "a look writes nothing");
        std::fs::write(&file, "00000000000000086400\n").unwrap();
        let second = open();
        assert!(second.monotonic() >= Duration::from_secs(86_400));
        second.write_down().unwrap();
        assert!(open().monotonic() >= Duration::from_secs(86_400));
        std::fs::write(&file, "torn").unwrap();
        assert!(open().monotonic() < Duration::from_secs(60));
        open().write_down().unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "00000000000000000000\n"
        );
    }

    #[tokio::test]
    async fn time_is_written_down_when_the_server_stops() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("uptime");
        let stopping = CancellationToken::new();
        stopping.cancel();
        let clock = Arc::new(SystemClock::going_on(file.clone()));
        tokio::time::timeout(Duration::from_secs(10), clock.keep(stopping))
            .await
            .unwrap();
        assert!(file.exists());
    }
}

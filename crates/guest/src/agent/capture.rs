//! Moves the workload's output into the log store until it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::process::Pipe;
use crate::protocol::{OutputStream, unix_nanos_now};
use crate::serve::LogStore;

const CHUNK: usize = 16 * 1024;
/// After a process's exit, output that children of it hold open is waited for no longer than this.
pub(super) const STRAGGLER_PATIENCE: Duration = Duration::from_millis(100);

/// Captures one output in the background; the task ends with the output.
pub(super) fn start(pipe: Pipe, stream: OutputStream, logs: Arc<LogStore>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let data = Bytes::copy_from_slice(&buffer[..read]);
            logs.push(stream, unix_nanos_now(), data).await;
        }
    })
}

/// Waits for captures to take what the process left behind. Children that live on keep their output.
pub(super) async fn finish(captures: Vec<JoinHandle<()>>, logs: &LogStore) {
    for mut capture in captures {
        let mut seen = logs.last();
        // As long as something comes, more may come.
        while timeout(STRAGGLER_PATIENCE, &mut capture).await.is_err() {
            let now = logs.last();
            if now == seen {
                capture.abort();
                break;
            }
            seen = now;
        }
    }
}

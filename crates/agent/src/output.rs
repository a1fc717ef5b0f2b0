//! A workload's output as it comes, with the last of it replayed to whoever comes late.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use warren_core::ports::host_link::OutputStream;

/// Output replayed to whoever attaches.
const REPLAY: usize = 64 << 10;
/// Pieces an attached reader may be behind before it loses some.
const BACKLOG: usize = 1024;

pub(crate) type Piece = (OutputStream, Bytes);

/// The workload's output as it comes.
#[derive(Clone)]
pub(crate) struct OutputTap {
    recent: Arc<Mutex<(VecDeque<Piece>, usize)>>,
    live: broadcast::Sender<Piece>,
}

impl OutputTap {
    pub(crate) fn new() -> Self {
        OutputTap {
            recent: Arc::default(),
            live: broadcast::Sender::new(BACKLOG),
        }
    }

    pub(crate) fn push(&self, stream: OutputStream, data: Bytes) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.1 += data.len();
        recent.0.push_back((stream, data.clone()));
        while recent.1 > REPLAY && recent.0.len() > 1 {
            let dropped = recent.0.pop_front().map_or(0, |(_, data)| data.len());
            recent.1 -= dropped;
        }
        // Nobody attached is the usual case.
        let _ = self.live.send((stream, data));
    }

    /// The last of it, and what comes from now on.
    pub(crate) fn subscribe(&self) -> (VecDeque<Piece>, broadcast::Receiver<Piece>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.0.clone(), self.live.subscribe())
    }
}

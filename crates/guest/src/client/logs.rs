//! The workload's output as the host reads it, with its numbering checked.

use tokio::io::{ReadHalf, WriteHalf};

use super::ClientError;
use crate::protocol::mux::MuxStream;
use crate::protocol::{FrameReader, FrameWriter, LogEntry};

/// Output from one sequence number on. A reader that is slow makes a guest wait, then drop and mark a gap.
#[derive(Debug)]
pub struct LogReader {
    frames: FrameReader<ReadHalf<MuxStream>>,
    /// Kept open: the guest takes its end for a reader that has gone.
    _keep: FrameWriter<WriteHalf<MuxStream>>,
    next: u64,
    ended: bool,
}

impl LogReader {
    pub(super) fn new(
        frames: FrameReader<ReadHalf<MuxStream>>,
        keep: FrameWriter<WriteHalf<MuxStream>>,
        from: u64,
    ) -> Self {
        Self {
            frames,
            _keep: keep,
            next: from.max(1),
            ended: false,
        }
    }

    /// The next entry; `None` after [`LogEntry::End`]. A session that ends first is an error, and so is
    /// numbering that goes back or leaves holes. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let frame = self.frames.next().await?.ok_or(ClientError::SessionOver)?;
        let entry = LogEntry::from_frame(frame)?;
        self.check(&entry)?;
        Ok(Some(entry))
    }

    fn check(&mut self, entry: &LogEntry) -> Result<(), ClientError> {
        let expected = self.next;
        let next = match entry {
            LogEntry::Record(record) if record.seq == expected => record.seq.checked_add(1),
            LogEntry::Gap { from, to } if *from == expected && to >= from => to.checked_add(1),
            LogEntry::End { last } if last.checked_add(1) == Some(expected) => {
                self.ended = true;
                Some(expected)
            }
            LogEntry::Record(_) | LogEntry::Gap { .. } | LogEntry::End { .. } => None,
        };
        self.next = next.ok_or_else(|| {
            ClientError::Protocol(format!(
                "log record {expected} expected, got {}",
                name(entry)
            ))
        })?;
        Ok(())
    }
}

fn name(entry: &LogEntry) -> String {
    match entry {
        LogEntry::Record(record) => format!("record {}", record.seq),
        LogEntry::Gap { from, to } => format!("a gap from {from} to {to}"),
        LogEntry::End { last } => format!("the end after {last}"),
    }
}

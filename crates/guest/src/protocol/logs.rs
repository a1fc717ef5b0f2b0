//! A workload's output on its way to the host: numbered records, and what happened to those that are missing.

use super::frame::{Frame, FrameError, FrameKind};
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

/// Which of a workload's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    /// The kind of the frames that carry it in an exec.
    #[must_use]
    pub fn frame(self) -> FrameKind {
        match self {
            OutputStream::Stdout => FrameKind::Stdout,
            OutputStream::Stderr => FrameKind::Stderr,
        }
    }
}

/// A piece of the workload's output, cut as it was read and not by lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// 1 for the first record of a boot, then counted up without holes.
    pub seq: u64,
    /// When it was read, in nanoseconds since 1970 by the guest's clock.
    pub unix_nanos: u64,
    /// Which output.
    pub stream: OutputStream,
    /// The bytes.
    pub data: Bytes,
}

/// What a guest sends on a log stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEntry {
    /// Output.
    Record(LogRecord),
    /// These records were dropped because nobody acknowledged in time.
    Gap {
        /// First one missing.
        from: u64,
        /// Last one missing.
        to: u64,
    },
    /// The workload is over and all of its output has been sent.
    End {
        /// The last record's number, 0 if there was none.
        last: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "log", rename_all = "snake_case")]
enum LogMessage {
    Gap { from: u64, to: u64 },
    End { last: u64 },
}

/// Bytes of a record's frame before its data: sequence number, time, output.
pub const LOG_HEADER: usize = 17;

impl LogEntry {
    /// The frame's kind and its header and data.
    pub fn to_parts(&self) -> Result<(FrameKind, Vec<u8>, Bytes), FrameError> {
        let message = match self {
            LogEntry::Record(record) => {
                let mut header = Vec::with_capacity(LOG_HEADER);
                header.extend_from_slice(&record.seq.to_be_bytes());
                header.extend_from_slice(&record.unix_nanos.to_be_bytes());
                header.push(match record.stream {
                    OutputStream::Stdout => 1,
                    OutputStream::Stderr => 2,
                });
                return Ok((FrameKind::Log, header, record.data.clone()));
            }
            LogEntry::Gap { from, to } => LogMessage::Gap {
                from: *from,
                to: *to,
            },
            LogEntry::End { last } => LogMessage::End { last: *last },
        };
        Ok((
            FrameKind::Message,
            serde_json::to_vec(&message)?,
            Bytes::new(),
        ))
    }

    /// What a frame carries. A record without any bytes is none.
    pub fn from_frame(mut frame: Frame) -> Result<Self, FrameError> {
        match frame.kind {
            FrameKind::Log => {
                if frame.payload.len() <= LOG_HEADER {
                    return Err(FrameError::Payload { kind: frame.kind });
                }
                let seq = frame.payload.get_u64();
                let unix_nanos = frame.payload.get_u64();
                let stream = match frame.payload.get_u8() {
                    1 => OutputStream::Stdout,
                    2 => OutputStream::Stderr,
                    _ => return Err(FrameError::Payload { kind: frame.kind }),
                };
                Ok(LogEntry::Record(LogRecord {
                    seq,
                    unix_nanos,
                    stream,
                    data: frame.payload,
                }))
            }
            FrameKind::Message => Ok(match frame.message()? {
                LogMessage::Gap { from, to } => LogEntry::Gap { from, to },
                LogMessage::End { last } => LogEntry::End { last },
            }),
            kind @ (FrameKind::Stdin | FrameKind::Stdout | FrameKind::Stderr | FrameKind::File) => {
                Err(FrameError::Unexpected { kind })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn entries_survive_their_frames() {
        for entry in [
            LogEntry::Record(LogRecord {
                seq: 3,
                unix_nanos: 4,
                stream: OutputStream::Stderr,
                data: Bytes::from_static(b"\0data"),
            }),
            LogEntry::Gap { from: 1, to: 9 },
            LogEntry::End { last: 0 },
        ] {
            let (kind, header, data) = entry.to_parts().unwrap();
            let payload = [header.as_slice(), &data].concat().into();
            assert_eq!(
                LogEntry::from_frame(Frame { kind, payload }).unwrap(),
                entry
            );
        }
    }

    #[test]
    fn short_or_odd_log_frames_are_refused() {
        let header = [0; LOG_HEADER - 1];
        let record = |stream: u8, data: &[u8]| [&header[..], &[stream], data].concat();
        for payload in [vec![0; LOG_HEADER - 1], record(9, b"x"), record(1, b"")] {
            let frame = Frame {
                kind: FrameKind::Log,
                payload: payload.into(),
            };
            assert!(matches!(
                LogEntry::from_frame(frame),
                Err(FrameError::Payload { .. })
            ));
        }
    }
}

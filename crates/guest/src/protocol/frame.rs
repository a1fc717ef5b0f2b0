//! Length-prefixed frames on a stream: `u32` big-endian length of the rest, `u8` kind, payload.
//!
//! The reader refuses a length above its limit before it allocates for it. Reading and writing are
//! cancel safe: a future that is dropped in the middle loses nothing, the next call goes on.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HEADER: usize = 5;
/// Buffers grow in these steps, whatever length a peer has announced.
const READ_STEP: usize = 16 * 1024;

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A JSON message; which type depends on the stream.
    Message = 0,
    /// Bytes for standard input.
    Stdin = 1,
    /// Bytes from standard output.
    Stdout = 2,
    /// Bytes from standard error.
    Stderr = 3,
    /// One log record, see [`crate::protocol::LogRecord`].
    Log = 4,
    /// Bytes of a file.
    File = 5,
}

impl FrameKind {
    fn parse(byte: u8) -> Option<Self> {
        [
            Self::Message,
            Self::Stdin,
            Self::Stdout,
            Self::Stderr,
            Self::Log,
            Self::File,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// The payload.
    pub payload: Bytes,
}

impl Frame {
    /// Reads the payload as a JSON message.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self.kind {
            FrameKind::Message => Ok(serde_json::from_slice(&self.payload)?),
            kind @ (FrameKind::Stdin
            | FrameKind::Stdout
            | FrameKind::Stderr
            | FrameKind::Log
            | FrameKind::File) => Err(FrameError::Unexpected { kind }),
        }
    }
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is zero or above what this stream allows.
    #[error("frame of {length} bytes where 1 to {limit} are allowed")]
    Length {
        /// What was announced.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// No such kind of frame.
    #[error("unknown frame kind {kind}")]
    Kind {
        /// The byte found.
        kind: u8,
    },
    /// A frame of a kind that has no place here.
    #[error("a {kind:?} frame has no place here")]
    Unexpected {
        /// What came.
        kind: FrameKind,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The payload of a data frame is malformed.
    #[error("malformed {kind:?} payload")]
    Payload {
        /// What came.
        kind: FrameKind,
    },
    /// A message is not what this stream carries.
    #[error("malformed message")]
    Message(#[from] serde_json::Error),
    /// The stream failed.
    #[error("stream failed")]
    Io(#[from] std::io::Error),
}

/// Takes the first frame off `buffer`; `None` when it has not arrived in full.
pub fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let kind = header[4];
    let length = usize::try_from(length)
        .ok()
        .filter(|length| (1..=limit).contains(length))
        .ok_or(FrameError::Length {
            length: u64::from(length),
            limit,
        })?;
    let kind = FrameKind::parse(kind).ok_or(FrameError::Kind { kind })?;
    if buffer.len() < HEADER - 1 + length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    let payload = buffer.split_to(length - 1).freeze();
    Ok(Some(Frame { kind, payload }))
}

/// Reads frames no longer than a limit.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// `limit` counts kind and payload.
    pub fn new(io: R, limit: usize) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// The same stream with another limit, for what follows an opening message.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The next frame, or `None` where the stream ends between frames. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = decode(&mut self.buffer, self.limit)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_STEP);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(FrameError::Truncated)
                };
            }
        }
    }

    /// The next frame as a message; the end of the stream is an error.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        self.next().await?.ok_or(FrameError::Truncated)?.message()
    }

    /// The stream and what has been read of it beyond the last frame.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.io, self.buffer.freeze())
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    pending: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer with nothing pending.
    pub fn new(io: W) -> Self {
        Self {
            io,
            pending: BytesMut::new(),
        }
    }

    /// Sends one frame. If the future is dropped, the frame is still sent by the next call.
    pub async fn send(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Result<(), FrameError> {
        self.flush().await?;
        let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        let announced = u32::try_from(length).map_err(|_| FrameError::Length {
            length: length as u64,
            limit: u32::MAX as usize,
        })?;
        self.pending.reserve(HEADER + length);
        self.pending.put_u32(announced);
        self.pending.put_u8(kind as u8);
        for part in parts {
            self.pending.put_slice(part);
        }
        self.flush().await
    }

    /// Sends one JSON message.
    pub async fn message<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let text = serde_json::to_vec(message)?;
        self.send(FrameKind::Message, &[&text]).await
    }

    /// Sends what a dropped future left behind.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        while !self.pending.is_empty() {
            if self.io.write_buf(&mut self.pending).await? == 0 {
                return Err(FrameError::Io(std::io::ErrorKind::WriteZero.into()));
            }
        }
        Ok(self.io.flush().await?)
    }

    /// Sends what is pending and ends the stream's writing side.
    pub async fn finish(&mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(self.io.shutdown().await?)
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.io
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn frames_round_trip_over_a_narrow_pipe() {
        let (near, far) = tokio::io::duplex(7);
        let sender = tokio::spawn(async move {
            let mut writer = FrameWriter::new(near);
            writer
                .send(FrameKind::Stdout, &[b"hello ", b"there"])
                .await
                .unwrap();
            writer.message(&"text").await.unwrap();
        });
        let mut reader = FrameReader::new(far, 64);
        let first = reader.next().await.unwrap().unwrap();
        assert_eq!(
            (first.kind, first.payload.as_ref()),
            (FrameKind::Stdout, b"hello there".as_ref())
        );
        assert_eq!(reader.message::<String>().await.unwrap(), "text");
        assert!(reader.next().await.unwrap().is_none());
        sender.await.unwrap();
    }

    #[test]
    fn lengths_outside_the_limit_and_unknown_kinds_are_refused() {
        let mut long = BytesMut::from(&[0, 0, 0, 9, 0][..]);
        assert!(matches!(
            decode(&mut long, 8),
            Err(FrameError::Length {
                length: 9,
                limit: 8
            })
        ));
        let mut empty = BytesMut::from(&[0, 0, 0, 0, 0][..]);
        assert!(matches!(
            decode(&mut empty, 8),
            Err(FrameError::Length { length: 0, .. })
        ));
        let mut kind = BytesMut::from(&[0, 0, 0, 1, 99][..]);
        assert!(matches!(
            decode(&mut kind, 8),
            Err(FrameError::Kind { kind: 99 })
        ));
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let mut reader = FrameReader::new(&[0u8, 0, 0, 9, 1, 2][..], 64);
        assert!(matches!(reader.next().await, Err(FrameError::Truncated)));
    }
}

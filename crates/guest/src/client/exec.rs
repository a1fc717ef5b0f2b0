//! A command running in a guest, as the host sees it. No task and no buffer stands between the caller
//! and the stream: a caller that does not read makes the command wait.

use bytes::Bytes;
use tokio::io::{ReadHalf, WriteHalf};

use super::ClientError;
use crate::protocol::message::DATA_LIMIT;
use crate::protocol::mux::MuxStream;
use crate::protocol::{ExecInput, ExecOutput, ExitReport, FrameReader, FrameWriter, Terminal};

/// Both directions of a running command.
#[derive(Debug)]
pub struct ExecHandle {
    /// What the command writes.
    pub output: ExecReader,
    /// What the command reads, and its terminal and signals. Keep it as long as the command shall run.
    pub input: ExecWriter,
}

/// A command's output.
#[derive(Debug)]
pub struct ExecReader {
    frames: FrameReader<ReadHalf<MuxStream>>,
    finished: bool,
}

impl ExecReader {
    pub(super) fn new(frames: FrameReader<ReadHalf<MuxStream>>) -> Self {
        Self {
            frames,
            finished: false,
        }
    }

    /// The next piece; `Exited` comes last, then `None`. A session that ends first is an error. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ExecOutput>, ClientError> {
        if self.finished {
            return Ok(None);
        }
        let frame = self.frames.next().await?.ok_or(ClientError::SessionOver)?;
        let output = ExecOutput::from_frame(frame)?;
        self.finished = matches!(output, ExecOutput::Exited(_));
        Ok(Some(output))
    }

    /// Reads to the end and keeps up to `limit` bytes of each output; what is beyond is read and dropped.
    pub async fn collect(&mut self, limit: usize) -> Result<Collected, ClientError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await?.ok_or(ClientError::SessionOver)? {
                ExecOutput::Stdout(data) => append(&mut stdout, &data, limit),
                ExecOutput::Stderr(data) => append(&mut stderr, &data, limit),
                ExecOutput::Exited(exit) => {
                    return Ok(Collected {
                        stdout,
                        stderr,
                        exit,
                    });
                }
            }
        }
    }
}

fn append(kept: &mut Vec<u8>, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(kept.len()).min(data.len());
    kept.extend_from_slice(&data[..room]);
}

/// All of a command's output and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Standard output, as far as it was kept.
    pub stdout: Vec<u8>,
    /// Standard error, as far as it was kept.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: ExitReport,
}

/// A command's input.
#[derive(Debug)]
pub struct ExecWriter {
    frames: FrameWriter<WriteHalf<MuxStream>>,
}

impl ExecWriter {
    pub(super) fn new(frames: FrameWriter<WriteHalf<MuxStream>>) -> Self {
        Self { frames }
    }

    /// Sends standard input; waits while the command does not read it. Fails once the command is over.
    pub async fn stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        for piece in data.chunks(DATA_LIMIT) {
            self.send(&ExecInput::Stdin(Bytes::copy_from_slice(piece)))
                .await?;
        }
        Ok(())
    }

    /// Ends standard input. On a terminal this is an end-of-file character.
    pub async fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.send(&ExecInput::StdinClose).await
    }

    /// Tells the terminal's new size.
    pub async fn resize(&mut self, terminal: Terminal) -> Result<(), ClientError> {
        self.send(&ExecInput::Resize(terminal)).await
    }

    /// Signals the command's process group.
    pub async fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.send(&ExecInput::Signal(signal)).await
    }

    async fn send(&mut self, input: &ExecInput) -> Result<(), ClientError> {
        let frame = input.to_frame()?;
        Ok(self.frames.send(frame.kind, &[&frame.payload]).await?)
    }
}

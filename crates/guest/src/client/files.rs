//! A guest's files, as the host sees them. A guest that lies gets no further than what was asked for: no more bytes than it
//! has announced, no more than were wanted, and no silence longer than
//! [`FILE_SILENCE`](crate::protocol::files::FILE_SILENCE).

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout_at};

use super::{ClientError, GuestClient};
use crate::protocol::files::{
    Depth, FILE_WORKING, FileFault, FileInfo, FileInput, FileReply, FileRequest, LISTED_TOGETHER,
    LastLink, ListedFile, UNSIZED_LIMIT,
};
use crate::protocol::message::{DATA_LIMIT, LIST_FRAME_LIMIT};
use crate::protocol::mux::MuxStream;
use crate::protocol::{FrameError, FrameKind, FrameReader, FrameWriter, Open};

/// For how long a guest may say that it works, and nothing else.
const WORKING_LIMIT: Duration = Duration::from_secs(3600);

/// Why something could not be done with a guest's file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    /// The guest says so.
    #[error("{message}")]
    Fault {
        /// The kind of reason.
        fault: FileFault,
        /// The guest's words: unchecked text.
        message: String,
    },
    /// The guest cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<FrameError> for FileError {
    fn from(error: FrameError) -> Self {
        FileError::Client(error.into())
    }
}

fn protocol(words: impl Into<String>) -> FileError {
    FileError::Client(ClientError::Protocol(words.into()))
}

/// How often it may say so before anything else: several times as often as a guest does that says it when it should.
const WORKINGS_LIMIT: u64 = 4 * WORKING_LIMIT.as_secs() / FILE_WORKING.as_secs();

/// What a guest says in the end, or on the way there.
enum Answer {
    Found(FileInfo),
    Listed(Vec<ListedFile>),
    Data(Bytes),
    Done(u64),
}

/// What a guest answers.
#[derive(Debug)]
struct Answers {
    frames: FrameReader<ReadHalf<MuxStream>>,
    silence: Duration,
    /// When a guest that says nothing but that it works is given up.
    give_up: Option<Instant>,
    /// How often it has said so since it said anything else.
    workings: u64,
}

impl Answers {
    /// The next one. Cancel safe.
    async fn next(&mut self) -> Result<Answer, FileError> {
        let give_up = *self
            .give_up
            .get_or_insert_with(|| Instant::now() + WORKING_LIMIT);
        loop {
            let deadline = (Instant::now() + self.silence).min(give_up);
            let frame = timeout_at(deadline, self.frames.next())
                .await
                .map_err(|_| ClientError::AnswerTimeout {
                    request: "a request for files",
                    deadline: self.silence,
                })??
                .ok_or(ClientError::SessionOver)?;
            let answer = match frame.kind {
                FrameKind::File if frame.payload.is_empty() => {
                    return Err(protocol("a piece of a file without any bytes"));
                }
                FrameKind::File => Answer::Data(frame.payload),
                _ => match frame.message()? {
                    FileReply::Working if self.workings < WORKINGS_LIMIT => {
                        self.workings += 1;
                        continue;
                    }
                    FileReply::Working => {
                        return Err(protocol("it says too often that it works"));
                    }
                    FileReply::Found { info } => Answer::Found(info),
                    FileReply::Listed { files } => Answer::Listed(files),
                    FileReply::Done { bytes } => Answer::Done(bytes),
                    FileReply::Failed { fault, message } => {
                        return Err(FileError::Fault { fault, message });
                    }
                },
            };
            self.give_up = None;
            self.workings = 0;
            return Ok(answer);
        }
    }

    async fn done(&mut self) -> Result<u64, FileError> {
        match self.next().await? {
            Answer::Done(bytes) => Ok(bytes),
            Answer::Found(_) | Answer::Listed(_) | Answer::Data(_) => Err(out_of_turn()),
        }
    }
}

fn out_of_turn() -> FileError {
    protocol("a word out of turn about files")
}

/// A file that is being read.
#[derive(Debug)]
pub struct FileReader {
    answers: Answers,
    /// Kept open: the guest takes its end for a host that has gone.
    _keep: FrameWriter<WriteHalf<MuxStream>>,
    received: u64,
    most: u64,
    finished: bool,
}

impl FileReader {
    /// The next piece; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, FileError> {
        if self.finished {
            return Ok(None);
        }
        match self.answers.next().await? {
            Answer::Data(data) => {
                self.received += data.len() as u64;
                if self.received > self.most {
                    return Err(protocol(format!(
                        "more than the {} bytes that it announced",
                        self.most
                    )));
                }
                Ok(Some(data))
            }
            Answer::Done(bytes) if bytes == self.received => {
                self.finished = true;
                Ok(None)
            }
            Answer::Done(bytes) => Err(protocol(format!(
                "{} bytes came where {bytes} were sent",
                self.received
            ))),
            Answer::Found(_) | Answer::Listed(_) => Err(out_of_turn()),
        }
    }
}

/// A file that is being written. Dropped before [`FileWriter::finish`], it never was.
#[derive(Debug)]
pub struct FileWriter {
    frames: FrameWriter<WriteHalf<MuxStream>>,
    answers: Answers,
    sent: u64,
}

impl FileWriter {
    /// Sends; waits while the guest does not take it. What the guest has against it is told as soon as it says so.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        for piece in data.chunks(DATA_LIMIT) {
            self.send(FrameKind::File, piece).await?;
            self.sent += piece.len() as u64;
        }
        Ok(())
    }

    async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), FileError> {
        let parts = [payload];
        let sent = tokio::select! {
            biased;
            sent = self.frames.send(kind, &parts) => sent,
            // A guest whose disk is slow says that it works: silence is what this waits for.
            answer = self.answers.next() => {
                answer?;
                return Err(out_of_turn());
            }
        };
        match sent {
            Ok(()) => {
                self.answers.give_up = None;
                Ok(())
            }
            // A guest that ends the stream has said why.
            Err(error) => match self.answers.done().await {
                Err(why @ FileError::Fault { .. }) => Err(why),
                Ok(_) | Err(FileError::Client(_)) => Err(error.into()),
            },
        }
    }

    /// That was all. When it returns, the file is in its place and durable; answers with its size.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn finish(mut self) -> Result<u64, FileError> {
        let end = serde_json::to_vec(&FileInput::End).map_err(FrameError::from)?;
        self.send(FrameKind::Message, &end).await?;
        match self.answers.done().await? {
            bytes if bytes == self.sent => Ok(bytes),
            bytes => Err(protocol(format!(
                "{bytes} bytes were written where {} were sent",
                self.sent
            ))),
        }
    }
}

/// A directory that is being listed.
#[derive(Debug)]
pub struct FileList {
    answers: Answers,
    /// Kept open: the guest takes its end for a host that has gone.
    _keep: FrameWriter<WriteHalf<MuxStream>>,
}

impl FileList {
    /// The next files; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn next(&mut self) -> Result<Option<Vec<ListedFile>>, FileError> {
        match self.answers.next().await? {
            Answer::Listed(files) if (1..=LISTED_TOGETHER).contains(&files.len()) => {
                Ok(Some(files))
            }
            Answer::Done(_) => Ok(None),
            Answer::Listed(_) | Answer::Found(_) | Answer::Data(_) => Err(out_of_turn()),
        }
    }
}

impl GuestClient {
    /// A handle to the same session that waits for another time than
    /// [`FILE_SILENCE`](crate::protocol::files::FILE_SILENCE) for a guest that is busy with files.
    #[must_use]
    pub fn with_file_silence(mut self, silence: Duration) -> Self {
        self.file_silence = silence;
        self
    }

    async fn ask_for_files(
        &self,
        request: FileRequest,
    ) -> Result<(Answers, FrameWriter<WriteHalf<MuxStream>>), FileError> {
        let (frames, writer) = self.open(&Open::Files(request)).await?;
        let answers = Answers {
            frames,
            silence: self.file_silence,
            give_up: None,
            workings: 0,
        };
        Ok((answers, writer))
    }

    /// The first answer. An agent that does not know the request ends the stream, and the session goes on.
    async fn first(&self, answers: &mut Answers) -> Result<Answer, FileError> {
        match answers.next().await {
            Err(FileError::Client(ClientError::SessionOver | ClientError::ChannelGone(_))) => {
                self.ping().await?;
                Err(FileError::Client(ClientError::NotKnown {
                    request: "files",
                }))
            }
            answer => answer,
        }
    }

    /// What a path leads to.
    ///
    /// # Errors
    /// See [`FileError`]; so for all that follow.
    pub async fn stat_file(&self, path: &str, last: LastLink) -> Result<FileInfo, FileError> {
        let path = path.to_owned();
        let (mut answers, _keep) = self.ask_for_files(FileRequest::Stat { path, last }).await?;
        match self.first(&mut answers).await? {
            Answer::Found(info) => Ok(info),
            Answer::Listed(_) | Answer::Data(_) | Answer::Done(_) => Err(out_of_turn()),
        }
    }

    /// Reads a file from `offset` on, at most `length` bytes.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileInfo, FileReader), FileError> {
        let path = path.to_owned();
        let request = FileRequest::Read {
            path,
            offset,
            length,
        };
        let (mut answers, keep) = self.ask_for_files(request).await?;
        let Answer::Found(info) = self.first(&mut answers).await? else {
            return Err(out_of_turn());
        };
        let announced = match info.size {
            0 => UNSIZED_LIMIT,
            size => size.saturating_sub(offset),
        };
        let reader = FileReader {
            answers,
            _keep: keep,
            received: 0,
            most: announced.min(length.unwrap_or(u64::MAX)),
            finished: false,
        };
        Ok((info, reader))
    }

    /// Reads a tree as a tar stream. `name` is what it is called there.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn pack_tree(
        &self,
        path: &str,
        last: LastLink,
        name: &str,
    ) -> Result<FileReader, FileError> {
        let (path, name) = (path.to_owned(), name.to_owned());
        let request = FileRequest::Pack { path, last, name };
        let (mut answers, keep) = self.ask_for_files(request).await?;
        let Answer::Found(_) = self.first(&mut answers).await? else {
            return Err(out_of_turn());
        };
        Ok(FileReader {
            answers,
            _keep: keep,
            received: 0,
            // Nobody knows before it has been walked.
            most: u64::MAX,
            finished: false,
        })
    }

    /// Begins to write a file or a tree. `request` is a [`FileRequest::Write`] or a [`FileRequest::Unpack`].
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn write_file(&self, request: FileRequest) -> Result<FileWriter, FileError> {
        let (answers, frames) = self.ask_for_files(request).await?;
        Ok(FileWriter {
            frames,
            answers,
            sent: 0,
        })
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn list_files(&self, path: &str, depth: Depth) -> Result<FileList, FileError> {
        let path = path.to_owned();
        let (mut answers, keep) = self
            .ask_for_files(FileRequest::List { path, depth })
            .await?;
        answers.frames.set_limit(LIST_FRAME_LIMIT);
        Ok(FileList {
            answers,
            _keep: keep,
        })
    }

    /// Makes or removes something: what neither gives nor takes data.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn change_files(&self, request: FileRequest) -> Result<(), FileError> {
        let (mut answers, _keep) = self.ask_for_files(request).await?;
        match self.first(&mut answers).await? {
            Answer::Done(_) => Ok(()),
            Answer::Found(_) | Answer::Listed(_) | Answer::Data(_) => Err(out_of_turn()),
        }
    }
}

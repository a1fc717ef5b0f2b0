//! Files into an instance and out of it, as tar streams.

use super::error::chain;
use super::{Client, ClientError, Refused};
use crate::copy::{CopyMessage, CopyStart};
use crate::resources::PathInfo;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::{Method, Upgraded};
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The server pings at least every 30 s; silence for this long means a dead connection.
const SILENCE: Duration = Duration::from_secs(300);

type Socket = WebSocketStream<Upgraded>;

/// A copy into an instance. Dropped before [`CopyUpload::finish`], it breaks off.
pub struct CopyUpload {
    sink: SplitSink<Socket, Message>,
    answers: Answers,
}

/// A copy out of an instance.
pub struct CopyDownload {
    answers: Answers,
    /// Half a socket would be a closed one.
    _sink: SplitSink<Socket, Message>,
}

struct Answers {
    stream: SplitStream<Socket>,
    server: String,
}

enum Answer {
    Data(Bytes),
    Message(CopyMessage),
}

fn broken(server: &str, reason: impl Into<String>) -> ClientError {
    ClientError::Transport {
        server: server.to_owned(),
        reason: reason.into(),
    }
}

fn refused(code: Option<String>, sentence: String) -> ClientError {
    ClientError::Refused(Box::new(Refused {
        status: 0,
        code: code.unwrap_or_else(|| "copy_failed".to_owned()),
        sentence,
        details: Vec::new(),
        request_id: None,
    }))
}

impl Answers {
    async fn next(&mut self) -> Result<Answer, ClientError> {
        loop {
            let next = tokio::time::timeout(SILENCE, self.stream.next()).await;
            let next = next.map_err(|_| ClientError::TimedOut {
                server: self.server.clone(),
            })?;
            match next {
                Some(Ok(Message::Binary(data))) => return Ok(Answer::Data(data)),
                Some(Ok(Message::Text(text))) => {
                    return super::error::decode(text.as_bytes()).map(Answer::Message);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => {
                    let reason = "the connection closed before the copy was complete";
                    return Err(broken(&self.server, reason));
                }
                Some(Err(error)) => return Err(broken(&self.server, chain(&error))),
            }
        }
    }
}

fn out_of_turn() -> ClientError {
    ClientError::Answer {
        reason: "a frame that has no place in this copy".to_owned(),
    }
}

impl Client {
    /// `GET /instances/{id}/stat`: what a path inside an instance leads to.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stat_path(
        &self,
        id: &str,
        path: &str,
        follow_links: bool,
    ) -> Result<PathInfo, ClientError> {
        let query = [
            ("path", path.to_owned()),
            ("follow_links", follow_links.to_string()),
        ];
        let request = self.request_with(Method::GET, &["instances", id, "stat"], &query);
        self.json(request).await
    }

    async fn copy(
        &self,
        id: &str,
        start: &CopyStart,
    ) -> Result<(SplitSink<Socket, Message>, Answers), ClientError> {
        let socket = self.socket(&["instances", id, "cp"], &[]).await?;
        let (mut sink, stream) = socket.split();
        let server = self.base.to_string();
        let first = serde_json::to_string(start).expect("our own schemas are JSON");
        let sent = sink.send(Message::text(first)).await;
        sent.map_err(|error| broken(&server, chain(&error)))?;
        Ok((sink, Answers { stream, server }))
    }

    /// `GET /instances/{id}/cp`, into the instance.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn copy_to(&self, id: &str, start: &CopyStart) -> Result<CopyUpload, ClientError> {
        let (sink, answers) = self.copy(id, start).await?;
        Ok(CopyUpload { sink, answers })
    }

    /// `GET /instances/{id}/cp`, out of the instance, as a tar stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn copy_from(
        &self,
        id: &str,
        start: &CopyStart,
    ) -> Result<CopyDownload, ClientError> {
        let (_sink, answers) = self.copy(id, start).await?;
        Ok(CopyDownload { answers, _sink })
    }
}

impl CopyUpload {
    /// Sends; waits while the instance does not take it. What stands against the copy is told as soon as it is known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(&mut self, data: Bytes) -> Result<(), ClientError> {
        self.put(Message::Binary(data)).await
    }

    async fn put(&mut self, message: Message) -> Result<(), ClientError> {
        let sent = tokio::select! {
            biased;
            sent = self.sink.send(message) => sent,
            answer = self.answers.next() => return Err(failure(answer?)),
        };
        match sent {
            Ok(()) => Ok(()),
            // A server that ends the copy has said why.
            Err(error) => Err(match self.answers.next().await {
                Ok(answer) => failure(answer),
                Err(_) => broken(&self.answers.server, chain(&error)),
            }),
        }
    }

    /// That was all; answers with how many bytes went through when everything is in its place.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn finish(mut self) -> Result<u64, ClientError> {
        let end = CopyMessage::End { is_final: true };
        let end = serde_json::to_string(&end).expect("our own schemas are JSON");
        self.put(Message::text(end)).await?;
        match self.answers.next().await? {
            Answer::Message(CopyMessage::Result(result)) if result.success => {
                Ok(result.bytes_written)
            }
            answer => Err(failure(answer)),
        }
    }
}

fn failure(answer: Answer) -> ClientError {
    match answer {
        Answer::Message(CopyMessage::Result(result)) if !result.success => {
            refused(result.code, result.error.unwrap_or_default())
        }
        Answer::Message(CopyMessage::Error { message, code, .. }) => refused(code, message),
        Answer::Message(_) | Answer::Data(_) => out_of_turn(),
    }
}

impl CopyDownload {
    /// The next piece of the tar stream; `None` when all of it came.
    ///
    /// # Errors
    /// [`ClientError`]; a connection that ends first is one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.answers.next().await? {
            Answer::Data(data) => Ok(Some(data)),
            Answer::Message(CopyMessage::End { is_final: true }) => Ok(None),
            answer @ Answer::Message(_) => Err(failure(answer)),
        }
    }
}

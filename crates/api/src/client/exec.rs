//! Exec and attach: a WebSocket on a connection that the HTTP client upgraded, so that addresses,
//! tokens and TLS are the same as for every other call.

use super::{Client, ClientError};
use crate::exec::{
    DetachedExec, DetachedExecStart, ExecControl, ExecExit, ExecStart, StdinControl, TerminalSize,
    streams,
};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::{Method, Response, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use warren_core::ports::host_link::{ExecInput, ExecOutput, OutputStream};

/// A frame larger than this from the server is an error.
const LONGEST_FRAME: usize = 4 << 20;

/// A running command, or the workload itself.
pub struct ExecConnection {
    /// Towards it.
    pub input: ExecWriter,
    /// From it.
    pub output: ExecReader,
}

/// Towards a command.
pub struct ExecWriter {
    sink: SplitSink<WebSocketStream<Upgraded>, Message>,
    server: String,
}

/// From a command.
pub struct ExecReader {
    stream: SplitStream<WebSocketStream<Upgraded>>,
    server: String,
    done: bool,
}

impl Client {
    /// `GET /instances/{id}/exec`: runs a command. Dropping the connection ends it.
    ///
    /// # Errors
    /// [`ClientError`]; what the server refuses before the upgrade comes back as its problem.
    pub async fn exec(&self, id: &str, start: &ExecStart) -> Result<ExecConnection, ClientError> {
        let mut connection = self
            .web_socket(
                &["instances", id, "exec"],
                &[("stderr", "separate".to_owned())],
            )
            .await?;
        let first = serde_json::to_string(start).expect("our own schemas are JSON");
        connection.input.put(Message::text(first)).await?;
        Ok(connection)
    }

    /// `GET /instances/{id}/attach`: the workload itself, with a terminal of this size if it has one.
    /// Dropping the connection leaves it running.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach(
        &self,
        id: &str,
        terminal: Option<TerminalSize>,
    ) -> Result<ExecConnection, ClientError> {
        let query = attaching(terminal);
        self.web_socket(&["instances", id, "attach"], &query).await
    }

    /// `POST /instances/{id}/execs`: starts a command that needs no connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start_exec(
        &self,
        id: &str,
        start: &DetachedExecStart,
    ) -> Result<DetachedExec, ClientError> {
        let segments = ["instances", id, "execs"];
        self.post(&segments, start, super::REQUEST_TIMEOUT).await
    }

    /// `GET /instances/{id}/execs`: the detached commands, the oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn execs(&self, id: &str) -> Result<Vec<DetachedExec>, ClientError> {
        let segments = ["instances", id, "execs"];
        self.json(self.request(Method::GET, &segments)).await
    }

    /// `GET /instances/{id}/execs/{exec}`: one of them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn exec_of(&self, id: &str, exec: &str) -> Result<DetachedExec, ClientError> {
        let segments = ["instances", id, "execs", exec];
        self.json(self.request(Method::GET, &segments)).await
    }

    /// `DELETE /instances/{id}/execs/{exec}`: ends it, if it runs, and forgets it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_exec(&self, id: &str, exec: &str) -> Result<(), ClientError> {
        let segments = ["instances", id, "execs", exec];
        self.empty(self.request(Method::DELETE, &segments)).await
    }

    /// `GET /instances/{id}/execs/{exec}/attach`: connects to one. Dropping the connection leaves it running.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach_exec(
        &self,
        id: &str,
        exec: &str,
        terminal: Option<TerminalSize>,
    ) -> Result<ExecConnection, ClientError> {
        let segments = ["instances", id, "execs", exec, "attach"];
        self.web_socket(&segments, &attaching(terminal)).await
    }

    async fn web_socket(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<ExecConnection, ClientError> {
        let (sink, stream) = self.socket(segments, query).await?.split();
        let server = self.base.to_string();
        Ok(ExecConnection {
            input: ExecWriter {
                sink,
                server: server.clone(),
            },
            output: ExecReader {
                stream,
                server,
                done: false,
            },
        })
    }

    pub(super) async fn socket(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<WebSocketStream<Upgraded>, ClientError> {
        let key = generate_key();
        let request = self
            .upgrade_request(segments, query)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", &key);
        // The time-out of a request would end the upgraded connection too: only the answer is timed.
        let response: Response = tokio::time::timeout(super::REQUEST_TIMEOUT, self.send(request))
            .await
            .map_err(|_| ClientError::TimedOut {
                server: self.base.to_string(),
            })??;
        let accepted = response
            .headers()
            .get("sec-websocket-accept")
            .is_some_and(|value| value.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
        if response.status().as_u16() != 101 || !accepted {
            return Err(ClientError::Answer {
                reason: "it did not agree to a WebSocket".to_owned(),
            });
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|e| ClientError::from_transport(&self.base, &e))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(LONGEST_FRAME))
            .max_frame_size(Some(LONGEST_FRAME));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
    }
}

fn attaching(terminal: Option<TerminalSize>) -> Vec<(&'static str, String)> {
    let mut query = vec![("stderr", "separate".to_owned())];
    if let Some(size) = terminal {
        query.push(("rows", size.rows.to_string()));
        query.push(("cols", size.cols.to_string()));
    }
    query
}

impl ExecWriter {
    async fn put(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink
            .send(message)
            .await
            .map_err(|e| broken(&self.server, &e))
    }

    /// Sends; waits while the command does not read.
    ///
    /// # Errors
    /// [`ClientError::Transport`] when the connection is gone.
    pub async fn send(&mut self, input: ExecInput) -> Result<(), ClientError> {
        let control = match input {
            ExecInput::Stdin(bytes) => return self.put(Message::Binary(bytes)).await,
            ExecInput::CloseStdin => ExecControl::Stdin(StdinControl::Close),
            ExecInput::Resize { rows, columns } => ExecControl::Resize(TerminalSize {
                rows,
                cols: columns,
            }),
            ExecInput::Signal(signal) => ExecControl::Signal(signal),
        };
        let text = serde_json::to_string(&control).expect("our own schemas are JSON");
        self.put(Message::text(text)).await
    }
}

impl ExecReader {
    /// The next output; `Exited` is the last, then `None`. A connection that ends without it is an error.
    pub async fn next(&mut self) -> Option<Result<ExecOutput, ClientError>> {
        while !self.done {
            let outcome = match self.stream.next().await {
                None => Err(self.closed()),
                Some(Err(error)) => Err(broken(&self.server, &error)),
                Some(Ok(Message::Binary(bytes))) => match data(bytes) {
                    Some(output) => return Some(Ok(output)),
                    None => continue,
                },
                Some(Ok(Message::Text(text))) => exit(&text),
                Some(Ok(Message::Close(_))) => Err(self.closed()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            };
            self.done = true;
            return Some(outcome);
        }
        None
    }

    fn closed(&self) -> ClientError {
        ClientError::Transport {
            server: self.server.clone(),
            reason: "the connection closed before the command's exit code came".to_owned(),
        }
    }
}

fn data(mut bytes: Bytes) -> Option<ExecOutput> {
    let stream = match *bytes.first()? {
        streams::STDERR => OutputStream::Stderr,
        _ => OutputStream::Stdout,
    };
    Some(ExecOutput::Data(stream, bytes.split_off(1)))
}

fn exit(text: &str) -> Result<ExecOutput, ClientError> {
    let exit: ExecExit = super::error::decode(text.as_bytes())?;
    match exit.error {
        Some(error) => Err(ClientError::Refused(Box::new(super::Refused {
            status: 0,
            code: error.code,
            sentence: error.message,
            details: Vec::new(),
            request_id: None,
        }))),
        None => Ok(ExecOutput::Exited {
            code: exit.exit_code,
            message: exit.message,
        }),
    }
}

pub(super) fn broken(server: &str, error: &WsError) -> ClientError {
    ClientError::Transport {
        server: server.to_owned(),
        reason: super::error::chain(error),
    }
}

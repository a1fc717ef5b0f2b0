//! A small client of the QEMU Machine Protocol (docs/interop/qmp-spec.rst): one JSON document per line.
//!
//! A monitor serves one client at a time and the others wait in the listener's backlog. Connections for questions are
//! therefore short: connect, ask, close. That way a restarted server, a second reader and a hung client get in
//! each other's way for a deadline at most. Who waits for events does so at a second monitor. What ends a machine is seen by
//! its pidfd, not by events.
//!
//! Everything QEMU says is bounded; events before an answer are skipped.

use crate::process::Files;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest line: answers to what is asked here have a few hundred bytes.
const MAX_LINE: usize = 256 * 1024;
/// Most events before an answer.
const MAX_EVENTS: usize = 1024;

/// Why QMP gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens, or the connection broke.
    #[error("the QMP socket failed")]
    Socket(#[from] std::io::Error),
    /// It closed without an answer: QEMU ended.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// It did not answer in time.
    #[error("QEMU did not answer within {0:?}")]
    Timeout(Duration),
    /// It said what QMP does not say.
    #[error("QEMU said something that is not QMP: {0}")]
    Protocol(String),
    /// Memory and devices could not be written or read.
    #[error("QEMU could not move the machine's state: {0}")]
    Migration(String),
    /// It refused.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// QEMU's words.
        description: String,
    },
}

/// Run states of QEMU (qapi/run-state.json, `RunState`) as far as Warren tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Processors run, or are about to.
    Running,
    /// Processors are stopped and can be continued.
    Paused,
    /// A write of the guest found no room on the host's disk; continued, it is tried again.
    Stalled,
    /// The guest is off or can never run again.
    Off,
}

impl RunState {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "paused" | "suspended" | "prelaunch" | "save-vm" | "postmigrate" | "finish-migrate"
            | "debug" | "watchdog" => RunState::Paused,
            // Want of room alone stops a machine: see the disks' `werror`.
            "io-error" => RunState::Stalled,
            "shutdown" | "guest-panicked" | "internal-error" => RunState::Off,
            _ => RunState::Running,
        }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    value: Option<serde_json::Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// One connection, past capabilities negotiation.
pub(crate) struct Qmp<S> {
    stream: BufReader<S>,
}

impl Qmp<UnixStream> {
    /// Connects to a monitor of a home directory.
    async fn connect(directory: &Path, monitor: &'static str) -> Result<Self, QmpError> {
        let socket = crate::sockets::connect(directory, monitor)?;
        let stream = UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))?;
        Self::negotiate(stream).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Qmp<S> {
    /// Takes the greeting and leaves capabilities negotiation.
    pub(crate) async fn negotiate(stream: S) -> Result<Self, QmpError> {
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
        };
        let greeting = qmp.line().await?;
        if greeting.greeting.is_none() {
            return Err(QmpError::Protocol("no greeting".to_owned()));
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    async fn line(&mut self) -> Result<Line, QmpError> {
        let line = read_line(&mut self.stream).await?;
        serde_json::from_slice(&line).map_err(|error| QmpError::Protocol(error.to_string()))
    }

    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
    ) -> Result<serde_json::Value, QmpError> {
        self.execute_with(command, serde_json::json!({})).await
    }

    async fn execute_with(
        &mut self,
        command: &'static str,
        arguments: serde_json::Value,
    ) -> Result<serde_json::Value, QmpError> {
        let request = serde_json::json!({ "execute": command, "arguments": arguments });
        let request = format!("{request}\n");
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        for _ in 0..MAX_EVENTS {
            let line = self.line().await?;
            match (line.value, line.error, line.event) {
                (Some(value), _, _) => return Ok(value),
                (_, Some(refusal), _) => {
                    return Err(QmpError::Refused {
                        command,
                        description: refusal.desc.chars().take(500).collect(),
                    });
                }
                (_, _, Some(_)) => {}
                (None, None, None) => {
                    return Err(QmpError::Protocol("neither answer nor event".to_owned()));
                }
            }
        }
        Err(QmpError::Protocol("events and no answer".to_owned()))
    }

    async fn run_state(&mut self) -> Result<RunState, QmpError> {
        let answer = self.execute("query-status").await?;
        answer["status"]
            .as_str()
            .map(RunState::parse)
            .ok_or_else(|| QmpError::Protocol("a status without a name".to_owned()))
    }

    /// Until the processors are stopped next, for whatever reason.
    async fn stopped(&mut self) -> Result<(), QmpError> {
        while self.line().await?.event.as_deref() != Some("STOP") {}
        Ok(())
    }
}

/// What QEMU calls a migration: a machine's memory and devices on their way out or in.
impl<S: AsyncRead + AsyncWrite + Unpin> Qmp<S> {
    /// With pages at fixed places of the file, and only those that hold something (docs/devel/migration/mapped-ram.rst):
    /// the file is sparse, and no page is in it twice.
    async fn prepare_migration(&mut self) -> Result<(), QmpError> {
        let on = |capability| serde_json::json!({ "capability": capability, "state": true });
        let capabilities = serde_json::json!({ "capabilities": [on("events"), on("mapped-ram")] });
        self.execute_with("migrate-set-capabilities", capabilities)
            .await?;
        Ok(())
    }

    /// Waits for the end of what was begun.
    async fn migrated(&mut self) -> Result<(), QmpError> {
        loop {
            let answer = self.execute("query-migrate").await?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let why = answer["error-desc"]
                        .as_str()
                        .unwrap_or("it does not say why");
                    return Err(QmpError::Migration(why.chars().take(500).collect()));
                }
                _ => while self.line().await?.event.as_deref() != Some("MIGRATION") {},
            }
        }
    }

    /// Ends one that somebody else has begun and not ended; the machine is then as it was before.
    async fn cancel_migration(&mut self) -> Result<(), QmpError> {
        let answer = self.execute("query-migrate").await?;
        match answer["status"].as_str() {
            None | Some("none" | "completed" | "failed" | "cancelled") => {}
            Some(_) => {
                self.execute("migrate_cancel").await?;
                match self.migrated().await {
                    // Faster than the order, or ended by it.
                    Ok(()) | Err(QmpError::Migration(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Where a migration goes to or comes from.
fn channel(file: &Path) -> Result<serde_json::Value, QmpError> {
    let name = file
        .to_str()
        .ok_or_else(|| QmpError::Protocol("a path that is not UTF-8".to_owned()))?;
    let address = serde_json::json!({ "transport": "file", "filename": name, "offset": 0 });
    Ok(serde_json::json!([{ "channel-type": "main", "addr": address }]))
}

/// Bytes a second: all that there are.
const UNLIMITED: u64 = 1 << 50;

/// Writes a stopped machine's memory and devices to `file`. It can be continued afterwards, whatever the outcome.
pub(crate) async fn save(
    directory: &Path,
    file: &Path,
    deadline: Duration,
) -> Result<(), QmpError> {
    let saving = async {
        let mut qmp = Qmp::connect(directory, Files::QMP).await?;
        qmp.cancel_migration().await?;
        if qmp.execute("query-status").await?["status"] == "postmigrate" {
            // Saved before, for somebody who did not come to an end with it. QEMU does that twice only for one that has
            // run in between.
            qmp.execute("cont").await?;
            qmp.execute("stop").await?;
        }
        qmp.prepare_migration().await?;
        let parameters = serde_json::json!({ "max-bandwidth": UNLIMITED });
        qmp.execute_with("migrate-set-parameters", parameters)
            .await?;
        let to = serde_json::json!({ "channels": channel(file)? });
        qmp.execute_with("migrate", to).await?;
        qmp.migrated().await
    };
    let late = |_| QmpError::Timeout(deadline);
    tokio::time::timeout(deadline, saving).await.map_err(late)?
}

/// Gives a machine that waits for it what [`save`] wrote. Its processors stay stopped. QEMU ends where it cannot.
pub(crate) async fn load(
    directory: &Path,
    file: &Path,
    deadline: Duration,
) -> Result<(), QmpError> {
    let loading = async {
        let mut qmp = Qmp::connect(directory, Files::QMP).await?;
        qmp.prepare_migration().await?;
        let from = serde_json::json!({ "channels": channel(file)? });
        qmp.execute_with("migrate-incoming", from).await?;
        qmp.migrated().await
    };
    let late = |_| QmpError::Timeout(deadline);
    tokio::time::timeout(deadline, loading)
        .await
        .map_err(late)?
}

async fn read_line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>, QmpError> {
    let mut line = Vec::new();
    loop {
        let held = stream.fill_buf().await?;
        if held.is_empty() {
            return Err(QmpError::Closed);
        }
        let end = held.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(held.len(), |at| at + 1);
        if line.len() + taken > MAX_LINE {
            return Err(QmpError::Protocol(format!(
                "a line of more than {MAX_LINE} bytes"
            )));
        }
        line.extend_from_slice(&held[..taken]);
        stream.consume(taken);
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Connects, asks once, closes.
pub(crate) async fn ask(
    directory: &Path,
    command: &'static str,
    deadline: Duration,
) -> Result<serde_json::Value, QmpError> {
    tokio::time::timeout(deadline, async {
        let mut qmp = Qmp::connect(directory, Files::QMP).await?;
        qmp.execute(command).await
    })
    .await
    .map_err(|_| QmpError::Timeout(deadline))?
}

/// `query-status`.
pub(crate) async fn run_state(directory: &Path, deadline: Duration) -> Result<RunState, QmpError> {
    tokio::time::timeout(deadline, async {
        let mut qmp = Qmp::connect(directory, Files::QMP).await?;
        qmp.run_state().await
    })
    .await
    .map_err(|_| QmpError::Timeout(deadline))?
}

/// QEMU's version (`10.0.2`), and what it calls the machine.
pub(crate) async fn identify(
    directory: &Path,
    deadline: Duration,
) -> Result<(String, String), QmpError> {
    let asking = async {
        let mut qmp = Qmp::connect(directory, Files::QMP).await?;
        let version = qmp.execute("query-version").await?["qemu"].take();
        let numbers = ["major", "minor", "micro"].map(|part| version[part].to_string());
        let what = serde_json::json!({ "path": "/machine", "property": "type" });
        let machine = qmp.execute_with("qom-get", what).await?;
        let machine = machine.as_str().unwrap_or_default().to_owned();
        Ok((numbers.join("."), machine))
    };
    let late = |_| QmpError::Timeout(deadline);
    tokio::time::timeout(deadline, asking).await.map_err(late)?
}

/// Waits, for as long as it takes, until the machine is stalled. Each question it asks has the deadline.
pub(crate) async fn stalled(directory: &Path, deadline: Duration) -> Result<(), QmpError> {
    let late = |_| QmpError::Timeout(deadline);
    let connecting = Qmp::connect(directory, Files::EVENTS);
    let mut qmp = tokio::time::timeout(deadline, connecting)
        .await
        .map_err(late)??;
    loop {
        let asked = tokio::time::timeout(deadline, qmp.run_state());
        if asked.await.map_err(late)?? == RunState::Stalled {
            return Ok(());
        }
        qmp.stopped().await?;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use tokio::net::UnixListener;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Serves one client with these lines, one per line that it sends (the first at once).
    fn serve(directory: &Path, lines: &'static [&'static str]) {
        serve_at(directory, Files::QMP, lines);
    }

    fn serve_at(directory: &Path, monitor: &str, lines: &'static [&'static str]) {
        let listener = std::os::unix::net::UnixListener::from(
            crate::sockets::listen(directory, monitor).unwrap(),
        );
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            for line in lines {
                stream.get_mut().write_all(line.as_bytes()).await.unwrap();
                let mut asked = String::new();
                stream.read_line(&mut asked).await.unwrap();
            }
        });
    }

    const GREETING: &str = "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n";

    #[tokio::test]
    async fn events_before_the_answer_are_skipped() {
        let root = tempfile::tempdir().unwrap();
        serve(
            root.path(),
            &[
                GREETING,
                "{\"return\":{}}\n",
                "{\"event\":\"STOP\",\"timestamp\":{}}\n{\"return\":{\"status\":\"paused\",\"running\":false}}\n",
            ],
        );
        let state = run_state(root.path(), DEADLINE).await.unwrap();
        assert_eq!(state, RunState::Paused);
    }

    #[tokio::test]
    async fn a_stall_is_noticed_when_it_happens_and_when_it_has() {
        let root = tempfile::tempdir().unwrap();
        serve_at(
            root.path(),
            Files::EVENTS,
            &[
                GREETING,
                "{\"return\":{}}\n",
                // Somebody pauses it, and it goes on; then a disk is full.
                "{\"return\":{\"status\":\"running\"}}\n{\"event\":\"STOP\"}\n",
                "{\"return\":{\"status\":\"paused\"}}\n{\"event\":\"RESUME\"}\n\
                 {\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"nospace\":true}}\n{\"event\":\"STOP\"}\n",
                "{\"return\":{\"status\":\"io-error\"}}\n",
            ],
        );
        stalled(root.path(), DEADLINE).await.unwrap();
        let root = tempfile::tempdir().unwrap();
        let lines = &[
            GREETING,
            "{\"return\":{}}\n",
            "{\"return\":{\"status\":\"io-error\"}}\n",
        ];
        serve_at(root.path(), Files::EVENTS, lines);
        stalled(root.path(), DEADLINE).await.unwrap();
        let gone = stalled(root.path(), Duration::from_millis(50)).await;
        assert!(gone.is_err(), "nobody answers there any more");
    }

    #[tokio::test]
    async fn a_refusal_has_qemus_words() {
        let root = tempfile::tempdir().unwrap();
        serve(
            root.path(),
            &[
                GREETING,
                "{\"return\":{}}\n",
                "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"}}\n",
            ],
        );
        let error = ask(root.path(), "cont", DEADLINE).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused cont: no such thing");
    }

    #[tokio::test]
    async fn silence_rubbish_and_endless_lines_end_in_errors() {
        let root = tempfile::tempdir().unwrap();
        let _silent = crate::sockets::listen(root.path(), Files::QMP).unwrap();
        let short = Duration::from_millis(50);
        assert!(matches!(
            run_state(root.path(), short).await,
            Err(QmpError::Timeout(_))
        ));
        serve(root.path(), &["SSH-2.0-x\n"]);
        assert!(matches!(
            run_state(root.path(), DEADLINE).await,
            Err(QmpError::Protocol(_))
        ));
        let endless = vec![b'x'; MAX_LINE + 1];
        assert!(matches!(
            read_line(&mut endless.as_slice()).await,
            Err(QmpError::Protocol(_))
        ));
        assert!(matches!(
            read_line(&mut &b"cut"[..]).await,
            Err(QmpError::Closed)
        ));
    }
}

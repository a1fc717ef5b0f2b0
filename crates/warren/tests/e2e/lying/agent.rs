//! An agent that lies: it takes the place of the real one at the socket of a running machine, greets, answers pings, and for
//! everything else does what the command or the path that it is asked for is called.

use crate::harness::Server;
use crate::lies;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use warren_guest::protocol::files::{FileInfo, FileKind, FileReply, ListedFile};
use warren_guest::protocol::mux::{self, MuxStream};
use warren_guest::protocol::{
    AttachKey, ControlEvent, DetachedCommand, DetachedReply, DetachedRequest, ExitReport,
    ExitStatus, FileRequest, FrameError, FrameKind, FrameReader, FrameWriter, GuestStats, LogEntry,
    LogRecord, Open, OutputStream, PROTOCOL_VERSION, ReadyReport,
};
use warren_guest::serve::Link;

type Reader = FrameReader<ReadHalf<MuxStream>>;
type Writer = FrameWriter<WriteHalf<MuxStream>>;

/// What a terminal would carry out: a title, a screen that is cleared, an answer that is typed.
pub(super) const ESCAPES: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[6n\u{9b}31m";
/// Between two bytes that drip.
const DRIP: Duration = Duration::from_millis(10);
/// Longest piece of data that a host takes.
const PIECE: usize = 64 << 10;

/// What it sends as the workload's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogLie {
    /// Nothing.
    Silence,
    /// Without end, and never a line's end.
    Endless,
    /// One record twice.
    Twice,
}

/// An agent that lies, as long as this lives.
pub(super) struct Liar {
    _runtime: tokio::runtime::Runtime,
    logs: watch::Sender<LogLie>,
}

#[derive(Clone)]
struct Told {
    key: AttachKey,
    instance: String,
    logs: watch::Receiver<LogLie>,
    /// What the control stream is to say beside its answers, and how often it was asked to.
    control: watch::Sender<(u64, ControlLie)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ControlLie {
    None,
    Length,
    Greeting,
    Talk,
}

impl Liar {
    /// Takes the place of the agent of this instance. A server that has attached to it must attach again to notice.
    pub(super) fn replace(server: &Server, id: &str) -> Self {
        let (directory, record) = record_of(server, id);
        let socket = directory.join("channel.sock");
        std::fs::remove_file(&socket).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let logs = watch::Sender::new(LogLie::Silence);
        let told = Told {
            key: record["attach_key"].as_str().unwrap().parse().unwrap(),
            instance: id.to_owned(),
            logs: logs.subscribe(),
            control: watch::Sender::new((0, ControlLie::None)),
        };
        let _inside = runtime.enter();
        let listener = UnixListener::bind(&socket).unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(told.clone().session(stream));
            }
        });
        Liar {
            _runtime: runtime,
            logs,
        }
    }

    /// From now on.
    pub(super) fn log(&self, lie: LogLie) {
        self.logs.send_replace(lie);
    }
}

fn record_of(server: &Server, id: &str) -> (PathBuf, Value) {
    let instances = std::fs::read_dir(server.data().join("instances")).unwrap();
    let found = instances.flatten().find_map(|directory| {
        let record = std::fs::read(directory.path().join("record.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        (record["intent"]["id"] == id).then(|| (directory.path(), record))
    });
    found.unwrap()
}

impl Told {
    async fn session(self, stream: UnixStream) {
        let mut link = Link::new(stream, &self.key);
        while let Ok(Some(session)) = link.attach().await {
            let told = self.clone();
            let _ = mux::guest(session, move |stream| {
                let told = told.clone();
                tokio::spawn(async move {
                    // An error: the host has had enough of it.
                    let _ = told.stream(stream).await;
                });
            })
            .await;
        }
    }

    async fn stream(self, stream: MuxStream) -> Result<(), FrameError> {
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, 4 << 20);
        let writer = FrameWriter::new(write);
        match reader.message::<Open>().await? {
            Open::Control => self.control(reader, writer).await,
            Open::Logs { from } => self.logs(from, writer).await,
            Open::Exec(request) => {
                let lie = request.command.first().cloned().unwrap_or_default();
                self.exec(&lie, reader, writer).await
            }
            Open::Files(request) => files(request, reader, writer).await,
            Open::Detached(request) => detached(request, reader, writer).await,
            Open::Input
            | Open::Connect(_)
            | Open::Listen(_)
            | Open::Accept { .. }
            | Open::Freeze { .. } => silence(reader).await,
        }
    }

    async fn control(mut self, mut reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
        let hello = ControlEvent::Hello {
            protocol: PROTOCOL_VERSION,
            agent: ESCAPES.to_owned(),
            instance_id: Some(self.instance.clone()),
        };
        writer.message(&hello).await?;
        let ready = ReadyReport {
            init_millis: u64::MAX,
            port_millis: u64::MAX,
            root_millis: 0,
            config_millis: u64::MAX,
            ready_millis: 0,
        };
        writer.message(&ControlEvent::Ready(ready)).await?;
        writer.message(&ControlEvent::Started { pid: -1 }).await?;
        let mut lies = self.control.subscribe();
        lies.borrow_and_update();
        self.logs.borrow_and_update();
        loop {
            tokio::select! {
                _ = lies.changed() => {
                    let (_, lie) = *lies.borrow_and_update();
                    match lie {
                        ControlLie::None => {}
                        ControlLie::Length => return raw(writer, u32::MAX, 0).await,
                        ControlLie::Greeting => writer.message(&hello).await?,
                        ControlLie::Talk => loop {
                            let pong = ControlEvent::Pong { id: u64::MAX };
                            writer.message(&pong).await?;
                        },
                    }
                }
                request = reader.message::<Value>() => {
                    let request = request?;
                    let Some(id) = request["id"].as_u64() else { continue };
                    // Answers that nobody waits for, before the one that somebody does.
                    for wrong in [0, id + 1, u64::MAX] {
                        writer.message(&ControlEvent::Pong { id: wrong }).await?;
                        writer.message(&ControlEvent::Stats { id: wrong, stats: GuestStats::default() }).await?;
                    }
                    let answer = match request["request"].as_str() {
                        Some("stats") => ControlEvent::Stats { id, stats: boundless() },
                        _ => ControlEvent::Pong { id },
                    };
                    writer.message(&answer).await?;
                }
            }
        }
    }

    async fn logs(mut self, from: u64, mut writer: Writer) -> Result<(), FrameError> {
        let mut seq = from.max(1);
        let data = ESCAPES.repeat(PIECE / ESCAPES.len());
        loop {
            let lie = *self.logs.borrow_and_update();
            let numbers: &[u64] = match lie {
                LogLie::Silence => {
                    if self.logs.changed().await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                LogLie::Endless => &[0],
                LogLie::Twice => &[0, 0],
            };
            for number in numbers {
                let record = LogEntry::Record(LogRecord {
                    seq: seq + number,
                    unix_nanos: u64::MAX,
                    stream: OutputStream::Stdout,
                    data: data.clone().into(),
                });
                let (kind, header, data) = record.to_parts()?;
                writer.send(kind, &[&header, &data]).await?;
            }
            seq += 1;
        }
    }

    async fn exec(self, lie: &str, reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
        match lie {
            "length" => return raw(writer, u32::MAX, FrameKind::Stdout as u8).await,
            "kind" => return raw(writer, 2, 99).await,
            "malformed" => writer.send(FrameKind::Message, &[b"{\"status\":"]).await?,
            "gone" => return writer.finish().await,
            "endless" => {
                let data = ESCAPES.repeat(PIECE / ESCAPES.len());
                loop {
                    writer.send(FrameKind::Stdout, &[data.as_bytes()]).await?;
                }
            }
            "empty" => loop {
                writer.send(FrameKind::Stderr, &[]).await?;
            },
            // A byte of a frame at a time, and it is a long one.
            "drip" => {
                let mut stream = writer.into_inner();
                let header = [0, 0, 255, 255, FrameKind::Stdout as u8];
                for byte in header.into_iter().chain(std::iter::repeat(b'.')) {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(DRIP).await;
                }
                return Ok(());
            }
            "control-length" | "control-greeting" | "control-talk" => {
                let lie = match lie {
                    "control-length" => ControlLie::Length,
                    "control-talk" => ControlLie::Talk,
                    _ => ControlLie::Greeting,
                };
                self.control.send_modify(|(times, current)| {
                    *times += 1;
                    *current = lie;
                });
            }
            "rude" => {
                let report = ExitReport {
                    status: ExitStatus::Signal(i32::MIN),
                    message: Some(ESCAPES.repeat(1000)),
                };
                writer.message(&report).await?;
                // Whatever it is, it is over.
                writer
                    .send(FrameKind::Stdout, &[b"and another thing"])
                    .await?;
            }
            _ => {
                writer.send(FrameKind::Stdout, &[lie.as_bytes()]).await?;
                writer.message(&ExitReport::code(0)).await?;
            }
        }
        silence(reader).await
    }
}

/// A frame's header, and rubbish where its payload should be.
async fn raw(writer: Writer, length: u32, kind: u8) -> Result<(), FrameError> {
    let mut stream = writer.into_inner();
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&[kind]).await?;
    let rubbish = vec![b'x'; PIECE];
    loop {
        stream.write_all(&rubbish).await?;
    }
}

/// Takes whatever comes and says nothing.
async fn silence(mut reader: Reader) -> Result<(), FrameError> {
    while reader.next().await?.is_some() {}
    std::future::pending().await
}

fn boundless() -> GuestStats {
    GuestStats {
        uptime_millis: u64::MAX,
        cpu_busy_millis: u64::MAX,
        cpus: u32::MAX,
        memory_total_bytes: 0,
        memory_available_bytes: u64::MAX,
        disk_total_bytes: 0,
        disk_free_bytes: u64::MAX,
        network_rx_bytes: u64::MAX,
        network_tx_bytes: u64::MAX,
        disk_read_bytes: u64::MAX,
        disk_written_bytes: u64::MAX,
        tasks: u32::MAX,
    }
}

fn info(kind: FileKind, size: u64) -> FileInfo {
    FileInfo {
        kind,
        mode: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        size,
        modified_seconds: i64::MAX,
        modified_nanos: u32::MAX,
        link_target: Some(format!("../../../{ESCAPES}")),
    }
}

fn found(kind: FileKind, size: u64) -> FileReply {
    let info = info(kind, size);
    FileReply::Found { info }
}

/// Commands that nobody started, an answer to something else, and, to whoever joins, output that does not end.
async fn detached(
    request: DetachedRequest,
    reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    match request {
        DetachedRequest::List => {
            let lie = |id: &str| DetachedCommand {
                id: id.to_owned(),
                command: vec![ESCAPES.to_owned(); 20],
                user: Some(ESCAPES.to_owned()),
                terminal: false,
                attached: usize::MAX,
                started_unix_nanos: u64::MAX,
                ended_unix_nanos: Some(0),
                exited: None,
            };
            let commands = vec![lie(ESCAPES), lie("endless"), lie("endless")];
            writer.message(&DetachedReply::List { commands }).await
        }
        DetachedRequest::Attach { .. } => {
            writer.message(&DetachedReply::Attached).await?;
            loop {
                let data = vec![b'y'; PIECE];
                writer.send(FrameKind::Stdout, &[&data]).await?;
            }
        }
        DetachedRequest::Start { .. } => writer.message(&DetachedReply::Removed).await,
        DetachedRequest::Remove { .. } => silence(reader).await,
    }
}

async fn files(request: FileRequest, reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
    match request {
        FileRequest::Stat { path, .. } if path.starts_with("/silent") => {}
        FileRequest::Stat { path, .. } => {
            let reply = match path.starts_with("/tree") {
                true => found(FileKind::Directory, u64::MAX),
                false => found(FileKind::File, 10),
            };
            writer.message(&reply).await?;
        }
        FileRequest::Read { path, .. } => read(&path, writer).await?,
        FileRequest::Pack { path, .. } => pack(path.trim_end_matches("/."), writer).await?,
        FileRequest::List { path, .. } => list(&path, writer).await?,
        FileRequest::Write { .. } | FileRequest::Unpack { .. } => {
            // Done before it has begun, and more than there was.
            writer.message(&FileReply::Done { bytes: u64::MAX }).await?;
        }
        FileRequest::Remove { .. } | FileRequest::MakeDirectory { .. } => {
            writer.send(FrameKind::File, &[b"what?"]).await?;
        }
    }
    silence(reader).await
}

async fn read(path: &str, mut writer: Writer) -> Result<(), FrameError> {
    match path {
        "/length" => {
            writer.message(&found(FileKind::File, 4 << 30)).await?;
            raw(writer, u32::MAX, FrameKind::File as u8).await
        }
        "/more" => {
            writer.message(&found(FileKind::File, 10)).await?;
            loop {
                writer.send(FrameKind::File, &[&[0; 60_000]]).await?;
            }
        }
        "/unsized" => {
            writer.message(&found(FileKind::File, 0)).await?;
            loop {
                writer.send(FrameKind::File, &[&[0; 60_000]]).await?;
            }
        }
        "/fewer" => {
            writer.message(&found(FileKind::File, 10)).await?;
            writer.send(FrameKind::File, &[b"12345"]).await?;
            writer.message(&FileReply::Done { bytes: 10 }).await
        }
        _ => {
            writer
                .message(&FileReply::Listed { files: Vec::new() })
                .await
        }
    }
}

async fn list(path: &str, mut writer: Writer) -> Result<(), FrameError> {
    let file = ListedFile {
        path: format!("../../../etc/{ESCAPES}"),
        info: info(FileKind::Symlink, u64::MAX),
    };
    match path {
        // An entry each, so that there are more of them than there is room for.
        "/endless" => loop {
            let path = "x".repeat(4000);
            let files = vec![
                ListedFile {
                    path,
                    ..file.clone()
                };
                128
            ];
            writer.message(&FileReply::Listed { files }).await?;
        },
        "/crowd" => {
            let files = vec![file; 129];
            writer.message(&FileReply::Listed { files }).await
        }
        _ => {
            let files = vec![file];
            writer.message(&FileReply::Listed { files }).await?;
            writer.message(&FileReply::Done { bytes: 0 }).await
        }
    }
}

async fn pack(path: &str, mut writer: Writer) -> Result<(), FrameError> {
    writer.message(&found(FileKind::Directory, 0)).await?;
    let archive = lies::archive(path.strip_prefix("/tree-").unwrap_or_default());
    for piece in archive.chunks(100) {
        writer.send(FrameKind::File, &[piece]).await?;
    }
    if path == "/tree-endless" {
        // The same small file again and again, until nobody takes it any more.
        loop {
            writer.send(FrameKind::File, &[&archive]).await?;
        }
    }
    let bytes = archive.len() as u64;
    writer.message(&FileReply::Done { bytes }).await
}

/// The lies of `warren cp`, of those that the CLI's own tests tell as a server.
pub(super) const TREES: [&str; 9] = [
    "parent", "deep", "absolute", "through", "twice", "hard", "above", "promises", "names",
];

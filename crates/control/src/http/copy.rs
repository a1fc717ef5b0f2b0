//! Files into an instance and out of it: what a path leads to, and copies over a WebSocket.
//!
//! Nothing is kept here: a guest that takes nothing makes the client wait, and a client that takes nothing the guest. A copy that
//! breaks off is a failed one, and leaves no half file under its name.

use super::Http;
use super::extract::{Id, Params, bad_query};
use super::reply::{Reply, json};
use super::websocket::{BRIEF, PING, SILENCE, first_frame, stopping, upgrade};
use crate::app::{App, AppError};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};
use warren_api::convert::ConvertError;
use warren_api::{
    Code, CopyDirection, CopyFormat, CopyHeader, CopyMessage, CopyResult, CopyStart, PathInfo,
    Problem,
};
use warren_core::PortError;
use warren_core::ports::BoxStream;
use warren_core::ports::guest_files::{
    Depth, FileFault, FileInfo, FileKind, LastLink, MakeDirectory, PackTree, Parents, ReadRange,
    TreeOwners, UnpackTree, WriteFile,
};

/// Pieces that wait for the guest.
const WAITING: usize = 4;

type Sink = SplitSink<WebSocket, Message>;
type Data = BoxStream<Result<Bytes, PortError>>;

/// Look at a path inside an instance
#[utoipa::path(get, path = "/instances/{id}/stat", operation_id = "statInstancePath", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("path" = String, Query, min_length = 1, max_length = 4095, pattern = "^/", description = "The path inside the instance"),
        ("follow_links" = Option<bool>, Query, description = "Whether a symbolic link at its end is followed")),
    responses((status = 200, description = "What it leads to", body = PathInfo)))]
pub(super) async fn stat(State(http): State<Http>, Id(id): Id, mut params: Params) -> Reply {
    let path = params
        .one("path")?
        .ok_or_else(|| bad_query("path", "is needed"))?;
    let follow = params.parsed::<bool>("follow_links", "true or false")?;
    params.finish()?;
    let found = http
        .app
        .stat_file(&id, &path, last_link(follow.unwrap_or(false)));
    let info = match found.await {
        Ok(info) => path_info(info),
        Err(AppError::Port(error)) => match FileFault::of(&error) {
            Some(FileFault::NotFound | FileFault::NotADirectory) => PathInfo::default(),
            Some(_) => PathInfo {
                error: Some(error.sentence()),
                ..PathInfo::default()
            },
            None => return Err(AppError::Port(error).into()),
        },
        // What is a field elsewhere is the query's here.
        Err(AppError::Request(ConvertError::Field { field, problem })) => {
            return Err(bad_query(field, problem));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(json(StatusCode::OK, &info))
}

fn last_link(follow: bool) -> LastLink {
    match follow {
        true => LastLink::Followed,
        false => LastLink::Kept,
    }
}

fn path_info(info: FileInfo) -> PathInfo {
    PathInfo {
        exists: true,
        is_dir: Some(info.kind == FileKind::Directory),
        is_file: Some(info.kind == FileKind::File),
        is_symlink: Some(info.kind == FileKind::Symlink),
        link_target: info.link_target,
        mode: Some(info.mode),
        size: Some(info.size),
        error: None,
    }
}

/// Copy files into an instance or out of it
///
/// A WebSocket. The first frame is text: a CopyStart. Into the instance: binary data, then `{"type":"end"}`; the answer is a
/// CopyResult. Out of it: for each file a CopyHeader, binary data and `{"type":"end"}`, and in the end `{"type":"end","final":true}`; a
/// failure is `{"type":"error"}`. With the format `tar`, the data are one tar stream. A socket that closes earlier is a failed copy.
#[utoipa::path(get, path = "/instances/{id}/cp", operation_id = "copyInstancePath", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 101, description = "A WebSocket: see CopyStart and CopyMessage")))]
pub(super) async fn copy(
    State(http): State<Http>,
    Id(id): Id,
    params: Params,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Reply {
    params.finish()?;
    let id = http.app.check_copy(&id)?.intent.id.to_string();
    let app = http.app.clone();
    Ok(upgrade(socket)?
        .on_upgrade(move |socket| async move {
            let (mut sink, stream) = socket.split();
            let close = tokio::select! {
                () = run(&app, &id, &mut sink, stream) => None,
                () = app.stopping().cancelled() => Some(stopping()),
            };
            // A client that went away does not hear it.
            let _ = timeout(BRIEF, sink.send(Message::Close(close))).await;
        })
        .into_response())
}

async fn run(app: &App, id: &str, sink: &mut Sink, mut stream: SplitStream<WebSocket>) {
    let start: CopyStart = match first_frame(&mut stream, "a CopyStart").await {
        Ok(start) => start,
        Err(problem) => return fail(sink, AppError::coded(Code::InvalidBody, problem), None).await,
    };
    match start.direction {
        CopyDirection::To => {
            let result = receive(app, id, &start, sink, stream).await;
            let result = result.unwrap_or_else(|error| {
                let problem = Problem::from(&error);
                CopyResult {
                    success: false,
                    error: Some(problem.detail),
                    bytes_written: 0,
                    code: Some(problem.code),
                }
            });
            let _ = say(sink, &CopyMessage::Result(result)).await;
        }
        CopyDirection::From => {
            let sent = match start.format {
                CopyFormat::Tar => send_tree(app, id, &start, sink).await,
                CopyFormat::Files => send_files(app, id, &start, sink).await,
            };
            match sent {
                Ok(()) => {
                    let _ = say(sink, &CopyMessage::End { is_final: true }).await;
                }
                Err(Broken::Copy(error)) => fail(sink, error, Some(start.guest_path)).await,
                Err(Broken::Client) => {}
            }
        }
    }
}

/// Why a copy out of an instance ended early.
enum Broken {
    Copy(AppError),
    /// The client takes nothing any more.
    Client,
}

impl From<AppError> for Broken {
    fn from(error: AppError) -> Self {
        Broken::Copy(error)
    }
}

impl From<PortError> for Broken {
    fn from(error: PortError) -> Self {
        Broken::Copy(error.into())
    }
}

async fn put(sink: &mut Sink, message: Message) -> Result<(), Broken> {
    match timeout(SILENCE, sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Broken::Client),
    }
}

async fn say(sink: &mut Sink, message: &CopyMessage) -> Result<(), Broken> {
    let text = serde_json::to_string(message).expect("our own schemas are JSON");
    put(sink, Message::Text(text.into())).await
}

async fn fail(sink: &mut Sink, error: AppError, path: Option<String>) {
    let problem = Problem::from(&error);
    let message = CopyMessage::Error {
        message: problem.detail,
        path,
        code: Some(problem.code),
    };
    let _ = say(sink, &message).await;
}

/// Sends what comes, and pings while nothing does.
async fn pour(mut data: Data, sink: &mut Sink) -> Result<(), Broken> {
    let mut pings = interval_at(Instant::now() + PING, PING);
    loop {
        tokio::select! {
            biased;
            piece = data.next() => match piece {
                Some(piece) => put(sink, Message::Binary(piece?)).await?,
                None => return Ok(()),
            },
            _ = pings.tick() => put(sink, Message::Ping(Bytes::new())).await?,
        }
    }
}

async fn send_tree(app: &App, id: &str, start: &CopyStart, sink: &mut Sink) -> Result<(), Broken> {
    let tree = PackTree {
        path: start.guest_path.clone(),
        last: last_link(start.follow_links),
        name: basename(start)?.unwrap_or_else(|| ".".to_owned()),
    };
    pour(app.pack_tree(id, tree).await?, sink).await
}

async fn send_files(app: &App, id: &str, start: &CopyStart, sink: &mut Sink) -> Result<(), Broken> {
    let top = start.guest_path.as_str();
    let info = app
        .stat_file(id, top, last_link(start.follow_links))
        .await?;
    let name = match info.kind {
        FileKind::Directory => ".",
        _ => top.rsplit('/').find(|name| !name.is_empty()).unwrap_or("."),
    };
    let is_directory = info.kind == FileKind::Directory;
    send_file(app, id, top, name.to_owned(), info, sink).await?;
    if !is_directory {
        return Ok(());
    }
    let mut files = app.list_files(id, top, Depth::Recursive).await?;
    while let Some(file) = files.next().await {
        let file = file?;
        let path = format!("{}/{}", top.trim_end_matches('/'), file.path);
        send_file(app, id, &path, file.path, file.info, sink).await?;
    }
    Ok(())
}

async fn send_file(
    app: &App,
    id: &str,
    path: &str,
    name: String,
    info: FileInfo,
    sink: &mut Sink,
) -> Result<(), Broken> {
    let (info, data) = match info.kind {
        FileKind::File => {
            let content = app.read_file(id, path, ReadRange::default()).await?;
            (content.info, Some(content.data))
        }
        FileKind::Directory | FileKind::Symlink => (info, None),
        // Nothing could be made of it elsewhere.
        FileKind::Other => return Ok(()),
    };
    let mtime = info.modified_seconds();
    let header = CopyHeader {
        path: name,
        mode: info.mode,
        is_dir: info.kind == FileKind::Directory,
        is_symlink: info.kind == FileKind::Symlink,
        link_target: info.link_target,
        size: match data {
            Some(_) => info.size,
            None => 0,
        },
        mtime,
        uid: info.uid,
        gid: info.gid,
    };
    say(sink, &CopyMessage::Header(header)).await?;
    if let Some(data) = data {
        pour(data, sink).await?;
    }
    say(sink, &CopyMessage::End { is_final: false }).await
}

/// What the client calls it: one name, or none.
fn basename(start: &CopyStart) -> Result<Option<String>, AppError> {
    match start.src_basename.as_deref() {
        None | Some("") => Ok(None),
        Some(".." | ".") => Err(AppError::field("src_basename", "must be a name")),
        Some(name) if name.contains(['/', '\0']) || name.len() > 255 => {
            Err(AppError::field("src_basename", "must be a name"))
        }
        Some(name) => Ok(Some(name.to_owned())),
    }
}

async fn receive(
    app: &App,
    id: &str,
    start: &CopyStart,
    sink: &mut Sink,
    stream: SplitStream<WebSocket>,
) -> Result<CopyResult, AppError> {
    let (to_guest, pieces) = mpsc::channel(WAITING);
    let pieces = futures::stream::unfold(pieces, |mut pieces| async move {
        Some((pieces.recv().await?, pieces))
    });
    let work = write(app, id, start, pieces.boxed());
    let reading = read(stream, to_guest);
    tokio::pin!(work, reading);
    let mut pings = interval_at(Instant::now() + PING, PING);
    let mut received = None;
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                done?;
                let bytes_written = match received {
                    Some(bytes) => bytes,
                    // A directory needs no data; the end is on its way.
                    None => reading.await,
                };
                return Ok(CopyResult { success: true, bytes_written, ..CopyResult::default() });
            }
            bytes = &mut reading, if received.is_none() => received = Some(bytes),
            _ = pings.tick() => {
                // A client that is gone shows when it is read from.
                let _ = timeout(SILENCE, sink.send(Message::Ping(Bytes::new()))).await;
            }
        }
    }
}

/// Passes on what the client sends, up to its end; answers with how much it was. Whatever else happens is an error in the data, so
/// that nothing is made of them.
async fn read(
    mut stream: SplitStream<WebSocket>,
    to_guest: mpsc::Sender<Result<Bytes, PortError>>,
) -> u64 {
    let mut received = 0;
    let problem = loop {
        let Ok(next) = timeout(SILENCE, stream.next()).await else {
            break "the client fell silent in the middle of the copy";
        };
        match next {
            Some(Ok(Message::Binary(data))) => {
                received += data.len() as u64;
                // What the guest takes no more has an error to tell.
                let _ = to_guest.send(Ok(data)).await;
            }
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(CopyMessage::End { .. }) => return received,
                Ok(_) | Err(_) => break "a frame that has no place in this copy",
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                break "the connection closed before the copy was complete";
            }
        }
    };
    let error = PortError::invalid("copy_broken_off", problem);
    let _ = to_guest.send(Err(error)).await;
    received
}

async fn write(app: &App, id: &str, start: &CopyStart, data: Data) -> Result<(), AppError> {
    let owner = match (start.uid, start.gid) {
        (None, None) => None,
        (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
    };
    let mode = start.mode.filter(|mode| *mode != 0);
    if mode.is_some_and(|mode| mode > 0o7777) {
        return Err(AppError::field(
            "mode",
            "must be permission bits, at most 4095",
        ));
    }
    if start.format == CopyFormat::Tar {
        let owners = match (start.keep_owners, owner) {
            (true, _) => TreeOwners::Archived,
            (false, owner) => {
                let (uid, gid) = owner.unwrap_or((0, 0));
                TreeOwners::All(uid, gid)
            }
        };
        let path = start.guest_path.clone();
        return app.unpack_tree(id, UnpackTree { path, owners }, data).await;
    }
    if start.is_dir {
        // Made once the client has said that this was all.
        let mut data = data;
        while let Some(piece) = data.next().await {
            if !piece?.is_empty() {
                return Err(AppError::field("is_dir", "a directory has no content"));
            }
        }
        let directory = MakeDirectory {
            path: start.guest_path.clone(),
            mode,
            owner,
            parents: Parents::Created,
        };
        return app.make_directory(id, directory).await;
    }
    let mut path = start.guest_path.clone();
    if let Some(name) = basename(start)?
        && let Ok(info) = app.stat_file(id, &path, LastLink::Followed).await
        && info.kind == FileKind::Directory
    {
        path = format!("{}/{name}", path.trim_end_matches('/'));
    }
    let file = WriteFile {
        path,
        mode,
        owner,
        parents: Parents::Created,
    };
    app.write_file(id, file, data).await.map(drop)
}

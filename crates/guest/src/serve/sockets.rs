//! Connections that the host has made in the guest, and such that were made to where it listens there.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::Machine;
use super::session::{Reader, Writer};
use crate::protocol::{Endpoint, FrameError, ListenPlace, ListenReply, OpenReply};

/// Connections that wait to be taken by the host; who comes beyond them is hung up on.
const WAITING_LIMIT: usize = 64;

/// Either end of a connection in the guest.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A connection in the guest.
pub type BoxSocket = Box<dyn Socket>;

/// Where the guest waits for connections. Dropping it ends that, and takes away what it has made.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Socket {
        /// The socket.
        listener: UnixListener,
        /// Its path.
        path: PathBuf,
        /// The directory that was made for it.
        directory: Option<PathBuf>,
    },
}

impl Listener {
    async fn accept(&self) -> io::Result<(BoxSocket, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, from) = listener.accept().await?;
                Ok((Box::new(socket), Some(from)))
            }
            Listener::Socket { listener, .. } => {
                let (socket, _) = listener.accept().await?;
                Ok((Box::new(socket), None))
            }
        }
    }

    fn described(&self) -> ListenReply {
        match self {
            Listener::Tcp(listener) => ListenReply::Listening {
                path: None,
                port: listener.local_addr().map_or(0, |address| address.port()),
            },
            Listener::Socket { path, .. } => ListenReply::Listening {
                path: Some(path.to_string_lossy().into_owned()),
                port: 0,
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Socket {
            path, directory, ..
        } = self
        {
            // Somebody in the guest may have been faster.
            let _ = std::fs::remove_file(path);
            if let Some(directory) = directory {
                let _ = std::fs::remove_dir(directory);
            }
        }
    }
}

/// Connections of all listen streams that the host has not taken yet.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Connections>>);

#[derive(Default)]
struct Connections {
    last: u64,
    sockets: HashMap<u64, BoxSocket>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, socket: BoxSocket) -> Option<u64> {
        let mut connections = self.lock();
        if connections.sockets.len() >= WAITING_LIMIT {
            return None;
        }
        connections.last += 1;
        let number = connections.last;
        connections.sockets.insert(number, socket);
        Some(number)
    }

    /// Forgets the numbers of those that were taken.
    fn retain_waiting(&self, numbers: &mut Vec<u64>) {
        let connections = self.lock();
        numbers.retain(|number| connections.sockets.contains_key(number));
    }

    fn take(&self, number: u64) -> Option<BoxSocket> {
        self.lock().sockets.remove(&number)
    }
}

/// The numbers that one listen stream has told of; what the host has not taken goes with it.
struct Told {
    waiting: Waiting,
    numbers: Vec<u64>,
}

impl Drop for Told {
    fn drop(&mut self) {
        for number in &self.numbers {
            drop(self.waiting.take(*number));
        }
    }
}

pub(super) async fn connect<M: Machine>(
    machine: &M,
    endpoint: Endpoint,
    reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    match machine.connect(endpoint).await {
        Ok(socket) => join(socket, reader, writer).await,
        Err(error) => {
            let message = error.to_string();
            writer.message(&OpenReply::Refused { message }).await?;
            writer.finish().await
        }
    }
}

pub(super) async fn accept(
    waiting: &Waiting,
    connection: u64,
    reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    match waiting.take(connection) {
        Some(socket) => join(socket, reader, writer).await,
        None => {
            let message = "that connection is not here any more".to_owned();
            writer.message(&OpenReply::Refused { message }).await?;
            writer.finish().await
        }
    }
}

/// Each direction ends by itself, as TCP's do.
async fn join(mut socket: BoxSocket, reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
    writer.message(&OpenReply::Connected).await?;
    let (read, early) = reader.into_parts();
    let mut stream = read.unsplit(writer.into_inner());
    socket.write_all(&early).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut socket).await?;
    Ok(())
}

pub(super) async fn listen<M: Machine>(
    machine: &M,
    waiting: &Waiting,
    place: ListenPlace,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    let listener = match machine.listen(place).await {
        Ok(listener) => listener,
        Err(error) => {
            let message = error.to_string();
            writer.message(&ListenReply::Refused { message }).await?;
            return writer.finish().await;
        }
    };
    writer.message(&listener.described()).await?;
    let mut told = Told {
        waiting: waiting.clone(),
        numbers: Vec::new(),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The host says nothing on this stream: whatever comes ends it.
            _ = reader.next() => return Ok(()),
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let message = error.to_string();
                writer.message(&ListenReply::Refused { message }).await?;
                return writer.finish().await;
            }
        };
        // Dropping the socket hangs up.
        let Some(connection) = waiting.put(socket) else {
            continue;
        };
        waiting.retain_waiting(&mut told.numbers);
        told.numbers.push(connection);
        writer
            .message(&ListenReply::Connection { connection, from })
            .await?;
    }
}

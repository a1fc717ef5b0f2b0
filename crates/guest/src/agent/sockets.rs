//! Connections and listening places as the guest's own network and file system have them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use super::users;
use crate::protocol::{Endpoint, ListenPlace};
use crate::serve::{BoxSocket, Listener};

/// How long a connection inside the guest may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const ETC: &str = "/etc";
/// Where private sockets are made, as ssh-agent(1) makes its own.
const TEMPORARY: &str = "/tmp";

pub(super) async fn connect(endpoint: Endpoint) -> io::Result<BoxSocket> {
    let connecting = async {
        match endpoint {
            Endpoint::Tcp { address, port } => {
                let socket = TcpStream::connect((address, port)).await?;
                // What comes over the channel comes in pieces already.
                socket.set_nodelay(true)?;
                Ok(Box::new(socket) as BoxSocket)
            }
            Endpoint::Socket { path } => {
                Ok(Box::new(UnixStream::connect(path).await?) as BoxSocket)
            }
        }
    };
    timeout(CONNECT_DEADLINE, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

pub(super) async fn listen(place: ListenPlace) -> io::Result<Listener> {
    match place {
        ListenPlace::Tcp { address, port } => {
            Ok(Listener::Tcp(TcpListener::bind((address, port)).await?))
        }
        ListenPlace::Socket { path, user } => bind(PathBuf::from(path), None, &user),
        ListenPlace::Private { user } => {
            let directory = private_directory(&user)?;
            bind(directory.join("agent"), Some(directory), &user)
        }
    }
}

fn owner(user: &str) -> io::Result<(u32, u32)> {
    let user = users::look_up(Path::new(ETC), user)
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error.to_string()))?;
    Ok((user.uid, user.gid))
}

fn private_directory(user: &str) -> io::Result<PathBuf> {
    let (uid, gid) = owner(user)?;
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let name = format!("ssh-{:016x}", u64::from_ne_bytes(random));
    let directory = Path::new(TEMPORARY).join(name);
    DirBuilder::new().mode(0o700).create(&directory)?;
    chown(&directory, Some(uid), Some(gid))?;
    Ok(directory)
}

fn bind(path: PathBuf, directory: Option<PathBuf>, user: &str) -> io::Result<Listener> {
    let (uid, gid) = owner(user)?;
    let listener = UnixListener::bind(&path)?;
    // From here on dropping it takes the socket away.
    let bound = Listener::Socket {
        listener,
        path: path.clone(),
        directory,
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    chown(&path, Some(uid), Some(gid))?;
    Ok(bound)
}

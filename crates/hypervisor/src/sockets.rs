//! Unix sockets in an instance's home directory, whatever the length of its path.
//!
//! `sun_path` has 108 bytes with its closing zero (unix(7)), and data directories can be longer. Every bind and
//! connect therefore goes by way of an `O_PATH` descriptor of the directory: `/proc/self/fd/<n>/<name>`.

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Clients that may wait while a VMM serves another one or is not up yet.
const BACKLOG: i32 = 16;

fn address(directory: &Path, name: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let held = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", held.as_raw_fd()))?;
    Ok((held, address))
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags | SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A listening socket at `directory/name`, in the place of whatever socket was there.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let (_held, address) = address(directory, name)?;
    remove(&directory.join(name))?;
    let socket = socket(SocketFlags::empty())?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A connected, non-blocking, close-on-exec stream to `directory/name`. Never waits: a Unix connect either
/// finds room in the listener's backlog or fails.
pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let (_held, address) = address(directory, name)?;
    let socket = socket(SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Like [`connect`], to a path.
pub(crate) fn connect_path(path: &Path) -> io::Result<OwnedFd> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    connect(directory, name)
}

/// A connected pair, both ends non-blocking and close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?)
}

/// Removes a file; nothing to do when it is not there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn paths_longer_than_sun_path_work() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listen(&deep, "qmp.sock").unwrap());
        let mut client =
            std::os::unix::net::UnixStream::from(connect_path(&deep.join("qmp.sock")).unwrap());
        client.write_all(b"x").unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let mut byte = [0];
        served.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nobody_listening_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        drop(listen(root.path(), "a.sock").unwrap());
        assert!(connect(root.path(), "a.sock").is_err());
        let _listener = listen(root.path(), "a.sock").unwrap();
        assert!(connect(root.path(), "a.sock").is_ok());
    }
}

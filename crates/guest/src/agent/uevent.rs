//! Waits for devices by the kernel's own announcements (kobject uevents over netlink), never by polling.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Waits until `probe` finds something, trying it now and after each announcement. The socket is there
/// before the first try, so that nothing falls in between.
pub(super) async fn wait_for<T>(
    deadline: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> io::Result<T> {
    let socket = announcements()?;
    let waiting = async {
        loop {
            if let Some(found) = probe() {
                return Ok(found);
            }
            let mut ready = socket.readable().await?;
            let mut buffer = [0u8; 8192];
            // What it says does not matter, nor that some were lost (ENOBUFS): the probe looks itself.
            let _ = ready.try_io(|socket| {
                let (received, _) =
                    rustix::net::recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty())?;
                Ok(received)
            });
        }
    };
    timeout(deadline, waiting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn announcements() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(KOBJECT_UEVENT),
    )?;
    // Group 1: the kernel's own announcements, as opposed to udev's.
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    super::pollable::register(socket, Interest::READABLE)
}

//! The channel's virtio-serial port as a byte stream that outlives its hosts.
//!
//! Two surprises of such a port shape this module. With no host, reads give end of file and `poll` gives
//! a level-triggered hang-up, so the usual ways of waiting spin: here the port sits in an edge-triggered
//! epoll of its own, and the event loop waits for that. And the guest often misses a hang-up when the
//! next host is quick, so a hang-up is only ever a hint (see [`crate::protocol::attach`]).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::uevent;
use crate::protocol::PORT_NAME;
use crate::serve::HangUp;

/// A VM without the port is of no use, but it says so on its console before it goes.
const PORT_DEADLINE: Duration = Duration::from_secs(30);

/// Waits for the port and opens it.
pub(super) async fn open() -> io::Result<PortStream> {
    let device = uevent::wait_for(PORT_DEADLINE, find).await?;
    PortStream::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(device)?
            .into(),
    )
}

fn find() -> Option<PathBuf> {
    for port in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = std::fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            return Some(PathBuf::from("/dev").join(port.file_name()));
        }
    }
    None
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// Worth trying.
    Ready,
    /// Tried since the last event, without success.
    Spent,
}

/// The open port. Reading and writing wait while there is no host; it never ends.
#[derive(Debug)]
pub(super) struct PortStream {
    port: OwnedFd,
    events: AsyncFd<OwnedFd>,
    readable: Edge,
    writable: Edge,
    hung_up: bool,
}

impl PortStream {
    fn new(port: OwnedFd) -> io::Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&events, &port, EventData::new_u64(0), flags)?;
        let events = super::pollable::register(events, Interest::READABLE)?;
        Ok(Self {
            port,
            events,
            readable: Edge::Ready,
            writable: Edge::Ready,
            hung_up: false,
        })
    }

    /// Waits for something to happen to the port. Reader and writer are always one task: only the last waker is kept.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.events.poll_read_ready(cx))?;
            let mut happened = Vec::with_capacity(4);
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            epoll::wait(
                guard.get_inner(),
                rustix::buffer::spare_capacity(&mut happened),
                Some(&now),
            )?;
            if happened.is_empty() {
                guard.clear_ready();
                continue;
            }
            for event in happened {
                let flags = event.flags;
                if flags.contains(EventFlags::HUP) {
                    self.hung_up = true;
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP) {
                    self.readable = Edge::Ready;
                }
                if flags.contains(EventFlags::OUT) {
                    self.writable = Edge::Ready;
                }
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A port that always has data would otherwise never let another task run.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            if self.readable == Edge::Spent {
                ready!(self.poll_events(cx))?;
                continue;
            }
            match rustix::io::read(&self.port, buf.initialize_unfilled()) {
                // No host.
                Ok(0) | Err(Errno::AGAIN) => self.readable = Edge::Spent,
                Ok(read) => {
                    buf.advance(read);
                    budget.made_progress();
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.writable == Edge::Spent {
                ready!(self.poll_events(cx))?;
                continue;
            }
            match rustix::io::write(&self.port, data) {
                // Full, or no host.
                Err(Errno::AGAIN | Errno::PIPE) => self.writable = Edge::Spent,
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl HangUp for PortStream {
    fn take_hang_up(&mut self) -> bool {
        std::mem::take(&mut self.hung_up)
    }
}

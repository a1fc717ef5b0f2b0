//! Descriptors in the event loop.
#![expect(
    unsafe_code,
    reason = "tokio cannot see that an `OwnedFd` stays what it is"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that this process owns.
pub(super) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same description for as long as it lives, the `AsyncFd` owns
    // it, and nobody here closes or replaces descriptors by number.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

//! How much of what was written to a Unix socket the other side has not read yet.
#![expect(
    unsafe_code,
    reason = "the ioctl for it is one that no crate here wraps"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

// SIOCOUTQ of unix(7): the bytes that wait, with the kernel's own overhead, as an int. It has TIOCOUTQ's number.
nix::ioctl_read_bad!(unread, nix::libc::TIOCOUTQ, nix::libc::c_int);

/// Between two looks: there is nothing to wait on that would tell. The other side usually reads within this time.
const LOOK: Duration = Duration::from_micros(50);

/// Waits until the other side has read everything, or for `limit`: whoever is stopped that long is not helped by more.
///
/// # Errors
/// The socket's.
pub(super) fn wait_until_read(stream: &UnixStream, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let mut bytes = 0;
        // SAFETY: the descriptor is open, and the request writes one int, which `bytes` is.
        unsafe { unread(stream.as_raw_fd(), &raw mut bytes) }?;
        if bytes == 0 || Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn it_waits_for_the_reader_and_no_longer_than_the_limit() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        wait_until_read(&here, Duration::from_secs(60)).unwrap();
        here.write_all(b"frame").unwrap();
        let limit = Duration::from_millis(5);
        let begin = Instant::now();
        wait_until_read(&here, limit).unwrap();
        assert!(begin.elapsed() >= limit, "nobody has read it");
        let reader = std::thread::spawn(move || there.read_exact(&mut [0; 5]).map(|()| there));
        wait_until_read(&here, Duration::from_secs(60)).unwrap();
        reader.join().unwrap().unwrap();
    }
}

//! Clock, random numbers and host name: the kernel's state that a boot configuration sets.
#![expect(
    unsafe_code,
    reason = "crediting entropy is an ioctl with a structure of variable length"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Most bytes of seed that are taken.
const ENTROPY_LIMIT: usize = 512;
/// `_IOW('R', 0x03, int[2])`, linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// Milliseconds since the kernel started.
pub(super) fn uptime_millis() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Sets the clock.
pub(super) fn set_time(unix_nanos: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_nanos % 1_000_000_000).unwrap_or(0),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Mixes a seed into the kernel's generator and credits all of it (`RNDADDENTROPY`, random(4)).
pub(super) fn add_entropy(seed: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; ENTROPY_LIMIT],
    }
    let seed = &seed[..seed.len().min(ENTROPY_LIMIT)];
    if seed.is_empty() {
        return Ok(());
    }
    let size = libc::c_int::try_from(seed.len()).map_err(io::Error::other)?;
    let mut pool = RandPoolInfo {
        entropy_count: size * 8,
        buf_size: size,
        buf: [0; ENTROPY_LIMIT],
    };
    pool.buf[..seed.len()].copy_from_slice(seed);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: the descriptor is open, and the structure has the layout of `struct rand_pool_info` with at
    // least `buf_size` bytes behind its header, which is all the kernel reads.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets the kernel's host name.
pub(super) fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

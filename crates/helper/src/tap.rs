//! TAP devices by `/dev/net/tun` (Linux, `Documentation/networking/tuntap.rst`).
#![expect(unsafe_code, reason = "TUNSETIFF and its relatives are raw ioctls")]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::HelperError;

const DEVICE: &str = "/dev/net/tun";

// linux/if_tun.h
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc_int>()),
    IfReq
);
nix::ioctl_write_int_bad!(
    tun_set_persist,
    nix::request_code_write!(b'T', 203, size_of::<libc_int>())
);
nix::ioctl_write_int_bad!(
    tun_set_owner,
    nix::request_code_write!(b'T', 204, size_of::<libc_int>())
);

#[expect(
    non_camel_case_types,
    reason = "C's int, as the request codes are made of"
)]
type libc_int = std::ffi::c_int;

/// `struct ifreq` as TUNSETIFF reads it: a name, then flags in the union.
#[repr(C)]
pub(crate) struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl IfReq {
    fn new(name: &str) -> Self {
        let mut bytes = [0_u8; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self {
            name: bytes,
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            rest: [0; 22],
        }
    }
}

/// Attaches to the TAP of that name and makes it when it is not there. With a virtio header before each frame,
/// as every VMM wants it.
pub(crate) fn attach(name: &str) -> Result<OwnedFd, HelperError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(DEVICE)
        .map_err(|error| HelperError::io(format!("open {DEVICE}"), &error))?;
    let request = IfReq::new(name);
    // SAFETY: the descriptor is open and `request` is a whole `struct ifreq` (40 bytes) that outlives the call.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }
        .map_err(|errno| HelperError::kernel(format!("attach TAP {name}"), errno as i32))?;
    Ok(file.into())
}

/// Makes the TAP outlive its descriptor and, when asked, lets a user open it without privileges.
pub(crate) fn persist(tap: &OwnedFd, name: &str, owner: Option<u32>) -> Result<(), HelperError> {
    let fail = |errno: nix::Error| HelperError::kernel(format!("keep TAP {name}"), errno as i32);
    if let Some(owner) = owner {
        // SAFETY: the descriptor is an attached TAP; the argument is a plain number.
        unsafe { tun_set_owner(tap.as_raw_fd(), owner.cast_signed()) }.map_err(fail)?;
    }
    // SAFETY: as above.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }.map_err(fail)?;
    Ok(())
}

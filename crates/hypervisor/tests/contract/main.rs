//! One contract for every driver of the `Hypervisor` port: the fake and real QEMU.

mod fake;
#[cfg(target_arch = "x86_64")]
mod init;
#[cfg(target_arch = "x86_64")]
mod qemu;
#[cfg(target_arch = "x86_64")]
#[path = "../../../../tests/skip.rs"]
mod skip;
mod suite;

//! Drivers behind the [`Hypervisor`](warren_core::ports::Hypervisor) port: QEMU, and a fake.
//!
//! Owns VMM processes and what they leave in an instance's home directory: `vmm.json` (who it is), `vmm.lock`
//! (held for as long as it lives), `vmm.log`, and the sockets `qmp.sock`, `events.sock`, `channel.sock` and
//! `console.sock`.
//! Must never signal a process that it has not identified, and never touch disks but to hand them to a VMM.
//! Called by the host agent through the port; wired up by the `warren` binary.

pub mod accelerator;
mod cache;
pub mod fake;
#[doc(hidden)]
pub mod fuzzing;
pub mod initramfs;
pub mod kernel;
pub mod process;
pub mod qemu;
mod sockets;
#[cfg(test)]
mod testing;

pub use accelerator::AccelChoice;
pub use cache::Cache;
pub use fake::Fake;
pub use kernel::KernelChoice;
pub use qemu::{Qemu, QemuConfig};

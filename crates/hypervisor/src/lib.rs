//! Drivers behind the Hypervisor port: QEMU, and a fake.

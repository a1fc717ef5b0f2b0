//! The whole of Warren on real QEMU: a server, its CLI, its API, real guests. Each scenario runs in bridge
//! mode as root and in user mode as an unprivileged user, unless it is about one of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test that does not run says so")]

mod committing;
mod crashing;
mod cycling;
mod damaged;
mod dying;
mod filling;
mod full;
mod hanging;
mod harness;
mod losing;
mod repeating;
mod scenarios;
mod stalling;
mod surviving;
mod telling;
mod terminal;
mod traces;
mod upgrading;

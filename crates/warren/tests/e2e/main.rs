//! The whole of Warren on real QEMU: a server, its CLI, its API, real guests. Each scenario runs in bridge
//! mode as root and in user mode as an unprivileged user, unless it is about one of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "a test of many rounds says what it did"
)]

mod committing;
mod crashing;
mod cycling;
mod damaged;
mod dying;
mod filling;
mod full;
mod hanging;
mod harness;
mod leaving;
#[path = "../../../../tests/lies.rs"]
mod lies;
mod losing;
mod lying;
mod repeating;
mod scenarios;
#[path = "../../../../tests/skip.rs"]
mod skip;
mod stalling;
mod standby;
mod surviving;
mod telling;
mod terminal;
mod traces;
mod upgrading;

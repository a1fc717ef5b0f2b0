//! An SFTP server for one user: what `scp`, `sftp` and editors speak over SSH. The agent starts itself as one, with the user's
//! rights and in the user's home, so that the guest's kernel says what may be done.
//!
//! Version 3 of the protocol (draft-ietf-secsh-filexfer-02) on two byte streams, with OpenSSH's extensions (its file
//! PROTOCOL, section 4): `posix-rename`, `statvfs`, `fstatvfs`, `hardlink`, `fsync`, `lsetstat`, `limits` and `expand-path`.
//! Names are bytes. Requests are carried out one by one, in order; replies are kept back only while more requests have come.

mod attributes;
mod longname;
mod request;
mod server;
mod wire;

pub use attributes::Attributes;
pub use request::{OpenFlags, Request};
pub use server::serve;
pub use wire::{MAX_PACKET, Malformed};

//! Files beneath a directory and never beyond it.
//!
//! - [`root`]: paths that are resolved by the kernel within a directory (openat2), whatever links they meet.
//! - [`new_file`]: files that stand under their name whole or not at all.
//! - [`walk`]: everything in a directory, one by one.
//!
//! It is used on both ends of a copy: by the agent in a guest, and by whoever takes in what a guest has sent. It runs no
//! future, and knows nothing of the rest of Warren. Linux only.

pub mod new_file;
pub mod root;
pub mod walk;

pub use new_file::NewFile;
pub use root::{Links, Root, Spot};
pub use walk::{Met, Walk};

//! Files beneath a directory and never beyond it, and trees of them as tar streams.
//!
//! - [`root`]: paths that are resolved by the kernel within a directory (openat2), whatever links they meet.
//! - [`new_file`]: files that stand under their name whole or not at all.
//! - [`walk`]: everything in a directory, one by one.
//! - [`pack`] and [`unpack`]: a tree becomes a tar stream, and a tar stream a tree.
//!
//! It is used on both ends of a copy: by the agent in a guest, and by whoever takes in what a guest has sent. It runs no
//! future, and knows nothing of the rest of Warren. Linux only.

pub mod new_file;
pub mod pack;
pub mod root;
pub mod unpack;
pub mod walk;

pub use new_file::NewFile;
pub use pack::{PackError, Packed, pack};
pub use root::{Links, Root, Spot};
pub use unpack::{Owners, Rules, Specials, UnpackError, Unpacked, unpack};
pub use walk::{Met, Walk};

//! OCI reference to verified layers to one read-only EROFS disk, in one streaming pass; writable disks.
//!
//! Owns `<data>/images` and the files of writable disks. Must never: unpack anything onto the host's file system,
//! mount, use a loop device, need root, or believe a byte that came from a registry or an archive before its digest
//! was checked. Called through the ports `Images` and `Volumes` of `warren-core`.
//!
//! The path of an image: `source` says which layers there are and brings their bytes, `pipeline` verifies and
//! decompresses them, `merge` makes one tree of them, `erofs` writes it, `store` publishes it. The way back, from what
//! a guest wrote to a layer: `ext4` reads its disk, `changes` makes an archive of it, and the rest is the same path.

mod changes;
mod crc32c;
mod decompress;
mod digest;
pub mod erofs;
pub mod ext4;
#[doc(hidden)]
pub mod fuzzing;
mod gpt;
mod limits;
pub mod merge;
pub mod pipeline;
pub mod source;
pub mod store;
pub mod volumes;

pub use changes::ChangesError;
pub use digest::{Digest, DigestError};
pub use limits::{LimitExceeded, Limits};
pub use store::{
    Content, FromContent, ImageStore, Lease, Options, StoreError, UploadError, UploadLimits,
};
pub use volumes::WritableDisks;

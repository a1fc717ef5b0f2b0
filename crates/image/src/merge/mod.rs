//! Layers become one tree: applied in order, whiteouts and all, while their files go straight into the image.
//!
//! Owns: what exists in the image and under which name, in memory only; names are bytes. Must never: touch the host's
//! file system, or trust a name. Layers are applied oldest first, as they are meant to be; what an upper layer hides
//! is known dead at the end and its blocks are discarded.
//!
//! Source: OCI image-spec v1.1 `layer.md` ("Applying Changesets", "Whiteouts"); where it is silent (symbolic links in
//! the parents of a path, entries that replace others), what `umoci` and Docker do inside their root is done inside
//! this tree.

mod apply;
mod path;
mod tree;

pub use apply::{Merge, MergeError, Merged};

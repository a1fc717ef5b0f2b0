//! A client of the OCI distribution API (distribution-spec v1.1), for pulling and pushing.
//!
//! Owns: requests to registries, their authentication, retries and resumption. Must never: send a credential to any
//! other host than the one it is for (mirrors have their own, redirected blobs get none), or use plain HTTP unless told
//! to.
//!
//! ```text
//! connect ── an HTTP client for each host (settings: TLS, proxies) ──► endpoint: one repository there, with
//!                                                                      credentials, token, retries
//! client: manifests and layers, from mirrors or the registry ─ download: a layer into a file
//! push: blobs and manifests, to the registry
//! ```

mod client;
mod connect;
pub(crate) mod credentials;
mod download;
mod endpoint;
mod error;
mod push;
mod settings;
pub(crate) mod token;

pub(crate) use client::Client;
pub(crate) use connect::Registries;
pub(crate) use download::Download;
pub(crate) use push::{Delivered, Part};

pub use error::{Broken, RegistryError, Shown};
pub use settings::{HostSettings, Mirror, Proxies, RegistrySettings, TlsSettings, check_registry};

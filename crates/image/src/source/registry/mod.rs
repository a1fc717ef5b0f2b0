//! A client of the OCI distribution API (distribution-spec v1.1), for pulling.
//!
//! Owns: requests to registries, their authentication, retries and resumption. Must never: send a credential to any
//! other host than the one it is for (redirected blobs get none), or use plain HTTP unless told to.

pub(crate) mod auth;
mod client;
mod download;

use std::time::Duration;

pub(crate) use auth::{Credentials, credentials_for};
pub(crate) use client::Client;
pub(crate) use download::Download;

/// Why a registry does not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke more often than is retried.
    #[error("the registry {registry} cannot be reached")]
    Unreachable {
        /// Which.
        registry: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answers HTTPS requests with plain HTTP.
    #[error("the registry {registry} does not speak HTTPS")]
    PlainHttp {
        /// Which.
        registry: String,
    },
    /// It wants other credentials, or some at all.
    #[error("the registry {registry} refuses access to {repository}")]
    Denied {
        /// Which.
        registry: String,
        /// What.
        repository: String,
    },
    /// It does not have it.
    #[error("{reference} is not in the registry")]
    NotFound {
        /// What.
        reference: String,
    },
    /// It asks to slow down, and went on asking.
    #[error("the registry {registry} limits the rate of requests")]
    RateLimited {
        /// Which.
        registry: String,
        /// When it may be tried again, if it said so.
        retry_after: Option<Duration>,
    },
    /// An answer that is none of the above.
    #[error("the registry {registry} answered {status} to {what}")]
    Status {
        /// Which.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The request.
        what: String,
    },
    /// More bytes than there should be, or other ones.
    #[error("the registry {registry} sent something else than was asked for: {why}")]
    Wrong {
        /// Which.
        registry: String,
        /// How so.
        why: String,
    },
    /// A layer could not be kept on disk.
    #[error("a layer cannot be written to disk")]
    Write(#[source] std::io::Error),
    /// Credentials that cannot be read or made.
    #[error("the credentials for {registry} cannot be used: {why}")]
    Credentials {
        /// For which.
        registry: String,
        /// Why not.
        why: String,
    },
    /// The caller does not want it any more.
    #[error("the download was cancelled")]
    Cancelled,
}

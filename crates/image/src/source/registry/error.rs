//! Why a registry does not give or take what was asked, whether asking again may help, and what users are told.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use warren_core::ports::images::Transport;
use warren_core::{ErrorClass, PortError};

/// Why a registry does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke more often than is retried.
    #[error("the registry {registry} cannot be reached: {how}")]
    Unreachable {
        /// Which.
        registry: String,
        /// How it was spoken to.
        transport: Transport,
        /// What happened, as far as users care.
        how: Broken,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It took the request and then kept silent.
    #[error("the registry {registry} sent nothing for {} s", .waited.as_secs())]
    Stalled {
        /// Which.
        registry: String,
        /// For how long.
        waited: Duration,
    },
    /// It answers HTTPS requests with plain HTTP.
    #[error("the registry {registry} does not speak HTTPS")]
    PlainHttp {
        /// Which.
        registry: String,
    },
    /// Its certificate is not trusted, or it does not trust ours.
    #[error("the registry {registry} has no trusted TLS connection: {why}")]
    Certificate {
        /// Which.
        registry: String,
        /// What TLS says.
        why: String,
    },
    /// It wants other credentials, or some at all.
    #[error("{}", denied(.registry, .repository, *.shown))]
    Denied {
        /// Which.
        registry: String,
        /// What.
        repository: String,
        /// What it was shown.
        shown: Shown,
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
    #[error("the registry {registry} answered {status} to {what}{}", in_words(.said))]
    Status {
        /// Which.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The request.
        what: String,
        /// Its own words, made safe; empty when it has none.
        said: String,
        /// When it may be tried again, if it said so.
        retry_after: Option<Duration>,
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
    Write(#[source] io::Error),
    /// A blob that was to be sent could not be read, or is not what its digest says.
    #[error("{digest} cannot be sent from this host")]
    Read {
        /// Which.
        digest: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operator's list does not have it.
    #[error("this server reaches {allowed} only, not {registry}")]
    NotAllowed {
        /// Which.
        registry: String,
        /// The others.
        allowed: String,
    },
    /// Credentials that cannot be read or made.
    #[error("the credentials for {registry} cannot be used: {why}")]
    Credentials {
        /// For which.
        registry: String,
        /// Why not.
        why: String,
    },
    /// Certificates, keys or proxies that cannot be used.
    #[error("the settings for the registry {registry} cannot be used: {why}")]
    Settings {
        /// For which.
        registry: String,
        /// Why not.
        why: String,
    },
    /// The caller does not want it any more.
    #[error("the transfer was cancelled")]
    Cancelled,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Its name has no address.
    Name,
    /// Nobody listens there.
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// None was made, for another reason.
    Connect,
    /// It ended too early.
    Midway,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::Name => "its name is not known here",
            Broken::Refused => "nobody listens there",
            Broken::Timeout => "nobody answered in time",
            Broken::Connect => "no connection could be made",
            Broken::Midway => "the connection broke",
        })
    }
}

/// What a registry was shown before it said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// No credentials.
    Nothing,
    /// Credentials that it does not take.
    Refused,
    /// Credentials that it takes, but not for this.
    Accepted,
}

fn denied(registry: &str, repository: &str, shown: Shown) -> String {
    match shown {
        Shown::Nothing => {
            format!("the registry {registry} gives {repository} to nobody without credentials")
        }
        Shown::Refused => {
            format!("the registry {registry} does not accept the credentials for {repository}")
        }
        Shown::Accepted => {
            format!("the registry {registry} refuses access to {repository} with these credentials")
        }
    }
}

fn in_words(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

/// Whether asking again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// When we see fit.
    Soon,
    /// When the registry says so.
    After(Duration),
}

impl RegistryError {
    pub(super) fn again(&self) -> Again {
        match self {
            RegistryError::Unreachable { .. } | RegistryError::Stalled { .. } => Again::Soon,
            RegistryError::RateLimited { retry_after, .. } => {
                retry_after.map_or(Again::Soon, Again::After)
            }
            // 408 is a server's own word for a request that came in too slowly.
            RegistryError::Status {
                status,
                retry_after,
                ..
            } if (*status >= 500 && *status != 501) || *status == 408 => {
                retry_after.map_or(Again::Soon, Again::After)
            }
            RegistryError::Status { .. }
            | RegistryError::PlainHttp { .. }
            | RegistryError::Certificate { .. }
            | RegistryError::Denied { .. }
            | RegistryError::NotFound { .. }
            | RegistryError::Wrong { .. }
            | RegistryError::Write(_)
            | RegistryError::Read { .. }
            | RegistryError::NotAllowed { .. }
            | RegistryError::Credentials { .. }
            | RegistryError::Settings { .. }
            | RegistryError::Cancelled => Again::Never,
        }
    }

    /// What users are told: a code, a sentence, the next step. The error itself is left to the caller as the source.
    pub(crate) fn describe(&self) -> PortError {
        let text = self.to_string();
        match self {
            RegistryError::Unreachable { transport, .. } => {
                let hint = match transport {
                    Transport::Https => {
                        "check its name and the network; for a registry without TLS add `--plain-http`"
                    }
                    Transport::PlainHttp => "check its name, its port and the network",
                };
                PortError::retry("registry_unreachable", text).with_hint(hint)
            }
            RegistryError::Stalled { .. } => {
                PortError::retry("registry_stalled", text).with_hint("try again")
            }
            RegistryError::PlainHttp { .. } => PortError::invalid("registry_plain_http", text)
                .with_hint("if you trust the network, add `--plain-http`"),
            RegistryError::Certificate { registry, .. } => {
                PortError::invalid("registry_certificate", text).with_hint(format!(
                    "if it has a CA of its own, name it in the server's configuration: `[registry.\"{registry}\"]`, `ca = \"…\"`"
                ))
            }
            RegistryError::Denied {
                registry, shown, ..
            } => PortError::new(ErrorClass::Denied, "registry_denied", text).with_hint(match shown {
                Shown::Nothing => format!(
                    "log in with `docker login {registry}` or give `--username`, and check the name"
                ),
                Shown::Refused => {
                    format!("check user and password, or log in again with `docker login {registry}`")
                }
                Shown::Accepted => "check the name, or ask its owner for access".to_owned(),
            }),
            RegistryError::NotFound { .. } => {
                PortError::not_found("image_not_found", text).with_hint("check the name and the tag")
            }
            RegistryError::RateLimited { retry_after, .. } => {
                let when = match retry_after {
                    Some(after) => format!("try again in {} s", after.as_secs()),
                    None => "try again later, or log in".to_owned(),
                };
                PortError::retry("registry_rate_limited", text).with_hint(when)
            }
            RegistryError::Status {
                status,
                retry_after,
                ..
            } if *status >= 500 => {
                let when = match retry_after {
                    Some(after) => format!("try again in {} s", after.as_secs()),
                    None => "try again later".to_owned(),
                };
                PortError::retry("registry_failed", text).with_hint(when)
            }
            RegistryError::Status { .. } => PortError::invalid("registry_refused", text),
            RegistryError::Wrong { .. } => {
                PortError::retry("image_damaged", text).with_hint("try again, or get it elsewhere")
            }
            RegistryError::Write(source) => PortError::io("writing a layer", copied(source)),
            RegistryError::Read { .. } => PortError::conflict("image_blob_unreadable", text)
                .with_hint("repair the image with `warren image verify --repair`"),
            RegistryError::NotAllowed { .. } => {
                PortError::new(ErrorClass::Denied, "registry_not_allowed", text).with_hint(
                    "name one of them, or have it added to `registries` in the server's configuration",
                )
            }
            RegistryError::Credentials { .. } => {
                PortError::invalid("registry_credentials_invalid", text)
            }
            RegistryError::Settings { .. } => PortError::invalid("registry_settings_invalid", text),
            RegistryError::Cancelled => PortError::retry("cancelled", text),
        }
    }
}

/// The port's own reading of an I/O error; the error itself stays the source.
fn copied(source: &io::Error) -> io::Error {
    match source.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(source.kind(), source.to_string()),
    }
}

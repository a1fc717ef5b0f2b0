//! How an adapter says what went wrong: a class that decides what happens next, a stable code and a
//! safe sentence for the user, the next step where there is one, and the cause for the log.

use serde::{Deserialize, Serialize};
use std::error::Error as StdError;
use std::fmt;

/// What the caller of a port may conclude from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// It may work later without anybody doing anything: busy, timed out, connection refused.
    Retry,
    /// Something that exists stands in the way: a taken port, a name in use, the wrong state.
    Conflict,
    /// The request can never work as it is.
    Invalid,
    /// What was named does not exist.
    NotFound,
    /// This host or this adapter cannot do it.
    Unsupported,
    /// No room: memory, addresses, ports, slots.
    NoCapacity,
    /// The disk is full.
    NoSpace,
    /// The caller may not do this.
    Denied,
    /// Our own mistake; the cause is in the log.
    Bug,
}

/// The error of every port.
#[derive(Debug)]
pub struct PortError {
    /// What may be concluded.
    pub class: ErrorClass,
    /// Stable, machine-readable, `snake_case`; part of the API.
    pub code: &'static str,
    /// One sentence that may be shown to the user: no secrets, no host paths of others.
    pub message: String,
    /// What to do next, where there is something.
    pub hint: Option<String>,
    /// The cause, for the log.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl PortError {
    /// An error of `class` with its code and sentence.
    pub fn new(class: ErrorClass, code: &'static str, message: impl Into<String>) -> Self {
        PortError {
            class,
            code,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Something named does not exist.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::NotFound, code, message)
    }

    /// The request can never work as it is.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Invalid, code, message)
    }

    /// Something that exists stands in the way.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Conflict, code, message)
    }

    /// This host cannot do it.
    pub fn unsupported(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Unsupported, code, message)
    }

    /// It may work later.
    pub fn retry(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Retry, code, message)
    }

    /// Our own mistake.
    pub fn bug(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Bug, code, message)
    }

    /// An I/O failure while doing `what`; a full disk gets its own class.
    pub fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        let (class, code) = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                (ErrorClass::NoSpace, "disk_full")
            }
            std::io::ErrorKind::PermissionDenied => (ErrorClass::Denied, "permission_denied"),
            _ => (ErrorClass::Retry, "io_error"),
        };
        let error = Self::new(class, code, format!("{what}: {source}"));
        match class {
            ErrorClass::NoSpace => {
                error.with_hint("free some space on the data directory's file system and try again")
            }
            _ => error,
        }
        .with_source(source)
    }

    /// The sentence, followed by the next step where there is one.
    pub fn sentence(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}: {hint}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for PortError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// A failure as it is recorded and shown: what a [`PortError`] leaves behind once its cause is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What may be concluded.
    pub class: ErrorClass,
    /// The stable code.
    pub code: String,
    /// The safe sentence, with the next step.
    pub message: String,
}

impl From<&PortError> for Failure {
    fn from(error: &PortError) -> Self {
        Failure {
            class: error.class,
            code: error.code.to_owned(),
            message: error.sentence(),
        }
    }
}

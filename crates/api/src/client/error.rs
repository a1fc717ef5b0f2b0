//! What can go wrong for a client.

use crate::problem::{ErrorDetail, Problem};
use reqwest::Url;
use serde::de::DeserializeOwned;

/// The server's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: String,
    /// What happened and what to do about it.
    pub sentence: String,
    /// Parts: candidates of an ambiguous prefix, fields.
    pub details: Vec<ErrorDetail>,
    /// The request's id in the server's log, where the refusal was the answer to one.
    pub request_id: Option<String>,
}

impl Refused {
    /// An answer that is no problem document: something else answers there, or stands in between.
    pub(super) fn unreadable(status: u16, body: &str) -> Self {
        let start: String = body
            .trim()
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        Refused {
            status,
            code: "unreadable_answer".to_owned(),
            sentence: if start.is_empty() {
                format!("the server answered {status}")
            } else {
                format!("the server answered {status}: {start}")
            },
            details: Vec::new(),
            request_id: None,
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Refused {
            status: problem.status,
            code: problem.code,
            sentence: problem.detail,
            details: problem.details,
            request_id: None,
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address is none.
    #[error("{address:?} is not the address of a server: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody listens there.
    #[error(
        "no Warren server answers at {server}: start one with `warren server`, or name another with --server"
    )]
    Unreachable {
        /// Where.
        server: String,
        /// In the connection's words.
        reason: String,
    },
    /// The connection broke or was too slow.
    #[error("the connection to {server} failed: {reason}")]
    Transport {
        /// Where.
        server: String,
        /// In the connection's words.
        reason: String,
    },
    /// No answer in time.
    #[error("{server} did not answer in time")]
    TimedOut {
        /// Where.
        server: String,
    },
    /// The server said no.
    #[error("{}", .0.sentence)]
    Refused(Box<Refused>),
    /// The answer is not what this client understands.
    #[error("the server's answer cannot be used: {reason}")]
    Answer {
        /// Why.
        reason: String,
    },
}

impl ClientError {
    /// The server's stable code, if it was the server that refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Refused(refused) => Some(&refused.code),
            _ => None,
        }
    }

    /// The HTTP status, if it was the server that refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Refused(refused) => Some(refused.status),
            _ => None,
        }
    }

    /// Whether the same call may work a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { .. }
            | ClientError::Transport { .. }
            | ClientError::TimedOut { .. } => true,
            ClientError::Refused(refused) => refused.status == 503,
            ClientError::Address { .. } | ClientError::Answer { .. } => false,
        }
    }

    pub(super) fn from_transport(server: &Url, error: &reqwest::Error) -> Self {
        let server = server.as_str().trim_end_matches('/').to_owned();
        if error.is_connect() {
            ClientError::Unreachable {
                server,
                reason: chain(error),
            }
        } else if error.is_timeout() {
            ClientError::TimedOut { server }
        } else {
            ClientError::Transport {
                server,
                reason: chain(error),
            }
        }
    }
}

/// An error and its causes in one line, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|e| ClientError::Answer {
        reason: e.to_string(),
    })
}

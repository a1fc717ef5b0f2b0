//! The one shape of every error: a problem document (RFC 9457) that also has the fields of the older
//! error schema, so that both kinds of client read it.

use crate::code::Code;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_core::error::Failure;
use warren_core::{ErrorClass, PortError};

/// Its media type.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// One part of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable code, or the field or candidate this is about.
    #[serde(default)]
    pub code: String,
    /// In words.
    #[serde(default)]
    pub message: String,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct Problem {
    /// A URI that stands for this kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened and what to do about it.
    pub detail: String,
    /// The request this happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The stable code.
    pub code: String,
    /// The same as `detail`.
    pub message: String,
    /// Its parts, where there are any: candidates, fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
    /// What caused it, as far as it may be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_error: Option<ErrorDetail>,
}

/// The reason phrases of the statuses we give (RFC 9110, 4918, 6585).
fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Error",
    }
}

/// The status a class of error is told with.
pub fn status_of(class: ErrorClass) -> u16 {
    match class {
        ErrorClass::Retry => 503,
        ErrorClass::Conflict => 409,
        ErrorClass::Invalid => 400,
        ErrorClass::NotFound => 404,
        ErrorClass::Unsupported => 501,
        ErrorClass::NoCapacity => 429,
        ErrorClass::NoSpace => 507,
        ErrorClass::Denied => 403,
        ErrorClass::Bug => 500,
    }
}

impl Problem {
    /// A problem of our own.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self::with(code.status(), code.as_str(), detail)
    }

    /// A problem with a code of an adapter's.
    pub fn with(status: u16, code: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Problem {
            kind: format!("urn:warren:problem:{code}"),
            title: title(status).to_owned(),
            status,
            message: detail.clone(),
            detail,
            instance: None,
            code: code.to_owned(),
            details: Vec::new(),
            inner_error: None,
        }
    }

    /// Adds a part.
    #[must_use]
    pub fn with_detail(mut self, code: impl Into<String>, message: impl Into<String>) -> Self {
        self.details.push(ErrorDetail {
            code: code.into(),
            message: message.into(),
        });
        self
    }

    /// Says which request it happened to.
    #[must_use]
    pub fn at(mut self, instance: impl Into<String>) -> Self {
        self.instance = Some(instance.into());
        self
    }
}

impl From<&PortError> for Problem {
    /// The safe part of an adapter's error. The cause stays behind: the caller logs it.
    fn from(error: &PortError) -> Self {
        let detail = match error.class {
            ErrorClass::Bug => {
                "something went wrong inside the server; its log has the cause".to_owned()
            }
            _ => error.sentence(),
        };
        Problem::with(status_of(error.class), error.code, detail)
    }
}

impl From<&Failure> for Problem {
    /// What a host has said of an instance: safe as it is.
    fn from(failure: &Failure) -> Self {
        Problem::with(
            status_of(failure.class),
            &failure.code,
            failure.message.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_tells_nothing_of_its_cause() {
        let problem = Problem::from(&PortError::bug("store_broken", "/secret/path is broken"));
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (500, "store_broken")
        );
        assert!(!problem.detail.contains("secret"));
    }

    #[test]
    fn a_hint_is_part_of_the_sentence() {
        let error = PortError::conflict("port_taken", "port 80 is taken").with_hint("use another");
        assert_eq!(
            Problem::from(&error).detail,
            "port 80 is taken: use another"
        );
    }
}

//! Why a use case refuses, each with a stable code and a sentence that may be shown.

use warren_api::convert::ConvertError;
use warren_api::{Code, Problem};
use warren_core::PortError;
use warren_core::admission::Refusal;
use warren_core::error::Failure;

/// A refusal.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The request can never work as it is.
    #[error(transparent)]
    Request(#[from] ConvertError),
    /// Not in this state.
    #[error(transparent)]
    State(#[from] Refusal),
    /// Something of this name does not exist.
    #[error("{sentence}")]
    Missing {
        /// Its code.
        code: Code,
        /// In words.
        sentence: String,
    },
    /// Something of this name exists.
    #[error("{sentence}")]
    Taken {
        /// Its code.
        code: Code,
        /// In words.
        sentence: String,
    },
    /// A prefix of several ids.
    #[error("{wanted:?} is the start of several: {}", .candidates.join(", "))]
    Ambiguous {
        /// As it was asked.
        wanted: String,
        /// Their ids.
        candidates: Vec<String>,
    },
    /// Anything else of our own.
    #[error("{sentence}")]
    Coded {
        /// Its code.
        code: Code,
        /// In words.
        sentence: String,
    },
    /// The store or the host.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The host could not do it; all is as it was before.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// A recorded refusal, answered again to the same idempotency key.
    #[error("{}", .0.detail)]
    Recorded(Box<Problem>),
}

impl AppError {
    /// With a code of ours.
    pub fn coded(code: Code, sentence: impl Into<String>) -> Self {
        AppError::Coded {
            code,
            sentence: sentence.into(),
        }
    }

    /// A field that can never work as it is.
    pub fn field(field: &'static str, problem: impl Into<String>) -> Self {
        AppError::Request(ConvertError::Field {
            field,
            problem: problem.into(),
        })
    }

    pub(crate) fn no_instance(wanted: &str) -> Self {
        AppError::Missing {
            code: Code::InstanceNotFound,
            sentence: format!("there is no instance {wanted:?}: see `warren ps --all`"),
        }
    }
}

impl From<&AppError> for Problem {
    fn from(error: &AppError) -> Self {
        match error {
            AppError::Request(error) => error.clone().into(),
            AppError::State(refusal) => Problem::new(Code::WrongState, refusal.to_string()),
            AppError::Missing { code, sentence }
            | AppError::Taken { code, sentence }
            | AppError::Coded { code, sentence } => Problem::new(*code, sentence.clone()),
            AppError::Ambiguous { candidates, .. } => candidates.iter().fold(
                Problem::new(Code::Ambiguous, error.to_string()),
                |problem, id| problem.with_detail("candidate", id.clone()),
            ),
            AppError::Port(error) => {
                if error.class == warren_core::ErrorClass::Bug {
                    tracing::error!(code = error.code, cause = ?error, "a port failed");
                } else if let Some(cause) = &error.source {
                    tracing::warn!(code = error.code, %cause, "{}", error.message);
                }
                Problem::from(error)
            }
            AppError::Refused(failure) => Problem::from(failure),
            AppError::Recorded(problem) => (**problem).clone(),
        }
    }
}

//! Refusals as gRPC statuses: the sentence that REST says too, a canonical code, and the stable code as metadata.

use crate::app::AppError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use warren_api::{Code as OwnCode, Problem};
use warren_core::ports::guest_files::FileFault;

/// The metadata in which the stable code goes.
const STABLE_CODE: &str = "warren-code";

impl From<AppError> for Status {
    fn from(error: AppError) -> Self {
        status(&Problem::from(&error))
    }
}

/// A problem as a status.
pub(super) fn status(problem: &Problem) -> Status {
    let mut status = Status::new(code(problem), problem.detail.clone());
    if let Ok(code) = MetadataValue::try_from(&problem.code) {
        status.metadata_mut().insert(STABLE_CODE, code);
    }
    status
}

/// A request that can never work as it is.
pub(super) fn invalid(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// The canonical code: by the stable code where it says more than its HTTP status does.
fn code(problem: &Problem) -> Code {
    let is = |codes: &[OwnCode]| codes.iter().any(|code| code.as_str() == problem.code);
    let exists = problem.code == FileFault::Exists.code();
    if exists || is(&[OwnCode::NameTaken, OwnCode::IdTaken, OwnCode::PortTaken]) {
        return Code::AlreadyExists;
    }
    if is(&[OwnCode::TimedOut, OwnCode::RequestTimedOut]) {
        return Code::DeadlineExceeded;
    }
    if is(&[OwnCode::Contention]) {
        return Code::Aborted;
    }
    if is(&[OwnCode::Ambiguous]) {
        return Code::InvalidArgument;
    }
    match problem.status {
        400 | 415 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        408 => Code::DeadlineExceeded,
        409 => Code::FailedPrecondition,
        413 | 429 | 507 => Code::ResourceExhausted,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::PortError;

    #[test]
    fn every_refusal_of_ours_has_a_code_that_says_something() {
        for own in OwnCode::ALL {
            let status = status(&Problem::new(*own, "no"));
            assert!(
                *own == OwnCode::Internal
                    || *own == OwnCode::MethodNotAllowed
                    || status.code() != Code::Internal,
                "{own}"
            );
            let told = status
                .metadata()
                .get(STABLE_CODE)
                .map(|code| code.as_bytes());
            assert_eq!(told, Some(own.as_str().as_bytes()));
        }
    }

    #[test]
    fn codes_are_those_that_clients_act_on() {
        for (own, code) in [
            (OwnCode::InvalidField, Code::InvalidArgument),
            (OwnCode::InstanceNotFound, Code::NotFound),
            (OwnCode::ImageNotFound, Code::NotFound),
            (OwnCode::NameTaken, Code::AlreadyExists),
            (OwnCode::WrongState, Code::FailedPrecondition),
            (OwnCode::NoCapacity, Code::ResourceExhausted),
            (OwnCode::DiskFull, Code::ResourceExhausted),
            (OwnCode::Unauthorized, Code::Unauthenticated),
            (OwnCode::Forbidden, Code::PermissionDenied),
            (OwnCode::NotImplemented, Code::Unimplemented),
            (OwnCode::Unavailable, Code::Unavailable),
            (OwnCode::TimedOut, Code::DeadlineExceeded),
        ] {
            assert_eq!(status(&Problem::new(own, "no")).code(), code, "{own}");
        }
    }

    #[test]
    fn faults_of_files_have_codes_that_clients_act_on() {
        for (fault, code) in [
            (FileFault::NotFound, Code::NotFound),
            (FileFault::Exists, Code::AlreadyExists),
            (FileFault::NotADirectory, Code::FailedPrecondition),
            (FileFault::IsADirectory, Code::FailedPrecondition),
            (FileFault::NotEmpty, Code::FailedPrecondition),
            (FileFault::NotPermitted, Code::PermissionDenied),
            (FileFault::NoSpace, Code::ResourceExhausted),
            (FileFault::InvalidPath, Code::InvalidArgument),
        ] {
            let status = Status::from(AppError::Port(fault.error("no")));
            assert_eq!(status.code(), code, "{fault:?}");
        }
    }

    #[test]
    fn a_bug_tells_nothing_of_its_cause() {
        let error = AppError::Port(PortError::bug("store_broken", "/secret/path"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }
}

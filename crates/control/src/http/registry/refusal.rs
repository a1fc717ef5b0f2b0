//! Refusals as registries give them (distribution-spec v1.1, "Error Codes").

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use warren_api::{Code, Problem};
use warren_core::PortError;
use warren_core::ports::registry::code;

/// The specification's codes, and `UNKNOWN` for what is our own fault, as registries have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegistryCode {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    Unknown,
}

impl RegistryCode {
    fn as_str(self) -> &'static str {
        match self {
            RegistryCode::BlobUnknown => "BLOB_UNKNOWN",
            RegistryCode::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            RegistryCode::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            RegistryCode::DigestInvalid => "DIGEST_INVALID",
            RegistryCode::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            RegistryCode::ManifestInvalid => "MANIFEST_INVALID",
            RegistryCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            RegistryCode::NameInvalid => "NAME_INVALID",
            RegistryCode::NameUnknown => "NAME_UNKNOWN",
            RegistryCode::SizeInvalid => "SIZE_INVALID",
            RegistryCode::Unauthorized => "UNAUTHORIZED",
            RegistryCode::Denied => "DENIED",
            RegistryCode::Unsupported => "UNSUPPORTED",
            RegistryCode::TooManyRequests => "TOOMANYREQUESTS",
            RegistryCode::Unknown => "UNKNOWN",
        }
    }
}

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: RegistryCode,
    message: String,
    /// Our own stable code, for programs.
    detail: Value,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: RegistryCode, message: impl Into<String>) -> Self {
        Refusal {
            status,
            code,
            message: message.into(),
            detail: Value::Null,
        }
    }

    pub(super) fn bad(code: RegistryCode, message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn name() -> Self {
        Refusal::bad(
            RegistryCode::NameInvalid,
            "a repository's name has lower-case letters and digits, with single . _ - or / between them, at most 255 in all",
        )
    }

    pub(super) fn digest() -> Self {
        Refusal::bad(
            RegistryCode::DigestInvalid,
            "a digest is sha256: and 64, or sha512: and 128 lower-case hexadecimal digits",
        )
    }

    pub(super) fn no_manifest(reference: &str) -> Self {
        let shown: String = reference
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        Refusal::new(
            StatusCode::NOT_FOUND,
            RegistryCode::ManifestUnknown,
            format!("there is no manifest {shown:?}"),
        )
    }
}

impl From<PortError> for Refusal {
    fn from(error: PortError) -> Self {
        // The same rule as everywhere says what may be shown and what goes to the log.
        Refusal::from(&Problem::from(&crate::app::AppError::Port(error)))
    }
}

impl From<crate::app::AppError> for Refusal {
    fn from(error: crate::app::AppError) -> Self {
        Refusal::from(&Problem::from(&error))
    }
}

impl From<&Problem> for Refusal {
    fn from(problem: &Problem) -> Self {
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (status, code) = match problem.code.as_str() {
            code::BLOB_UNKNOWN => (StatusCode::NOT_FOUND, RegistryCode::BlobUnknown),
            code::BLOB_NEEDED => (StatusCode::METHOD_NOT_ALLOWED, RegistryCode::Unsupported),
            code::UPLOAD_UNKNOWN => (StatusCode::NOT_FOUND, RegistryCode::BlobUploadUnknown),
            code::UPLOAD_BUSY => (StatusCode::CONFLICT, RegistryCode::BlobUploadInvalid),
            code::OUT_OF_ORDER => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                RegistryCode::BlobUploadInvalid,
            ),
            code::SIZE_INVALID => (StatusCode::BAD_REQUEST, RegistryCode::SizeInvalid),
            code::BLOB_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, RegistryCode::SizeInvalid),
            code::DIGEST_INVALID => (StatusCode::BAD_REQUEST, RegistryCode::DigestInvalid),
            code::MANIFEST_UNKNOWN => (StatusCode::NOT_FOUND, RegistryCode::ManifestUnknown),
            code::MANIFEST_INVALID => (StatusCode::BAD_REQUEST, RegistryCode::ManifestInvalid),
            code::MANIFEST_BLOB_UNKNOWN => {
                (StatusCode::NOT_FOUND, RegistryCode::ManifestBlobUnknown)
            }
            code::REPOSITORY_UNKNOWN => (StatusCode::NOT_FOUND, RegistryCode::NameUnknown),
            // The specification knows no conflict; what may not be done now is denied.
            text if text == Code::ImageInUse.as_str() => {
                (StatusCode::CONFLICT, RegistryCode::Denied)
            }
            // What a pull of the same image would be refused with.
            text if text.starts_with("image_") && status == StatusCode::BAD_REQUEST => {
                (status, RegistryCode::ManifestInvalid)
            }
            _ => {
                let code = match problem.status {
                    401 => RegistryCode::Unauthorized,
                    403 | 409 => RegistryCode::Denied,
                    404 => RegistryCode::NameUnknown,
                    400 | 405 | 415 | 501 => RegistryCode::Unsupported,
                    408 | 413 => RegistryCode::BlobUploadInvalid,
                    429 => RegistryCode::TooManyRequests,
                    _ => RegistryCode::Unknown,
                };
                (status, code)
            }
        };
        Refusal {
            status,
            code,
            message: problem.detail.clone(),
            detail: json!({ "code": problem.code }),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code.as_str(), "message": self.message });
        if !self.detail.is_null() {
            error["detail"] = self.detail;
        }
        let mut response = (self.status, Json(json!({ "errors": [error] }))).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                // `docker login` sends any user and the token as the password.
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Basic realm=\"warren\""),
                );
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

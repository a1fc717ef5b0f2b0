//! Answers: JSON, problems, pages.

use crate::app::{AppError, Outcome, PageOf};
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use warren_api::{Code, Problem};

/// A refusal on its way out: the envelope writes the document, with the request's path.
#[derive(Debug)]
pub(crate) struct Failure(Box<Problem>);

impl Failure {
    pub(crate) fn new(code: Code, sentence: impl Into<String>) -> Self {
        Failure(Box::new(Problem::new(code, sentence)))
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        Failure(Box::new(Problem::from(&error)))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure(Box::new(problem))
    }
}

impl From<Box<Problem>> for Failure {
    fn from(problem: Box<Problem>) -> Self {
        Failure(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(*self.0);
        response
    }
}

/// What a handler gives.
pub(crate) type Reply = Result<Response, Failure>;

/// JSON with a status.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    (status, Json(value)).into_response()
}

/// What `value` is as JSON.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let bytes = serde_json::to_vec(value).expect("our own schemas are JSON");
    Bytes::from(bytes)
}

/// JSON that is encoded already, with a status.
pub(crate) fn encoded(status: StatusCode, json: impl Into<Bytes>) -> Response {
    let media = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, media)], json.into()).into_response()
}

/// The same as an answer that can be kept.
pub(crate) fn outcome<T: Serialize>(status: StatusCode, value: &T) -> Outcome {
    Outcome {
        status: status.as_u16(),
        body: serde_json::to_string(value).expect("our own schemas are JSON"),
    }
}

pub(crate) fn from_outcome(outcome: Outcome) -> Response {
    let status = StatusCode::from_u16(outcome.status).unwrap_or(StatusCode::OK);
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        outcome.body,
    )
        .into_response()
}

/// The header that holds the next page's token.
pub(crate) const NEXT_PAGE: HeaderName = HeaderName::from_static("x-next-page-token");

/// A page: a plain array, with the next page's token in a header.
pub(crate) fn page<T: Serialize>(page: &PageOf<T>) -> Response {
    with_next(json(StatusCode::OK, &page.items), page.next.as_deref())
}

/// The same of what is encoded already.
pub(crate) fn page_of_encoded(page: &PageOf<Bytes>) -> Response {
    let mut array =
        Vec::with_capacity(2 + page.items.iter().map(|item| item.len() + 1).sum::<usize>());
    array.push(b'[');
    for (at, item) in page.items.iter().enumerate() {
        if at > 0 {
            array.push(b',');
        }
        array.extend_from_slice(item);
    }
    array.push(b']');
    with_next(encoded(StatusCode::OK, array), page.next.as_deref())
}

fn with_next(mut response: Response, next: Option<&str>) -> Response {
    // Base64 is a header value.
    if let Some(token) = next.and_then(|next| HeaderValue::from_str(next).ok()) {
        response.headers_mut().insert(NEXT_PAGE, token);
    }
    response
}

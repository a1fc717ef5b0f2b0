//! Reading requests: query, body, path, headers; what cannot be read is a problem that names it.

use super::Http;
use super::reply::{Failure, Reply, from_outcome};
use crate::app::{AppError, Filter, Fingerprint, Keyed, Outcome, PageRequest, TENANT};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::future::Future;
use warren_api::{Code, Problem};
use warren_core::InstanceId;
use warren_core::state::StateName;

/// How long a JSON body may take to arrive.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// What an image's or instance's reference in a path may be at most.
const LONGEST_ID: usize = 512;

/// The query as pairs; each parameter is taken by name, and what is left over is an error.
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Params(pairs))
            .map_err(|e| Failure::new(Code::InvalidQuery, e.body_text()))
    }
}

pub(super) fn bad_query(name: &str, problem: impl std::fmt::Display) -> Failure {
    Problem::new(Code::InvalidQuery, format!("{name}: {problem}"))
        .with_detail(name, problem.to_string())
        .into()
}

impl Params {
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<Vec<_>, _>(|(key, _)| key == name);
        self.0 = rest;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    pub(super) fn one(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let mut values = self.all(name);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(bad_query(name, "may be given once")),
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(
        &mut self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, Failure> {
        self.one(name)?
            .map(|text| {
                text.parse()
                    .map_err(|_| bad_query(name, format_args!("must be {what}")))
            })
            .transpose()
    }

    /// `name[key]=value` (OpenAPI's deepObject).
    pub(super) fn map(&mut self, name: &str) -> Vec<(String, String)> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<Vec<_>, _>(|(key, _)| {
                key.strip_prefix(name)
                    .and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'))
                    .is_some_and(|key| !key.is_empty() && !key.contains(['[', ']']))
            });
        self.0 = rest;
        taken
            .into_iter()
            .map(|(key, value)| (key[name.len() + 1..key.len() - 1].to_owned(), value))
            .collect()
    }

    /// What every list takes, and nothing else may be left.
    pub(super) fn list(mut self, with_states: States) -> Result<(Filter, PageRequest), Failure> {
        let mut labels = self.map("tags");
        labels.extend(self.map("labels"));
        for pair in self.all("labels") {
            match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    labels.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(bad_query("labels", "must be key=value")),
            }
        }
        let mut states = Vec::new();
        if with_states == States::Accepted {
            for text in self.all("state") {
                for name in text.split(',') {
                    states.push(parse_state("state", name)?);
                }
            }
        }
        let limit = self.parsed::<usize>("limit", "a number from 1 to 1000")?;
        if limit.is_some_and(|limit| !(1..=1000).contains(&limit)) {
            return Err(bad_query("limit", "must be a number from 1 to 1000"));
        }
        let token = self.one("page_token")?;
        self.finish()?;
        Ok((
            Filter { states, labels },
            PageRequest {
                limit: limit.unwrap_or(1000),
                token,
            },
        ))
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(60).collect();
                Err(bad_query(&shown, "this route does not know this parameter"))
            }
        }
    }
}

/// Whether a list has states to filter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum States {
    Accepted,
    Unknown,
}

pub(super) fn parse_state(parameter: &str, name: &str) -> Result<StateName, Failure> {
    name.parse().map_err(|e: String| bad_query(parameter, e))
}

/// No query at all.
pub(super) struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Params::from_request_parts(parts, state).await?.finish()?;
        Ok(NoParams)
    }
}

/// `{id}` of the path.
pub(super) struct Id(pub(super) String);

fn bad_path(rejection: &PathRejection) -> Failure {
    Failure::new(Code::InvalidPath, rejection.body_text())
}

pub(super) fn check_id_length(id: String) -> Result<String, Failure> {
    if id.len() > LONGEST_ID {
        Err(Failure::new(
            Code::InvalidPath,
            "the name in the path is longer than 512 bytes",
        ))
    } else {
        Ok(id)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| bad_path(&e))?;
        check_id_length(id).map(Id)
    }
}

/// `{id}` of the path, and the name of something that belongs to it.
pub(super) struct Part(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path((id, part)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|e| bad_path(&e))?;
        Ok(Part(check_id_length(id)?, check_id_length(part)?))
    }
}

/// A reference with slashes that came unescaped.
pub(super) struct LongId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for LongId {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path((first, rest)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|e| bad_path(&e))?;
        check_id_length(format!("{first}/{rest}")).map(LongId)
    }
}

/// A body of bytes, as far as it is allowed to be long, and to take long.
async fn bytes(request: Request, http: &Http) -> Result<Bytes, Failure> {
    let limit = http.app.0.settings.body_limit;
    let whole = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, http));
    match whole.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(BytesRejection::FailedToBufferBody(e)))
            if e.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE =>
        {
            Err(Failure::new(
                Code::BodyTooLarge,
                format!("the body may have at most {limit} bytes"),
            ))
        }
        Ok(Err(other)) => Err(Failure::new(Code::InvalidBody, other.body_text())),
        Err(_) => Err(Failure::new(
            Code::RequestTimedOut,
            "the body did not come in time",
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5
            && essence.is_char_boundary(essence.len() - 5)
            && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"))
}

fn not_json() -> Failure {
    Failure::new(
        Code::UnsupportedMediaType,
        "this route takes JSON: send `Content-Type: application/json`",
    )
}

fn parse<T: DeserializeOwned + Serialize>(raw: &[u8]) -> Result<T, Failure> {
    let wrong = |e: serde_json::Error| Failure::new(Code::InvalidBody, e.to_string());
    let value: T = serde_json::from_slice(raw).map_err(wrong)?;
    // serde reads an array where a struct is wanted, field by field; the API's objects are objects.
    let sent: Value = serde_json::from_slice(raw).map_err(wrong)?;
    let read = serde_json::to_value(&value).map_err(wrong)?;
    match array_for_object(&sent, &read) {
        None => Ok(value),
        Some(path) => Err(Failure::new(
            Code::InvalidBody,
            format!(
                "{} must be an object, not an array",
                if path.is_empty() { "the body" } else { &path }
            ),
        )),
    }
}

/// The path of the first array that was read as an object.
fn array_for_object(sent: &Value, read: &Value) -> Option<String> {
    match (sent, read) {
        (Value::Array(_), Value::Object(_)) => Some(String::new()),
        (Value::Object(sent), Value::Object(read)) => sent.iter().find_map(|(name, sent)| {
            let below = array_for_object(sent, read.get(name)?)?;
            Some(if below.is_empty() {
                name.clone()
            } else {
                format!("{name}.{below}")
            })
        }),
        (Value::Array(sent), Value::Array(read)) => {
            sent.iter()
                .zip(read)
                .enumerate()
                .find_map(|(index, (sent, read))| {
                    let below = array_for_object(sent, read)?;
                    Some(if below.is_empty() {
                        index.to_string()
                    } else {
                        format!("{index}.{below}")
                    })
                })
        }
        _ => None,
    }
}

/// A JSON body, and its bytes.
pub(super) struct Body<T> {
    pub(super) value: T,
    pub(super) raw: Bytes,
}

impl<T: DeserializeOwned + Serialize> FromRequest<Http> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, http: &Http) -> Result<Self, Failure> {
        if !is_json(request.headers()) {
            return Err(not_json());
        }
        let raw = bytes(request, http).await?;
        let value = parse(&raw)?;
        Ok(Body { value, raw })
    }
}

/// A JSON body that may be absent.
pub(super) struct OptionalBody<T> {
    pub(super) value: T,
    pub(super) raw: Bytes,
}

impl<T: DeserializeOwned + Serialize + Default> FromRequest<Http> for OptionalBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, http: &Http) -> Result<Self, Failure> {
        let json = is_json(request.headers());
        let raw = bytes(request, http).await?;
        let value = if raw.is_empty() {
            T::default()
        } else if json {
            parse(&raw)?
        } else {
            return Err(not_json());
        };
        Ok(OptionalBody { value, raw })
    }
}

/// The idempotency key of a request, if it has one, and what it covers.
pub(super) struct RequestKey {
    key: Option<String>,
    method: String,
    target: String,
}

impl<S: Send + Sync> FromRequestParts<S> for RequestKey {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let bad = || {
            Failure::new(
                Code::InvalidHeader,
                "Idempotency-Key must be given once, with 1 to 255 printable ASCII characters and no spaces",
            )
        };
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(_), Some(_)) => return Err(bad()),
            (Some(key), None) => {
                let key = key.to_str().map_err(|_| bad())?;
                if !(1..=255).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(bad());
                }
                Some(key.to_owned())
            }
        };
        Ok(RequestKey {
            key,
            method: parts.method.to_string(),
            target: parts
                .uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
        })
    }
}

impl RequestKey {
    pub(super) fn keyed(self, body: &[u8]) -> Option<Keyed> {
        let fingerprint = Fingerprint::of(&self.method, &self.target, body);
        self.key.map(|key| Keyed {
            tenant: TENANT.to_owned(),
            key,
            fingerprint,
        })
    }
}

/// Carries a request out, once per key where there is one.
pub(super) async fn once<F>(
    http: &Http,
    keyed: Option<Keyed>,
    work: impl FnOnce(Option<InstanceId>) -> F + Send + 'static,
) -> Reply
where
    F: Future<Output = Result<Outcome, AppError>> + Send + 'static,
{
    let outcome = match keyed {
        None => work(None).await?,
        Some(keyed) => http.app.once(keyed, work).await?,
    };
    Ok(from_outcome(outcome))
}

/// Whether the client wants a stream of events.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| {
            part.split(';')
                .next()
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
        })
}

//! Unary calls of Connect (<https://connectrpc.com/docs/protocol>, "Unary-RPCs"): a message as JSON, or as it is, in a POST
//! of its own. Each becomes a gRPC call to the same service, and its answer becomes Connect's.

use super::{DESCRIPTORS, LARGEST_MESSAGE};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use serde::Serialize;
use tonic::{Code, Status};
use tower::ServiceExt;

/// What may come before a message on the wire of gRPC: a flag and a length.
const PREFIX: usize = 5;
/// JSON is larger than what it says: bytes are base64 in it.
const LARGEST_JSON: usize = LARGEST_MESSAGE / 3 * 4 + (64 << 10);
/// How Connect marks metadata that came last.
const TRAILER: &str = "trailer-";

/// The service behind it, and what its messages are.
#[derive(Clone)]
pub(super) struct Connect {
    pub(super) service: Router,
    pub(super) pool: DescriptorPool,
}

impl Connect {
    pub(super) fn new(service: Router) -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS);
        Connect {
            service,
            pool: pool.expect("the descriptors that were built in are whole"),
        }
    }

    /// The method that a path names.
    fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        let service = self.pool.get_service_by_name(service)?;
        service.methods().find(|method| method.name() == name)
    }
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Json,
    Proto,
}

impl Codec {
    fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Codec::Json => "application/json",
            Codec::Proto => "application/proto",
        })
    }

    fn of(headers: &HeaderMap) -> Option<Self> {
        let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        match media.split(';').next()?.trim() {
            "application/json" => Some(Codec::Json),
            "application/proto" => Some(Codec::Proto),
            _ => None,
        }
    }
}

/// Takes what is Connect's, and lets everything else pass.
pub(super) async fn translate(
    State(connect): State<Connect>,
    request: Request,
    next: Next,
) -> Response {
    match Codec::of(request.headers()) {
        Some(codec) if request.method() == Method::POST => {
            let answered = call(&connect, codec, request).await;
            answered.unwrap_or_else(|status| refused(&status))
        }
        _ => next.run(request).await,
    }
}

async fn call(connect: &Connect, codec: Codec, request: Request) -> Result<Response, Status> {
    let method = connect.method(request.uri().path());
    let method = method.ok_or_else(|| Status::unimplemented("there is no such method"))?;
    if method.is_server_streaming() || method.is_client_streaming() {
        return Err(Status::unimplemented(
            "over Connect only methods with one answer are served: call this one with gRPC or gRPC-Web",
        ));
    }
    let (mut parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST_JSON).collect().await;
    let body = body.map_err(|_| Status::resource_exhausted("the message is larger than 100 MB"))?;
    let message = match codec {
        Codec::Proto => body.to_bytes(),
        Codec::Json => from_json(&method, &body.to_bytes())?,
    };
    let framed = framed(&message)?;
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.version = Version::HTTP_2;
    let request = Request::from_parts(parts, Body::from(framed));
    let Ok(response) = connect.service.clone().oneshot(request).await;
    answer(&method, codec, response).await
}

async fn answer(
    method: &MethodDescriptor,
    codec: Codec,
    response: Response,
) -> Result<Response, Status> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await;
    let body = body.map_err(|_| Status::unavailable("the answer broke off"))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&trailers).or(Status::from_header_map(&parts.headers));
    if let Some(status) = status
        && status.code() != Code::Ok
    {
        return Err(status);
    }
    let message = body.to_bytes();
    let message = message
        .get(PREFIX..)
        .ok_or_else(|| Status::internal("the answer has no message"))?;
    let content = match codec {
        Codec::Proto => Bytes::copy_from_slice(message),
        Codec::Json => to_json(method, message)?,
    };
    let mut response = Response::new(Body::from(content));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, codec.media_type());
    for (name, value) in &parts.headers {
        if is_metadata(name) {
            headers.append(name, value.clone());
        }
    }
    for (name, value) in &trailers {
        if is_metadata(name)
            && let Ok(name) = HeaderName::try_from(format!("{TRAILER}{name}"))
        {
            headers.append(name, value.clone());
        }
    }
    Ok(response)
}

/// Whether it is what the service says, and not gRPC's own.
fn is_metadata(name: &HeaderName) -> bool {
    *name != header::CONTENT_TYPE && !name.as_str().starts_with("grpc-")
}

fn from_json(method: &MethodDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    let wrong = |error: &dyn std::fmt::Display| {
        Status::invalid_argument(format!("this is no {}: {error}", method.input().name()))
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(method.input(), &mut deserializer);
    let message = message.map_err(|error| wrong(&error))?;
    deserializer.end().map_err(|error| wrong(&error))?;
    Ok(message.encode_to_vec().into())
}

fn to_json(method: &MethodDescriptor, message: &[u8]) -> Result<Bytes, Status> {
    let message = DynamicMessage::decode(method.output(), message);
    let message = message.map_err(|_| Status::internal("the answer is no message"))?;
    let json = serde_json::to_vec(&message);
    json.map(Bytes::from)
        .map_err(|_| Status::internal("the answer cannot be written as JSON"))
}

/// A message that is not compressed, as gRPC puts it on the wire.
fn framed(message: &[u8]) -> Result<Bytes, Status> {
    let length = u32::try_from(message.len());
    let length = length.map_err(|_| Status::resource_exhausted("the message is too large"))?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// Connect's error document.
#[derive(Serialize)]
struct Error<'a> {
    code: &'static str,
    message: &'a str,
}

fn refused(status: &Status) -> Response {
    let (code, http) = code(status.code());
    let error = Error {
        code,
        message: status.message(),
    };
    let mut response = (http, axum::Json(error)).into_response();
    let metadata = status.metadata().clone().into_headers();
    for (name, value) in &metadata {
        if is_metadata(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// What Connect calls a code, and the HTTP status that goes with it.
fn code(code: Code) -> (&'static str, StatusCode) {
    let (name, status) = match code {
        Code::Ok => ("ok", 200),
        Code::Cancelled => ("canceled", 499),
        Code::Unknown => ("unknown", 500),
        Code::InvalidArgument => ("invalid_argument", 400),
        Code::DeadlineExceeded => ("deadline_exceeded", 504),
        Code::NotFound => ("not_found", 404),
        Code::AlreadyExists => ("already_exists", 409),
        Code::PermissionDenied => ("permission_denied", 403),
        Code::ResourceExhausted => ("resource_exhausted", 429),
        Code::FailedPrecondition => ("failed_precondition", 400),
        Code::Aborted => ("aborted", 409),
        Code::OutOfRange => ("out_of_range", 400),
        Code::Unimplemented => ("unimplemented", 501),
        Code::Internal => ("internal", 500),
        Code::Unavailable => ("unavailable", 503),
        Code::DataLoss => ("data_loss", 500),
        Code::Unauthenticated => ("unauthenticated", 401),
    };
    (
        name,
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn connect() -> Connect {
        Connect::new(Router::new())
    }

    #[test]
    fn every_method_is_found_by_its_path() {
        let connect = connect();
        let service = connect
            .pool
            .get_service_by_name("container.ContainerService");
        let service = service.unwrap();
        assert_eq!(service.methods().count(), 18);
        for method in service.methods() {
            let path = format!("/container.ContainerService/{}", method.name());
            assert_eq!(connect.method(&path).unwrap(), method);
        }
        for path in [
            "",
            "/",
            "/container.ContainerService",
            "/container.ContainerService/",
            "/x/ListVMs",
        ] {
            assert!(connect.method(path).is_none(), "{path}");
        }
    }

    #[test]
    fn json_goes_in_and_out_again() {
        let method = connect().method("/container.ContainerService/ReadFile");
        let method = method.unwrap();
        let message = from_json(&method, br#"{"vmId": "a", "offset": "7", "length": 9}"#).unwrap();
        assert_eq!(&message[..], b"\x0a\x01a\x18\x07\x20\x09");
        let answer = to_json(&method, b"\x0a\x02\xff\x00\x10\x02").unwrap();
        assert_eq!(&answer[..], br#"{"content":"/wA=","size":"2"}"#);
        for json in [&b""[..], b"{", b"[]", b"{} {}", br#"{"vmId": 1}"#, b"\xff"] {
            let refused = from_json(&method, json).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn a_message_is_framed_with_its_length() {
        assert_eq!(&framed(b"ab").unwrap()[..], b"\0\0\0\0\x02ab");
        assert_eq!(framed(b"").unwrap().len(), PREFIX);
    }
}

//! What happens around every request: an id, a span, who may come in, a caught panic, the problem
//! document, and the numbers.

use super::reply::Failure;
use super::{Http, registry};
use crate::auth::{Auth, scope, token_of_basic};
use crate::guard;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use opentelemetry::context::FutureExt as _;
use opentelemetry_http::HeaderExtractor;
use rand::Rng;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use warren_api::{Code, Problem, problem::MEDIA_TYPE};
use warren_core::TRACE_TARGET;

/// What a request goes by in the log.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's own id for a request, if it is short and plain; else one of ours.
pub(crate) fn request_id(request: &Request) -> HeaderValue {
    request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| (1..=64).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic))
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&format!("{:016x}", rand::rng().random::<u64>()))
                .expect("hexadecimal digits")
        })
}

/// The request in a trace, under the caller's span where it sent one (<https://www.w3.org/TR/trace-context/>).
pub(crate) fn trace(request: &Request, route: &str) -> Span {
    let span = tracing::info_span!(
        target: TRACE_TARGET,
        "request",
        "otel.name" = format!("{} {route}", request.method()),
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "http.request.method" = %request.method(),
        "http.route" = route,
        "url.path" = request.uri().path(),
        "http.response.status_code" = Empty,
    );
    if !span.is_disabled() {
        let caller = opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract(&HeaderExtractor(request.headers()))
        });
        // Fails only where nobody listens.
        let _ = span.set_parent(caller);
    }
    span
}

pub(super) async fn wrap(State(http): State<Http>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", |route| route.as_str())
        .to_owned();
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default(), %method, %path);
    let trace = trace(&request, &route);
    let answer = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone());
    let answered = if trace.is_disabled() {
        answer.await
    } else {
        // Whatever is handed on belongs to this trace.
        let within = answer.with_context(trace.context());
        within.instrument(trace.clone()).await
    };
    let mut response = answered.unwrap_or_else(|_| {
        span.in_scope(|| tracing::error!("a handler panicked"));
        Failure::new(
            Code::Internal,
            "something went wrong inside the server; its log has the cause",
        )
        .into_response()
    });
    let is_registry = registry::is_ours(&path);
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        if is_registry {
            registry::write_problem(&mut response, &problem);
        } else {
            write_problem(&mut response, problem.at(path));
        }
    }
    if is_registry {
        registry::stamp(&mut response);
    }
    let status = response.status();
    trace.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        trace.record("otel.status_code", "ERROR");
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let took = started.elapsed();
    // A client may invent methods without end.
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let label = if known.contains(&method) {
        method.as_str()
    } else {
        "OTHER"
    };
    http.app
        .0
        .metrics
        .answered(label, &route, status.as_u16(), took);
    span.in_scope(|| {
        if status.is_server_error() && status.as_u16() != 501 {
            tracing::warn!(
                status = status.as_u16(),
                took_ms = took.as_millis(),
                "answered"
            );
        } else {
            tracing::debug!(
                status = status.as_u16(),
                took_ms = took.as_millis(),
                "answered"
            );
        }
    });
    response
}

fn write_problem(response: &mut Response, problem: Problem) {
    let body = serde_json::to_vec(&problem).expect("our own schemas are JSON");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    match problem.status {
        401 => {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"warren\""),
            );
        }
        429 | 503 => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    *response.body_mut() = Body::from(body);
}

pub(super) async fn admit(
    State(http): State<Http>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    if matches!(*http.auth, Auth::Loopback) {
        let peer = request
            .extensions()
            .get::<ConnectInfo<SocketAddr>>()
            .map(|ConnectInfo(peer)| *peer);
        guard::check(peer, request.uri(), request.headers())?;
    }
    if let Some((resource, action)) = scope(request.method(), request.uri().path()) {
        let mut credentials = request.headers().get_all(header::AUTHORIZATION).iter();
        let credential = match (credentials.next(), credentials.next()) {
            (Some(one), None) => one.to_str().ok(),
            _ => None,
        };
        let scopes = match credential.and_then(token_of_basic) {
            Some(bearer) if registry::is_ours(request.uri().path()) => {
                http.auth.authenticate(Some(&bearer))?
            }
            _ => http.auth.authenticate(credential)?,
        };
        if !scopes.allow(resource, action) {
            return Err(Failure::new(
                Code::Forbidden,
                format!("the token does not allow {resource}:{action}"),
            ));
        }
    }
    Ok(next.run(request).await)
}

pub(super) async fn no_route(uri: Uri) -> Failure {
    let shown: String = uri.path().chars().take(200).collect();
    Failure::new(
        Code::RouteNotFound,
        format!("there is no {shown} here: see /docs"),
    )
}

pub(super) async fn no_method(method: Method) -> Failure {
    Failure::new(
        Code::MethodNotAllowed,
        format!("this route does not take {method}: the Allow header says what it takes"),
    )
}

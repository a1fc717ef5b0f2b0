//! What happens around every request, whatever language it speaks: an id, a span in the log and one in a trace, a caught
//! panic, and the numbers.

use crate::App;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use futures::FutureExt;
use opentelemetry::context::FutureExt as _;
use opentelemetry_http::HeaderExtractor;
use rand::Rng;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use warren_core::TRACE_TARGET;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known of a request while it is answered.
pub(crate) struct Envelope {
    id: HeaderValue,
    method: Method,
    route: Arc<str>,
    span: Span,
    trace: Span,
    started: Instant,
}

impl Envelope {
    /// `route` is the request's path as a pattern: there must not be more of them than there are routes.
    pub(crate) fn new(request: &Request, route: &str) -> Self {
        let id = request_id(request);
        let (method, path) = (request.method().clone(), request.uri().path());
        Envelope {
            span: tracing::info_span!("request", request_id = id.to_str().unwrap_or_default(), %method, %path),
            trace: trace(request, route),
            id,
            method,
            route: route.into(),
            started: Instant::now(),
        }
    }

    /// Has it answered; `None` when whoever did so panicked.
    pub(crate) async fn answer(&self, request: Request, next: Next) -> Option<Response> {
        let answer = AssertUnwindSafe(next.run(request))
            .catch_unwind()
            .instrument(self.span.clone());
        let answered = if self.trace.is_disabled() {
            answer.await
        } else {
            // Whatever is handed on belongs to this trace.
            let within = answer.with_context(self.trace.context());
            within.instrument(self.trace.clone()).await
        };
        if answered.is_err() {
            self.span.in_scope(|| tracing::error!("a handler panicked"));
        }
        answered.ok()
    }

    /// Notes how it ended, and gives the client the id.
    pub(crate) fn close(self, app: &App, response: &mut Response) {
        let status = response.status();
        self.trace
            .record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            self.trace.record("otel.status_code", "ERROR");
        }
        response.headers_mut().insert(REQUEST_ID, self.id);
        let took = self.started.elapsed();
        // A client may invent methods without end.
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
        let method = known
            .into_iter()
            .find(|known| *known == self.method.as_str())
            .unwrap_or("OTHER");
        let (status, took_ms) = (status.as_u16(), took.as_millis());
        app.0.metrics.answered(method, &self.route, status, took);
        // What is not served yet says so, and is no mistake.
        let is_mistake = status >= 500 && status != 501;
        self.span.in_scope(|| match is_mistake {
            true => tracing::warn!(status, took_ms, "answered"),
            false => tracing::debug!(status, took_ms, "answered"),
        });
    }
}

/// The client's own id for a request, if it is short and plain; else one of ours.
fn request_id(request: &Request) -> HeaderValue {
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
fn trace(request: &Request, route: &str) -> Span {
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

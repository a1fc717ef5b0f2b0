//! What happens around every call: who may come in is known before a byte of the message is read.

use super::caller::Caller;
use super::lifecycle::stopping;
use super::refusal;
use crate::app::PANICKED;
use crate::auth::Auth;
use crate::envelope::Envelope;
use crate::{App, guard};
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::Frame;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

/// Where the calls of the service are.
const SERVICE: &str = "/container.ContainerService/";

/// What the envelope knows.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) app: App,
    pub(super) auth: Arc<Auth>,
}

fn refused(status: Status) -> Response {
    status.into_http::<Body>()
}

pub(super) async fn wrap(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // A client may invent methods without end.
    let route = path
        .strip_prefix(SERVICE)
        .filter(|method| scope(method).is_some())
        .map_or("other", |_| path);
    let envelope = Envelope::new(&request, route);
    let answered = envelope.answer(request, next).await;
    let mut response = answered.unwrap_or_else(|| refused(Status::internal(PANICKED)));
    envelope.close(&gate.app, &mut response);
    response
}

pub(super) async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    match caller(&gate, &request) {
        Err(status) => refused(*status),
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
                return next.run(request).await;
            }
            let stopping = gate.app.stopping().clone().cancelled_owned();
            next.run(request).await.map(|answer| {
                Body::new(UntilStopping {
                    answer,
                    stopping: Box::pin(stopping),
                    end: End::Open,
                })
            })
        }
    }
}

/// An answer of health or reflection. Some of those have no end, and would hold up the server's: when it is asked to
/// stop, they end and say so.
struct UntilStopping {
    answer: Body,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    end: End,
}

/// Whether the last of an answer was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Sent,
}

impl hyper::body::Body for UntilStopping {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.end == End::Sent {
            return Poll::Ready(None);
        }
        // What there is to say comes first.
        if let Poll::Ready(frame) = Pin::new(&mut this.answer).poll_frame(context) {
            return Poll::Ready(frame);
        }
        std::task::ready!(this.stopping.as_mut().poll(context));
        this.end = End::Sent;
        let mut trailers = HeaderMap::new();
        let told = stopping().add_header(&mut trailers);
        Poll::Ready(told.is_ok().then(|| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.end == End::Sent || self.answer.is_end_stream()
    }
}

/// Who calls; nobody in particular for what is public.
fn caller(gate: &Gate, request: &Request) -> Result<Option<Caller>, Box<Status>> {
    let denied = |problem: Box<warren_api::Problem>| Box::new(refusal::status(&problem));
    if matches!(*gate.auth, Auth::Loopback) {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map(|ConnectInfo(peer)| *peer);
        guard::check(peer, request.uri(), request.headers()).map_err(denied)?;
    }
    let Some(method) = request.uri().path().strip_prefix(SERVICE) else {
        // Health and reflection tell nothing of instances.
        return Ok(None);
    };
    if matches!(*gate.auth, Auth::Loopback) {
        return Ok(Some(Caller::anybody()));
    }
    let mut credentials = request.headers().get_all(header::AUTHORIZATION).iter();
    let credential = match (credentials.next(), credentials.next()) {
        (Some(one), None) => one.to_str().ok(),
        _ => None,
    };
    let identity = gate.auth.identify(credential).map_err(denied)?;
    let caller = Caller::bearer(identity)?;
    if let Some((resource, action)) = scope(method) {
        caller.must_be_allowed(resource, action)?;
    }
    Ok(Some(caller))
}

/// Which scope a method needs, the same as its counterpart in REST; `None` for what is none of ours.
fn scope(method: &str) -> Option<(&'static str, &'static str)> {
    Some(match method {
        "GetVMStatus" | "ListVMs" | "GetResourceUsage" | "GetLogs" => ("instance", "read"),
        "DeleteVM" => ("instance", "delete"),
        "CreateVM"
        | "StartVM"
        | "StopVM"
        | "UpdateResourceLimits"
        | "ExecuteCommand"
        | "ExecuteCommandStream"
        | "ReadFile"
        | "WriteFile"
        | "DeleteFile"
        | "ListFiles"
        | "CreateDirectory" => ("instance", "write"),
        "CreateSnapshot" | "RestoreSnapshot" => ("snapshot", "write"),
        _ => return None,
    })
}

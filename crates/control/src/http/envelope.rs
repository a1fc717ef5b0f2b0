//! What happens around every request of this API: who may come in, and the problem document.

use super::reply::Failure;
use super::{Http, registry};
use crate::app::PANICKED;
use crate::auth::{Auth, scope, token_of_basic};
use crate::envelope::Envelope;
use crate::guard;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use warren_api::{Code, Problem, problem::MEDIA_TYPE};

pub(super) async fn wrap(State(http): State<Http>, request: Request, next: Next) -> Response {
    let uri = request.uri().clone();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other", |route| route.as_str());
    let envelope = Envelope::new(&request, route);
    let answered = envelope.answer(request, next).await;
    let mut response =
        answered.unwrap_or_else(|| Failure::new(Code::Internal, PANICKED).into_response());
    let is_registry = registry::is_ours(uri.path());
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        if is_registry {
            registry::write_problem(&mut response, &problem);
        } else {
            write_problem(&mut response, problem.at(uri.path()));
        }
    }
    if is_registry {
        registry::stamp(&mut response);
    }
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    envelope.close(&http.app, &mut response);
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

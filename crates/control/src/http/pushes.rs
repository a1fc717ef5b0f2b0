//! `/pushes`.

use super::Http;
use super::extract::{Body, Id, NoParams, RequestKey, once, wants_events};
use super::reply::{Reply, json, outcome};
use super::sse;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use warren_api::push::{CreatePushRequest, Push};

/// List pushes
///
/// Those under way and the last ones that ended, oldest first.
#[utoipa::path(get, path = "/pushes", operation_id = "listPushes", tag = "images",
    responses((status = 200, description = "All that are remembered", body = [Push])))]
pub(super) async fn list(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.pushes()))
}

/// Push an image to a registry
///
/// Sends what the registry lacks of the image, byte for byte as it came. Answers at once with its state. With
/// `Accept: text/event-stream` the answer is a stream of `progress` events that ends with `push` or `problem`.
#[utoipa::path(post, path = "/pushes", operation_id = "createPush", tag = "images",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    request_body = CreatePushRequest,
    responses(
        (status = 202, description = "It is on its way", body = Push),
        (status = 200, description = "Its progress", content_type = "text/event-stream", body = String)))]
pub(super) async fn create(
    State(http): State<Http>,
    _: NoParams,
    headers: HeaderMap,
    key: RequestKey,
    body: Body<CreatePushRequest>,
) -> Reply {
    if wants_events(&headers) {
        let steps = http.app.push_followed(body.value).await?;
        return Ok(sse::push_steps(&http, steps));
    }
    let app = http.app.clone();
    once(&http, key.keyed(&body.raw), move |_| async move {
        let push = app.start_push(body.value).await?;
        Ok(outcome(StatusCode::ACCEPTED, &push))
    })
    .await
}

/// Get a push
#[utoipa::path(get, path = "/pushes/{id}", operation_id = "getPush", tag = "images",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The push", body = Push)))]
pub(super) async fn get(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.push(&id)?))
}

//! `/instances`, but for what streams.

use super::Http;
use super::extract::{
    Body, Id, NoParams, OptionalBody, Params, RequestKey, States, bad_query, once, parse_state,
    wants_events,
};
use super::reply::{Failure, Reply, encode, encoded, json, outcome, page_of_encoded};
use super::sse;
use crate::app::{AppError, Creation, JobUpdate, PageOf, TENANT, Until, View};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;
use warren_api::convert;
use warren_api::{
    Code, CommitInstanceRequest, CreateInstanceRequest, Image, Instance, InstanceStats,
    StandbyInstanceRequest, StartInstanceRequest, UpdateInstanceRequest, WaitForStateResponse,
};
use warren_core::instance::NetworkChoice;
use warren_core::units::parse_duration;

/// The wait where none is given.
const USUAL_WAIT: Duration = Duration::from_secs(60);

fn wire(view: &View) -> Instance {
    convert::instance(&view.intent, &view.status)
}

/// The same, encoded.
fn bytes(view: &View) -> Bytes {
    view.encoded(|view| encode(&wire(view)))
}

fn ok(view: Result<View, AppError>) -> Reply {
    Ok(encoded(StatusCode::OK, bytes(&view?)))
}

/// List instances
#[utoipa::path(get, path = "/instances", operation_id = "listInstances", tag = "instances",
    params(
        ("state" = Option<Vec<warren_api::InstanceState>>, Query, explode = false, description = "Only in these states"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many"),
        ("page_token" = Option<String>, Query, description = "X-Next-Page-Token of the page before"),
        ("labels" = Option<Vec<String>>, Query, description = "Only with these labels, as key=value"),
    ),
    responses((status = 200, description = "A page", body = [Instance],
        headers(("x-next-page-token" = Option<String>, description = "Where the next page starts, when there is one")))))]
pub(super) async fn list(State(http): State<Http>, params: Params) -> Reply {
    let (filter, request) = params.list(States::Accepted)?;
    let found = http.app.instances(&filter, &request)?;
    Ok(page_of_encoded(&PageOf {
        items: found.items.iter().map(bytes).collect(),
        next: found.next,
    }))
}

/// Create and start an instance
///
/// Answers when it has started or failed, or after 30 s with its current state. A start that fails is 201 with
/// the state Stopped and `state_error`.
#[utoipa::path(post, path = "/instances", operation_id = "createInstance", tag = "instances",
    params(
        ("wait" = Option<String>, Query, pattern = "^(none|started)$", description = "`none` answers at once"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "Makes repeating the request safe for 24 hours"),
    ),
    request_body = CreateInstanceRequest,
    responses((status = 201, description = "Created", body = Instance)))]
pub(super) async fn create(
    State(http): State<Http>,
    mut params: Params,
    key: RequestKey,
    body: Body<CreateInstanceRequest>,
) -> Reply {
    let until = match params.one("wait")?.as_deref() {
        None | Some("started") => Until::Started,
        Some("none") => Until::Recorded,
        Some(_) => return Err(bad_query("wait", "must be none or started")),
    };
    params.finish()?;
    let keyed = key.keyed(&body.raw);
    let creation = Creation {
        tenant: TENANT.to_owned(),
        request: body.value,
        until,
        key: keyed.clone(),
    };
    let app = http.app.clone();
    once(&http, keyed, move |earlier| async move {
        let view = match earlier {
            // An interrupted first attempt had got this far.
            Some(id) => app.instance(id.as_str())?,
            None => app.create(creation).await?,
        };
        let mut instance = wire(&view);
        if view.intent.spec.network == NetworkChoice::Default {
            instance.warnings = app.network_warnings();
        }
        Ok(outcome(StatusCode::CREATED, &instance))
    })
    .await
}

/// Get an instance by id, name or prefix
#[utoipa::path(get, path = "/instances/{id}", operation_id = "getInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name, or a prefix of at least four characters")),
    responses((status = 200, description = "The instance", body = Instance)))]
pub(super) async fn get(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    ok(http.app.instance(&id))
}

/// Stop and delete an instance
#[utoipa::path(delete, path = "/instances/{id}", operation_id = "deleteInstance", tag = "instances",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 204, description = "Deleted")))]
pub(super) async fn delete(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    http.app.delete_instance(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Change an instance's environment and policies
#[utoipa::path(patch, path = "/instances/{id}", operation_id = "updateInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    request_body = UpdateInstanceRequest,
    responses((status = 200, description = "The instance", body = Instance)))]
pub(super) async fn update(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    body: Body<UpdateInstanceRequest>,
) -> Reply {
    ok(http.app.update_instance(&id, body.value).await)
}

/// Start a stopped instance
#[utoipa::path(post, path = "/instances/{id}/start", operation_id = "startInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    request_body = Option<StartInstanceRequest>,
    responses((status = 200, description = "The instance", body = Instance)))]
pub(super) async fn start(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    key: RequestKey,
    body: OptionalBody<Option<StartInstanceRequest>>,
) -> Reply {
    let app = http.app.clone();
    let request = body.value.unwrap_or_default();
    once(&http, key.keyed(&body.raw), move |_| async move {
        let view = app.start_instance(&id, request).await?;
        Ok(outcome(StatusCode::OK, &wire(&view)))
    })
    .await
}

macro_rules! verb {
    ($(#[$meta:meta])* $name:ident, $use_case:ident) => {
        $(#[$meta])*
        pub(super) async fn $name(
            State(http): State<Http>,
            Id(id): Id,
            _: NoParams,
            key: RequestKey,
        ) -> Reply {
            let app = http.app.clone();
            once(&http, key.keyed(b""), move |_| async move {
                let view = app.$use_case(&id).await?;
                Ok(outcome(StatusCode::OK, &wire(&view)))
            })
            .await
        }
    };
}

verb! {
    /// Stop an instance; its disk stays
    #[utoipa::path(post, path = "/instances/{id}/stop", operation_id = "stopInstance", tag = "instances",
        params(("id" = String, Path, description = "Id, name or prefix"),
            ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
        responses((status = 200, description = "The instance", body = Instance)))]
    stop, stop_instance
}

verb! {
    /// Stop an instance's processors
    #[utoipa::path(post, path = "/instances/{id}/pause", operation_id = "pauseInstance", tag = "instances",
        params(("id" = String, Path, description = "Id, name or prefix"),
            ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
        responses((status = 200, description = "The instance", body = Instance)))]
    pause, pause_instance
}

verb! {
    /// Let an instance's processors go on
    #[utoipa::path(post, path = "/instances/{id}/resume", operation_id = "resumeInstance", tag = "instances",
        params(("id" = String, Path, description = "Id, name or prefix"),
            ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
        responses((status = 200, description = "The instance", body = Instance)))]
    resume, resume_instance
}

/// Put an instance into standby
///
/// Its memory and devices are saved beside its disk, its machine ends, and what it took of the host is free. It keeps its
/// address. Where that fails it runs on.
#[utoipa::path(post, path = "/instances/{id}/standby", operation_id = "standbyInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    request_body = Option<StandbyInstanceRequest>,
    responses((status = 200, description = "The instance", body = Instance)))]
pub(super) async fn standby(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    key: RequestKey,
    body: OptionalBody<Option<StandbyInstanceRequest>>,
) -> Reply {
    let app = http.app.clone();
    let request = body.value.unwrap_or_default();
    once(&http, key.keyed(&body.raw), move |_| async move {
        let view = app.standby_instance(&id, request).await?;
        Ok(outcome(StatusCode::OK, &wire(&view)))
    })
    .await
}

verb! {
    /// Restore an instance from standby
    ///
    /// It goes on where it was, with its clock set. Where that fails what was saved is kept.
    #[utoipa::path(post, path = "/instances/{id}/restore", operation_id = "restoreInstance", tag = "instances",
        params(("id" = String, Path, description = "Id, name or prefix"),
            ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
        responses((status = 200, description = "The instance", body = Instance)))]
    restore, restore_instance
}

/// Make an image of what an instance has changed
///
/// The changes become a layer on top of the instance's own image. A running instance holds still for a moment; a stopped one
/// can be committed too. With `Accept: text/event-stream` the answer is a stream of `progress` events that ends with `images`
/// or `problem`.
#[utoipa::path(post, path = "/instances/{id}/commit", operation_id = "commitInstance", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    request_body = CommitInstanceRequest,
    responses(
        (status = 201, description = "It is here", body = Image),
        (status = 200, description = "Its progress", content_type = "text/event-stream", body = String)))]
pub(super) async fn commit(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    headers: HeaderMap,
    body: Body<CommitInstanceRequest>,
) -> Reply {
    let mut updates = http.app.commit_instance(&id, body.value)?;
    if wants_events(&headers) {
        return Ok(sse::image_updates(&http, updates));
    }
    while let Some(update) = updates.next().await {
        match update {
            JobUpdate::Progress(_) => {}
            JobUpdate::Done(images) => {
                return Ok(json(StatusCode::CREATED, &images.into_iter().next()));
            }
            JobUpdate::Failed(problem) => return Err(problem.into()),
        }
    }
    Err(Failure::new(
        Code::Unavailable,
        "the server is stopping: commit it again when it is back",
    ))
}

/// Everything that is known of an instance, for whoever looks for a fault
///
/// A gzipped tar archive: what is recorded, what the host has and says, events, logs, the VMM's arguments, versions.
/// Values of environment variables, passwords and tokens are hidden. What cannot be had is named in it.
#[utoipa::path(get, path = "/instances/{id}/debug-bundle", operation_id = "getInstanceDebugBundle", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 200, description = "The archive", content_type = "application/gzip", body = String)))]
pub(super) async fn debug_bundle(
    State(http): State<Http>,
    Id(id): Id,
    _: NoParams,
    headers: HeaderMap,
) -> Reply {
    let agent = headers.get(header::USER_AGENT);
    let client = agent.and_then(|agent| agent.to_str().ok());
    let bundle = http.app.bundle(&id, client).await?;
    Ok(([(header::CONTENT_TYPE, "application/gzip")], bundle).into_response())
}

/// Wait for a state
///
/// Answers when the instance is in the state, when it has stopped for good instead, or when the time is up.
#[utoipa::path(get, path = "/instances/{id}/wait", operation_id = "waitForInstanceState", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("state" = warren_api::InstanceState, Query, description = "Which state"),
        ("timeout" = Option<String>, Query, pattern = "^[0-9]{1,4}(ms|s)$", description = "Such as 90s or 5m; 60s when absent, at most an hour")),
    responses((status = 200, description = "The end of the wait", body = WaitForStateResponse)))]
pub(super) async fn wait(State(http): State<Http>, Id(id): Id, mut params: Params) -> Reply {
    let state = params
        .one("state")?
        .ok_or_else(|| bad_query("state", "is needed"))?;
    let state = parse_state("state", &state)?;
    let limit = params
        .one("timeout")?
        .map(|text| parse_duration(&text).map_err(|e| bad_query("timeout", e)))
        .transpose()?
        .unwrap_or(USUAL_WAIT);
    params.finish()?;
    let waited = http
        .app
        .wait_for(&id, state, limit.min(http.app.0.settings.longest_wait))
        .await?;
    Ok(json(StatusCode::OK, &waited))
}

/// Get the resources an instance uses
#[utoipa::path(get, path = "/instances/{id}/stats", operation_id = "getInstanceStats", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix")),
    responses((status = 200, description = "Its resources", body = InstanceStats)))]
pub(super) async fn stats(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.stats(&id).await?))
}

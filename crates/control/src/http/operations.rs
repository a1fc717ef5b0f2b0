//! `/operations`.

use super::Http;
use super::extract::{Id, NoParams, Params, bad_query};
use super::reply::{Reply, json};
use axum::extract::State;
use axum::http::StatusCode;
use warren_api::{Operation, OperationState};

/// List what takes the server long
///
/// Pulls, loads, commits, pushes, archives, disks and verifications under way, and those that ended within the last
/// hour; oldest first. A server that is started again begins with an empty list.
#[utoipa::path(get, path = "/operations", operation_id = "listOperations", tag = "operations",
    params(("state" = Option<Vec<OperationState>>, Query, description = "Only these states; several with commas or repeated")),
    responses((status = 200, description = "All that are remembered", body = [Operation])))]
pub(super) async fn list(State(http): State<Http>, mut params: Params) -> Reply {
    let mut states = Vec::new();
    for text in params.all("state") {
        for name in text.split(',') {
            states.push(name.parse().map_err(|e: String| bad_query("state", e))?);
        }
    }
    params.finish()?;
    Ok(json(StatusCode::OK, &http.app.operations(&states)))
}

/// Get an operation
#[utoipa::path(get, path = "/operations/{id}", operation_id = "getOperation", tag = "operations",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The operation", body = Operation)))]
pub(super) async fn get(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.operation(&id)?))
}

/// Cancel an operation
///
/// Ends it for everybody who waits for it, and takes away what it has half made; answers when that is so. An operation
/// at its very end may be done all the same: `state` says which.
#[utoipa::path(delete, path = "/operations/{id}", operation_id = "cancelOperation", tag = "operations",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "How it ended", body = Operation)))]
pub(super) async fn cancel(State(http): State<Http>, Id(id): Id, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.cancel_operation(&id).await?))
}

//! `/system`: looking after the installation.

use super::Http;
use super::extract::{NoParams, Params, bad_query};
use super::reply::{Reply, json};
use crate::records::Missing;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures::StreamExt;
use tokio_util::io::ReaderStream;
use warren_api::upkeep::{Check, Recovery};
use warren_core::PortError;

use crate::AppError;

/// Bytes of a backup that are sent at a time.
const CHUNK: usize = 256 << 10;

/// Compare the record with the host
///
/// Lists everything on the host that carries this installation's name, and every difference between that and the
/// record. Changes nothing. Two looks are taken when the first finds something, so that what is being made or taken
/// away is no difference.
#[utoipa::path(get, path = "/system/check", operation_id = "checkSystem", tag = "system",
    responses((status = 200, description = "What is there, and what differs", body = Check)))]
pub(super) async fn check(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.check().await?))
}

/// Put right what a program can
///
/// Takes leaks away and completes the record. Never removes an instance's directory, disk or record.
#[utoipa::path(post, path = "/system/repair", operation_id = "repairSystem", tag = "system",
    responses((status = 200, description = "What was put right, and what still differs", body = Check)))]
pub(super) async fn repair(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.repair().await?))
}

/// Rebuild the record from the host
///
/// For a record that was lost, restored from a backup or replaced by an older copy: every instance that has a
/// directory on the host is recorded again, with its name, address and ports. Nothing on the host is touched.
/// Instances that are recorded and have nothing on the host were deleted since, and are forgotten.
#[utoipa::path(post, path = "/system/recover", operation_id = "recoverSystem", tag = "system",
    params(("missing" = Option<String>, Query, pattern = "^(forget|recreate)$", description = "What becomes of instances that have nothing on the host: `forget` (as if left out) or `recreate`")),
    responses((status = 200, description = "What was done to the record", body = Recovery)))]
pub(super) async fn recover(State(http): State<Http>, mut params: Params) -> Reply {
    let missing = match params.one("missing")?.as_deref() {
        None | Some("forget") => Missing::Forget,
        Some("recreate") => Missing::Recreate,
        Some(_) => return Err(bad_query("missing", "must be forget or recreate")),
    };
    params.finish()?;
    Ok(json(StatusCode::OK, &http.app.recover(missing).await?))
}

/// Copy the record
///
/// One moment of the record, as an SQLite file for `warren system restore`. It holds everything that was asked for,
/// environment variables included.
#[utoipa::path(post, path = "/system/backup", operation_id = "backupSystem", tag = "system",
    responses((status = 200, description = "The copy", content_type = "application/vnd.sqlite3", body = String)))]
pub(super) async fn backup(State(http): State<Http>, _: NoParams) -> Reply {
    let place = http.app.backup().await?;
    let failed = |error| AppError::from(PortError::io("reading the backup", error));
    let file = tokio::fs::File::open(&place).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    // The file goes when the last byte has been sent, or the client has gone.
    let body = ReaderStream::with_capacity(file, CHUNK).map(move |chunk| {
        let _held = &place;
        chunk
    });
    Ok((
        [
            (header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
        ],
        Body::from_stream(body),
    )
        .into_response())
}

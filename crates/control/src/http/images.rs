//! `/images`.

use super::Http;
use super::extract::{Body, Id, LongId, NoParams, Params, RequestKey, States, once, wants_events};
use super::reply::{Reply, json, outcome, page};
use super::sse;
use crate::app::{JobUpdate, Upload};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use warren_api::image::ExportImageRequest;
use warren_api::storage::{
    ImageVerification, PruneImagesRequest, PruneImagesResponse, VerifyImageRequest,
};
use warren_api::{Code, CreateImageRequest, Image, ImageStatus, SaveImagesRequest};
use warren_core::ports::outlet::Archive;

/// List images, here and on their way
#[utoipa::path(get, path = "/images", operation_id = "listImages", tag = "images",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many"),
        ("page_token" = Option<String>, Query, description = "X-Next-Page-Token of the page before"),
        ("labels" = Option<Vec<String>>, Query, description = "Only with these labels, as key=value"),
    ),
    responses((status = 200, description = "A page", body = [Image],
        headers(("x-next-page-token" = Option<String>, description = "Where the next page starts, when there is one")))))]
pub(super) async fn list(State(http): State<Http>, params: Params) -> Reply {
    let (filter, request) = params.list(States::Unknown)?;
    Ok(page(&http.app.images(&filter, &request).await?))
}

/// Pull an image
///
/// Answers at once with its state. With `Accept: text/event-stream` the answer is a stream of `progress` events that
/// ends with `images` or `problem`.
#[utoipa::path(post, path = "/images", operation_id = "createImage", tag = "images",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    request_body = CreateImageRequest,
    responses(
        (status = 201, description = "It is here", body = Image),
        (status = 202, description = "It is on its way", body = Image),
        (status = 200, description = "Its progress", content_type = "text/event-stream", body = String)))]
pub(super) async fn create(
    State(http): State<Http>,
    _: NoParams,
    headers: HeaderMap,
    key: RequestKey,
    body: Body<CreateImageRequest>,
) -> Reply {
    if wants_events(&headers) {
        let updates = http.app.pull_followed(body.value).await?;
        return Ok(sse::image_updates(&http, updates));
    }
    let app = http.app.clone();
    once(&http, key.keyed(&body.raw), move |_| async move {
        let image = app.pull(body.value).await?;
        let status = match image.status {
            ImageStatus::Ready => StatusCode::CREATED,
            _ => StatusCode::ACCEPTED,
        };
        Ok(outcome(status, &image))
    })
    .await
}

/// Load images from an archive
///
/// The body is an OCI or docker archive or a root-file-system tarball, plain or compressed. With
/// `Accept: text/event-stream` the answer is a stream of `progress` events that ends with `images` or `problem`.
#[utoipa::path(post, path = "/images/load", operation_id = "loadImage", tag = "images",
    params(
        ("name" = Option<String>, Query, min_length = 1, max_length = 512,
            description = "The reference to give it; needed where the archive has none"),
        ("id" = Option<String>, Query, min_length = 1, max_length = 63, pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$",
            description = "The id to give it"),
        ("platform" = Option<String>, Query, description = "Which platform of an index"),
    ),
    request_body(content_type = "application/octet-stream", content = String),
    responses(
        (status = 201, description = "They are here", body = [Image]),
        (status = 200, description = "Their progress", content_type = "text/event-stream", body = String)))]
pub(super) async fn load(
    State(http): State<Http>,
    mut params: Params,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    let upload = Upload {
        name: params.one("name")?,
        id: params.one("id")?,
        platform: params.one("platform")?,
        length: headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok()),
    };
    params.finish()?;
    let media = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase());
    const ARCHIVES: [&str; 8] = [
        "application/octet-stream",
        "application/x-tar",
        "application/tar",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        "application/x-gtar",
        "application/vnd.oci.image.layer.v1.tar",
    ];
    if media.is_some_and(|media| !ARCHIVES.contains(&media.as_str())) {
        return Err(super::reply::Failure::new(
            Code::UnsupportedMediaType,
            "this route takes an archive: send `Content-Type: application/octet-stream`",
        ));
    }
    let mut updates = http
        .app
        .load(upload, request.into_body().into_data_stream())
        .await?;
    if wants_events(&headers) {
        return Ok(sse::image_updates(&http, updates));
    }
    while let Some(update) = updates.next().await {
        match update {
            JobUpdate::Progress(_) => {}
            JobUpdate::Done(images) => return Ok(json(StatusCode::CREATED, &images)),
            JobUpdate::Failed(problem) => return Err(problem.into()),
        }
    }
    Err(super::reply::Failure::new(
        Code::Unavailable,
        "the server is stopping: load it again when it is back",
    ))
}

/// Save images as an archive
///
/// The answer is an OCI layout in a tar archive, which other programs and `POST /images/load` take; images keep their digests. The
/// same images always give the same bytes.
#[utoipa::path(post, path = "/images/save", operation_id = "saveImages", tag = "images",
    request_body = SaveImagesRequest,
    responses((status = 200, description = "The archive", content_type = "application/x-tar", body = String)))]
pub(super) async fn save(
    State(http): State<Http>,
    _: NoParams,
    body: Body<SaveImagesRequest>,
) -> Reply {
    Ok(sent(http.app.save_images(body.value).await?))
}

/// Export an image as a disk
///
/// The answer is a tar archive with one sparse file (GNU's PAX form 1.0: `tar -xS` gives it its holes): a writable ext4 file system with the
/// image's tree, alone or in a disk with a partition table. The same image and size always give the same bytes.
#[utoipa::path(post, path = "/images/export", operation_id = "exportImage", tag = "images",
    request_body = ExportImageRequest,
    responses((status = 200, description = "The disk, in an archive", content_type = "application/x-tar", body = String)))]
pub(super) async fn export(
    State(http): State<Http>,
    _: NoParams,
    body: Body<ExportImageRequest>,
) -> Reply {
    Ok(sent(http.app.export_image(body.value).await?))
}

fn sent(archive: Archive) -> Response {
    let bytes = archive.bytes.inspect_err(|error| {
        tracing::warn!(code = error.code, %error, "an archive could not be sent whole");
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, archive.size.to_string()),
    ];
    (headers, axum::body::Body::from_stream(bytes)).into_response()
}

/// Remove what no image needs any more
///
/// With `all`, the images go too that no instance uses. What an instance runs from stays.
#[utoipa::path(post, path = "/images/prune", operation_id = "pruneImages", tag = "images",
    request_body = PruneImagesRequest,
    responses((status = 200, description = "What went, or would go", body = PruneImagesResponse)))]
pub(super) async fn prune(
    State(http): State<Http>,
    _: NoParams,
    body: Body<PruneImagesRequest>,
) -> Reply {
    let pruned = http.app.prune_images(body.value).await?;
    Ok(json(StatusCode::OK, &pruned))
}

/// Read an image again
///
/// Hashes its manifest, its configuration, its layers and its disk, and says what is not what it was. Takes as long as
/// reading it all.
#[utoipa::path(post, path = "/images/verify", operation_id = "verifyImage", tag = "images",
    request_body = VerifyImageRequest,
    responses((status = 200, description = "How it was found", body = ImageVerification)))]
pub(super) async fn verify(
    State(http): State<Http>,
    _: NoParams,
    body: Body<VerifyImageRequest>,
) -> Reply {
    let found = http.app.verify_image(body.value).await?;
    Ok(json(StatusCode::OK, &found))
}

/// Get an image by id, reference or digest
#[utoipa::path(get, path = "/images/{name}", operation_id = "getImage", tag = "images",
    params(("name" = String, Path, description = "Id, reference (percent-encoded or bare), digest, or a prefix of at least four characters")),
    responses((status = 200, description = "The image", body = Image)))]
pub(super) async fn get(State(http): State<Http>, Id(name): Id, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.image(&name).await?))
}

/// Delete an image
#[utoipa::path(delete, path = "/images/{name}", operation_id = "deleteImage", tag = "images",
    params(("name" = String, Path, description = "Id, reference (percent-encoded or bare) or digest")),
    responses((status = 204, description = "Deleted")))]
pub(super) async fn delete(State(http): State<Http>, Id(name): Id, _: NoParams) -> Reply {
    http.app.delete_image(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn get_long(state: State<Http>, LongId(name): LongId, none: NoParams) -> Reply {
    get(state, Id(name), none).await
}

pub(super) async fn delete_long(state: State<Http>, LongId(name): LongId, none: NoParams) -> Reply {
    delete(state, Id(name), none).await
}

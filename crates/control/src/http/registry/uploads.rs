//! Uploads: at once, in one stream, or piece by piece.

use super::refusal::{Refusal, RegistryCode};
use super::route::{is_digest, is_repository};
use super::{Answer, CONTENT_DIGEST, Pairs, empty, value};
use crate::http::Http;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::time::Duration;
use warren_core::PortError;
use warren_core::ports::registry::{Blob, ByteStream, Piece, Upload, code};

/// A client that sends nothing for this long has gone. What it sent stays, for it to go on.
const SILENCE: Duration = Duration::from_secs(60);

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

fn upload_path(repository: &str, upload: &Upload) -> String {
    format!("/v2/{repository}/blobs/uploads/{}", upload.id)
}

/// What there is of an upload. Where nothing is there yet, the last byte is said to be the first, as registries do.
fn progress(status: StatusCode, repository: &str, upload: &Upload) -> Response {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&upload_path(repository, upload)));
    let last = upload.offset.saturating_sub(1);
    headers.insert(header::RANGE, value(&format!("0-{last}")));
    headers.insert(UPLOAD_ID, value(&upload.id));
    response
}

fn created(repository: &str, blob: &Blob) -> Response {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    let path = format!("/v2/{repository}/blobs/{}", blob.digest);
    headers.insert(header::LOCATION, value(&path));
    headers.insert(CONTENT_DIGEST, value(&blob.digest));
    response
}

/// A request's body as it comes.
fn incoming(body: Body) -> ByteStream {
    let next = |mut from: BodyDataStream| async move {
        let bytes: Result<Bytes, PortError> = match tokio::time::timeout(SILENCE, from.next()).await
        {
            Ok(None) => return None,
            Ok(Some(Ok(bytes))) => Ok(bytes),
            Ok(Some(Err(error))) => Err(PortError::invalid(
                code::SIZE_INVALID,
                format!("the body broke off: {error}"),
            )),
            Err(_) => Err(PortError::retry(
                "upload_stalled",
                "the body broke off: nothing came for a minute",
            )),
        };
        Some((bytes, from))
    };
    stream::unfold(body.into_data_stream(), next).boxed()
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A body with what its headers say of it. `Content-Range` is `FIRST-LAST`, without a unit (distribution-spec, "Pushing a blob
/// in chunks").
fn piece(headers: &HeaderMap, body: Body) -> Result<Piece, Refusal> {
    let length = number(headers, &header::CONTENT_LENGTH);
    let Some(range) = headers.get(header::CONTENT_RANGE) else {
        return Ok(Piece {
            at: None,
            length,
            bytes: incoming(body),
        });
    };
    let digits = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())
            .flatten()
    };
    let ends = range
        .to_str()
        .ok()
        .and_then(|text| text.split_once('-'))
        .and_then(|(first, last)| Some((digits(first)?, digits(last)?)))
        .filter(|(first, last)| first <= last);
    let Some((first, last)) = ends else {
        return Err(Refusal::bad(
            RegistryCode::BlobUploadInvalid,
            "Content-Range must be FIRST-LAST, such as 0-1023",
        ));
    };
    let announced = (last - first).checked_add(1);
    if length.is_some() && length != announced {
        return Err(Refusal::bad(
            RegistryCode::SizeInvalid,
            "Content-Range and Content-Length do not have the same length",
        ));
    }
    Ok(Piece {
        at: Some(first),
        length: announced,
        bytes: incoming(body),
    })
}

fn digest_of(query: &Pairs) -> Result<Option<&str>, Refusal> {
    match query.get("digest") {
        Some(digest) if is_digest(digest) => Ok(Some(digest)),
        Some(_) => Err(Refusal::digest()),
        None => Ok(None),
    }
}

pub(super) async fn begin(
    http: &Http,
    repository: &str,
    query: &Pairs,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let registry = http.app.registry();
    if let Some(mount) = query.get("mount") {
        if !is_digest(mount) {
            return Err(Refusal::digest());
        }
        let from = match query.get("from") {
            Some(from) if is_repository(from) => Some(from),
            Some(_) => return Err(Refusal::name()),
            None => None,
        };
        if let Some(blob) = registry.mount_blob(repository, mount, from).await? {
            return Ok(created(repository, &blob));
        }
    }
    if let Some(algorithm) = query.get("digest-algorithm")
        && !matches!(algorithm, "sha256" | "sha512")
    {
        return Err(Refusal::digest());
    }
    let digest = digest_of(query)?;
    let upload = registry.begin_upload(repository).await?;
    let Some(digest) = digest else {
        return Ok(progress(StatusCode::ACCEPTED, repository, &upload));
    };
    let finished = match piece(headers, body) {
        Ok(piece) => registry
            .finish_upload(repository, &upload.id, piece, digest)
            .await
            .map_err(Refusal::from),
        Err(refusal) => Err(refusal),
    };
    match finished {
        Ok(blob) => Ok(created(repository, &blob)),
        Err(refusal) => {
            // Nobody was told of it, so nobody will go on with it.
            if let Err(error) = registry.cancel_upload(repository, &upload.id).await
                && error.code != code::UPLOAD_UNKNOWN
            {
                tracing::debug!(%error, "an upload is left to its time limit");
            }
            Err(refusal)
        }
    }
}

pub(super) async fn status(http: &Http, repository: &str, id: &str) -> Answer {
    let upload = http.app.registry().upload(repository, id).await?;
    Ok(progress(StatusCode::NO_CONTENT, repository, &upload))
}

/// A refusal of a piece; where it came out of order, with what is there, for the client to go on.
async fn refuse(http: &Http, repository: &str, id: &str, error: PortError) -> Answer {
    let out_of_order = error.code == code::OUT_OF_ORDER;
    let mut response = Refusal::from(error).into_response();
    if out_of_order {
        let upload = http.app.registry().upload(repository, id).await?;
        let status = progress(StatusCode::NO_CONTENT, repository, &upload);
        for name in [header::LOCATION, header::RANGE] {
            if let Some(found) = status.headers().get(&name) {
                response.headers_mut().insert(name, found.clone());
            }
        }
    }
    Ok(response)
}

pub(super) async fn append(
    http: &Http,
    repository: &str,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let piece = piece(headers, body)?;
    match http
        .app
        .registry()
        .append_upload(repository, id, piece)
        .await
    {
        Ok(upload) => Ok(progress(StatusCode::ACCEPTED, repository, &upload)),
        Err(error) => refuse(http, repository, id, error).await,
    }
}

pub(super) async fn finish(
    http: &Http,
    repository: &str,
    id: &str,
    query: &Pairs,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let digest = digest_of(query)?.ok_or_else(|| {
        Refusal::bad(
            RegistryCode::DigestInvalid,
            "the digest of the whole blob is needed: ?digest=sha256:…",
        )
    })?;
    let piece = piece(headers, body)?;
    match http
        .app
        .registry()
        .finish_upload(repository, id, piece, digest)
        .await
    {
        Ok(blob) => Ok(created(repository, &blob)),
        Err(error) => refuse(http, repository, id, error).await,
    }
}

pub(super) async fn cancel(http: &Http, repository: &str, id: &str) -> Answer {
    http.app.registry().cancel_upload(repository, id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(HeaderName, &str)]) -> Option<(Option<u64>, Option<u64>)> {
        let mut headers = HeaderMap::new();
        for (name, text) in pairs {
            headers.insert(name, text.parse().expect("a header"));
        }
        piece(&headers, Body::empty())
            .ok()
            .map(|piece| (piece.at, piece.length))
    }

    #[test]
    fn pieces_say_where_they_are() {
        let (range, length) = (header::CONTENT_RANGE, header::CONTENT_LENGTH);
        assert_eq!(read(&[]), Some((None, None)));
        assert_eq!(read(&[(length.clone(), "7")]), Some((None, Some(7))));
        assert_eq!(read(&[(range.clone(), "0-6")]), Some((Some(0), Some(7))));
        assert_eq!(
            read(&[(range.clone(), "10-19"), (length.clone(), "10")]),
            Some((Some(10), Some(10)))
        );
        for wrong in [
            "bytes 0-6",
            "0-",
            "-6",
            "6-0",
            "+1-2",
            "a-b",
            "0-18446744073709551616",
        ] {
            assert_eq!(read(&[(range.clone(), wrong)]), None, "{wrong}");
        }
        assert_eq!(read(&[(range, "0-6"), (length, "6")]), None);
    }
}

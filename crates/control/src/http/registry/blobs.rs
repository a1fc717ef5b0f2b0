//! Blobs: whole, in parts, and taken away.

use super::refusal::{Refusal, RegistryCode};
use super::{Answer, CONTENT_DIGEST, Names, empty, etag, is_known, value};
use crate::http::Http;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::IntoResponse;
use warren_core::ports::registry::{ByteRange, ByteStream};

/// What a `Range` header asks for, given a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Everything: no range, or one that may be ignored.
    All,
    /// One part.
    Part(ByteRange),
    /// A part that is not there.
    Nothing,
}

/// RFC 9110, 14.1.2. One range of bytes is served; several, and other units, are answered with the whole, as they may be.
fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let Some(ranges) = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.trim().strip_prefix("bytes="))
    else {
        return Wanted::All;
    };
    let Some((first, last)) = ranges
        .split_once('-')
        .filter(|(_, last)| !last.contains(','))
    else {
        return Wanted::All;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => return Wanted::Nothing,
            Some(length) => (size.saturating_sub(length), size),
            None => return Wanted::All,
        },
        (first, "") => match number(first) {
            Some(first) => (first, size),
            None => return Wanted::All,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            (Some(_), Some(_)) => return Wanted::Nothing,
            _ => return Wanted::All,
        },
    };
    if start >= size {
        Wanted::Nothing
    } else {
        Wanted::Part(ByteRange { start, end })
    }
}

pub(super) async fn get(
    http: &Http,
    names: &Names,
    digest: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Answer {
    let registry = http.app.registry();
    let found = names.first(async |repository| {
        let blob = registry.blob(repository, digest).await?;
        Ok((repository, blob))
    });
    let (repository, blob) = found.await?;
    let (status, range) = match wanted(headers, blob.size) {
        _ if is_known(headers, &blob.digest) => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            response
                .headers_mut()
                .insert(header::ETAG, value(&etag(&blob.digest)));
            return Ok(response);
        }
        Wanted::All => (
            StatusCode::OK,
            ByteRange {
                start: 0,
                end: blob.size,
            },
        ),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Nothing => {
            let refusal = Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                RegistryCode::SizeInvalid,
                format!("the blob has {} bytes: the range is not in it", blob.size),
            );
            let mut response = refusal.into_response();
            response.headers_mut().insert(
                header::CONTENT_RANGE,
                value(&format!("bytes */{}", blob.size)),
            );
            return Ok(response);
        }
    };
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        outgoing(registry.read_blob(repository, digest, range).await?)
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, value(&etag(&blob.digest)));
    headers.insert(CONTENT_DIGEST, value(&blob.digest));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.size);
        headers.insert(header::CONTENT_RANGE, value(&range));
    }
    Ok(response)
}

/// A body that ends early where the host fails: its length was told, so the client notices.
pub(super) fn outgoing(bytes: ByteStream) -> Body {
    use futures::TryStreamExt;
    Body::from_stream(bytes.inspect_err(|error| {
        tracing::warn!(code = error.code, %error, "a blob could not be sent whole");
    }))
}

pub(super) async fn delete(http: &Http, repository: &str, digest: &str) -> Answer {
    http.app.registry().remove_blob(repository, digest).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        let part = |start, end| Wanted::Part(ByteRange { start, end });
        for (text, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=500-999", part(500, 1000)),
            ("bytes=500-", part(500, 2048)),
            ("bytes=-500", part(1548, 2048)),
            ("bytes=-5000", part(0, 2048)),
            ("bytes=2000-5000", part(2000, 2048)),
            ("bytes=2000-18446744073709551615", part(2000, 2048)),
            ("bytes=500-0", Wanted::Nothing),
            ("bytes=2048-", Wanted::Nothing),
            ("bytes=5000-10000", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=0-1,5-6", Wanted::All),
            ("bytes=x-1", Wanted::All),
            ("bytes=-", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("", Wanted::All),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().expect("a header"));
            assert_eq!(wanted(&headers, 2048), expected, "{text}");
        }
        assert_eq!(wanted(&HeaderMap::new(), 2048), Wanted::All);
    }

    #[test]
    fn an_empty_blob_has_no_part() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-"));
        assert_eq!(wanted(&headers, 0), Wanted::Nothing);
        assert_eq!(wanted(&HeaderMap::new(), 0), Wanted::All);
    }
}

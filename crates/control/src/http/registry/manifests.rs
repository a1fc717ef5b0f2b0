//! Manifests: given, taken, forgotten.

use super::refusal::{Refusal, RegistryCode};
use super::route::{is_tag, manifest_name};
use super::{Answer, CONTENT_DIGEST, Names, Pairs, empty, etag, is_known, value};
use crate::http::Http;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::time::Duration;
use warren_core::ports::registry::{ManifestName, PutManifest};

/// Registries accept manifests of at least this size (distribution-spec v1.1, "Pushing Manifests"); this one no larger ones.
const LARGEST: usize = 4 << 20;
/// How long a manifest may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Tags that one request may give.
const MOST_TAGS: usize = 64;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

pub(super) async fn get(
    http: &Http,
    names: &Names,
    reference: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Answer {
    let name = manifest_name(reference).ok_or_else(|| Refusal::no_manifest(reference))?;
    let registry = http.app.registry();
    let found = names.first(|repository| registry.manifest(repository, &name));
    let manifest = found.await?;
    let known = is_known(headers, &manifest.digest);
    let length = manifest.bytes.len();
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else if *method == Method::HEAD {
        Body::empty().into_response()
    } else {
        Body::from(manifest.bytes).into_response()
    };
    let headers = response.headers_mut();
    if !known {
        headers.insert(header::CONTENT_TYPE, value(&manifest.media_type));
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers.insert(header::ETAG, value(&etag(&manifest.digest)));
    headers.insert(CONTENT_DIGEST, value(&manifest.digest));
    Ok(response)
}

async fn whole(body: Body) -> Result<Bytes, Refusal> {
    let read = async {
        let (mut whole, mut from) = (BytesMut::new(), body.into_data_stream());
        while let Some(bytes) = from.next().await {
            let bytes = bytes.map_err(|error| {
                Refusal::bad(
                    RegistryCode::ManifestInvalid,
                    format!("the manifest broke off: {error}"),
                )
            })?;
            if whole.len() + bytes.len() > LARGEST {
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    RegistryCode::ManifestInvalid,
                    format!("a manifest may have at most {LARGEST} bytes"),
                ));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(TIMEOUT, read).await.map_err(|_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            RegistryCode::ManifestInvalid,
            "the manifest did not come in time",
        )
    })?
}

/// Without its parameters, of which manifests have none.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or_default().trim();
    (!essence.is_empty()).then(|| essence.to_ascii_lowercase())
}

pub(super) async fn put(
    http: &Http,
    repository: &str,
    reference: &str,
    query: &Pairs,
    headers: &HeaderMap,
    host: String,
    body: Body,
) -> Answer {
    let bad = |message| Refusal::bad(RegistryCode::ManifestInvalid, message);
    let (digest, mut tags) = match manifest_name(reference) {
        Some(ManifestName::Digest(digest)) => (Some(digest), Vec::new()),
        Some(ManifestName::Tag(tag)) => (None, vec![tag]),
        None if reference.contains(':') => return Err(Refusal::digest()),
        None => {
            return Err(bad(
                "a tag has letters, digits, _ . and -, at most 128, and does not begin with . or -",
            ));
        }
    };
    let given = query.all("tag");
    if given.len() > MOST_TAGS {
        return Err(Refusal::new(
            StatusCode::URI_TOO_LONG,
            RegistryCode::ManifestInvalid,
            format!("one request may give at most {MOST_TAGS} tags"),
        ));
    }
    if !given.iter().all(|tag| is_tag(tag)) {
        return Err(bad("one of the tags is none"));
    }
    if digest.is_some() {
        for tag in given {
            if !tags.iter().any(|held| held == tag) {
                tags.push(tag.to_owned());
            }
        }
    }
    let told = digest.is_some().then(|| tags.clone());
    let put = PutManifest {
        repository: repository.to_owned(),
        digest,
        tags,
        media_type: media_type(headers),
        bytes: whole(body).await?,
        host,
    };
    let kept = http.app.put_manifest(put).await?;
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    let path = format!("/v2/{repository}/manifests/{}", kept.digest);
    headers.insert(header::LOCATION, value(&path));
    headers.insert(CONTENT_DIGEST, value(&kept.digest));
    if let Some(subject) = &kept.subject {
        headers.insert(SUBJECT, value(subject));
    }
    if let Some(tags) = told.filter(|tags| !tags.is_empty()) {
        headers.insert(TAG, value(&tags.join(", ")));
    }
    if let Some(remark) = &kept.remark {
        // distribution-spec v1.1, "Warnings".
        let text: String = remark
            .chars()
            .filter(|c| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '"' | '\\'))
            .take(1000)
            .collect();
        headers.insert(header::WARNING, value(&format!("299 - \"{text}\"")));
    }
    Ok(response)
}

pub(super) async fn delete(http: &Http, names: &Names, reference: &str) -> Answer {
    let name = manifest_name(reference).ok_or_else(|| Refusal::no_manifest(reference))?;
    let name = &name;
    let removed = names.first(|repository| http.app.remove_manifest(repository, name));
    removed.await?;
    Ok(empty(StatusCode::ACCEPTED))
}

//! Content discovery: tags, repositories, referrers, page by page.

use super::refusal::{Refusal, RegistryCode};
use super::{Answer, Names, Pairs, value};
use crate::http::Http;
use axum::Json;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use warren_core::ports::registry::Referrer;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Names on a page when the client does not say.
const PAGE: usize = 1000;
/// A list of referrers is itself an index, and those have at most 4 MiB; some of it is left for what stands around them.
const REFERRER_BYTES: usize = (4 << 20) - (4 << 10);

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// One page of sorted names: what comes behind `last`, at most `n`.
struct Page {
    names: Vec<String>,
    /// Where the next page begins, when there is one.
    next: Option<(usize, String)>,
}

impl Page {
    fn cut(mut names: Vec<String>, query: &Pairs) -> Result<Self, Refusal> {
        let n = match query.get("n") {
            None => PAGE,
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| Refusal::bad(RegistryCode::Unsupported, "n must be a number"))?,
        };
        if let Some(last) = query.get("last") {
            names.retain(|name| name.as_str() > last);
        }
        let more = names.len() > n;
        names.truncate(n);
        let next = names.last().filter(|_| more).map(|last| (n, last.clone()));
        Ok(Page { names, next })
    }

    /// Adds the way to the next page (RFC 8288).
    fn link(next: Option<(usize, String)>, path: &str, response: &mut Response) {
        if let Some((n, last)) = next {
            let link = format!("<{path}?n={n}&last={}>; rel=\"next\"", escape(&last));
            response.headers_mut().insert(header::LINK, value(&link));
        }
    }
}

/// For a query's value.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

pub(super) async fn tags(http: &Http, names: &Names, query: &Pairs) -> Answer {
    let registry = http.app.registry();
    let tags = names.first(|repository| registry.tags(repository)).await?;
    let repository = &names.pushed;
    let Page { names, next } = Page::cut(tags, query)?;
    let mut response = Json(json!({ "name": repository, "tags": names })).into_response();
    Page::link(next, &format!("/v2/{repository}/tags/list"), &mut response);
    Ok(response)
}

pub(super) async fn catalog(http: &Http, query: &Pairs) -> Answer {
    let repositories = http.app.registry().repositories().await?;
    let Page { names, next } = Page::cut(repositories, query)?;
    let mut response = Json(json!({ "repositories": names })).into_response();
    Page::link(next, "/v2/_catalog", &mut response);
    Ok(response)
}

fn descriptor(referrer: &Referrer) -> Value {
    let mut descriptor = json!({
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.size,
    });
    if let Some(artifact_type) = &referrer.artifact_type {
        descriptor["artifactType"] = json!(artifact_type);
    }
    if !referrer.annotations.is_empty() {
        descriptor["annotations"] = json!(referrer.annotations);
    }
    descriptor
}

pub(super) async fn referrers(
    http: &Http,
    repository: &str,
    digest: &str,
    query: &Pairs,
) -> Answer {
    let wanted = query.get("artifactType");
    let mut all = http.app.registry().referrers(repository, digest).await?;
    all.retain(|referrer| {
        wanted.is_none_or(|wanted| referrer.artifact_type.as_deref() == Some(wanted))
    });
    if let Some(last) = query.get("last") {
        all.retain(|referrer| referrer.digest.as_str() > last);
    }
    let (mut manifests, mut bytes, mut next) = (Vec::new(), 0, None);
    for referrer in &all {
        let one = descriptor(referrer);
        bytes += one.to_string().len() + 1;
        if bytes > REFERRER_BYTES && !manifests.is_empty() {
            break;
        }
        next = Some(referrer.digest.clone());
        manifests.push(one);
    }
    let next = next.filter(|_| manifests.len() < all.len());
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut response = Json(index).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    if wanted.is_some() {
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = next {
        let mut link = format!(
            "</v2/{repository}/referrers/{digest}?last={}",
            escape(&last)
        );
        if let Some(wanted) = wanted {
            link.push_str(&format!("&artifactType={}", escape(wanted)));
        }
        link.push_str(">; rel=\"next\"");
        headers.insert(header::LINK, value(&link));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(n: Option<&str>, last: Option<&str>) -> (Vec<String>, Option<String>) {
        let pairs = [("n", n), ("last", last)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let page = Page::cut(names, &Pairs(pairs)).expect("numbers");
        (page.names, page.next.map(|(_, last)| last))
    }

    #[test]
    fn pages_follow_each_other_and_end() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(page(None, None), (names(&["a", "b", "c"]), None));
        assert_eq!(
            page(Some("2"), None),
            (names(&["a", "b"]), Some("b".into()))
        );
        assert_eq!(page(Some("2"), Some("b")), (names(&["c"]), None));
        assert_eq!(page(Some("3"), None), (names(&["a", "b", "c"]), None));
        assert_eq!(page(Some("0"), None), (names(&[]), None));
        assert_eq!(page(Some("9"), Some("zz")), (names(&[]), None));
        assert_eq!(page(None, Some("aa")), (names(&["b", "c"]), None));
    }

    #[test]
    fn what_stands_in_a_link_is_escaped() {
        assert_eq!(
            escape("application/vnd.x+json"),
            "application%2Fvnd.x%2Bjson"
        );
        assert_eq!(escape("v1.0_a-b~"), "v1.0_a-b~");
    }
}

//! `/v2`: a registry of the host's images (OCI distribution-spec v1.1), so that `skopeo copy`, `docker push` and `buildah push`
//! deliver straight to Warren, and pull from it.
//!
//! Owns the protocol: paths, headers, ranges, paging, the error envelope. Must never hold a blob in memory. What repositories
//! hold is the host's; see `warren_core::ports::registry`.

mod blobs;
mod listing;
mod manifests;
mod refusal;
mod route;
mod uploads;

use super::Http;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use refusal::{Refusal, RegistryCode};
use route::{Astray, Route};
use warren_api::Problem;
use warren_core::{ErrorClass, PortError};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a handler gives.
type Answer = Result<Response, Refusal>;

/// Whether a request is the registry's.
pub(super) fn is_ours(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// A refusal that was made before a request came here, in the registry's form.
pub(super) fn write_problem(response: &mut Response, problem: &Problem) {
    let mut written = Refusal::from(problem).into_response();
    for (name, value) in response.headers() {
        if name == header::ALLOW {
            written.headers_mut().insert(name.clone(), value.clone());
        }
    }
    *response = written;
}

/// What every answer of a registry says.
pub(super) fn stamp(response: &mut Response) {
    response
        .headers_mut()
        .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
}

/// All of `/v2`.
pub(super) async fn serve(State(http): State<Http>, request: Request) -> Response {
    // HEAD is GET without its body, and must not open what it does not send.
    match answer(&http, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn answer(http: &Http, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let route = match Route::parse(parts.uri.path()) {
        Ok(route) => route,
        Err(Astray::Name) => return Err(Refusal::name()),
        Err(Astray::Digest) => return Err(Refusal::digest()),
        Err(Astray::Form) => {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                RegistryCode::NameUnknown,
                "there is nothing here: see the OCI distribution specification for what a registry serves",
            ));
        }
    };
    let query = Pairs::read(&parts.uri)?;
    let (method, headers) = (&parts.method, &parts.headers);
    let host = host_of(&parts.uri, headers);
    match (route, method.as_str()) {
        (Route::Base, "GET" | "HEAD") => Ok(axum::Json(serde_json::json!({})).into_response()),
        (Route::Catalog, "GET") => listing::catalog(http, &query).await,
        (Route::Tags { repository }, "GET") => {
            listing::tags(http, &Names::of(host, repository), &query).await
        }
        (Route::Referrers { repository, digest }, "GET") => {
            listing::referrers(http, &repository, &digest, &query).await
        }
        (Route::Blob { repository, digest }, "GET" | "HEAD") => {
            blobs::get(http, &Names::of(host, repository), &digest, method, headers).await
        }
        (Route::Blob { repository, digest }, "DELETE") => {
            blobs::delete(http, &repository, &digest).await
        }
        (Route::Uploads { repository }, "POST") => {
            uploads::begin(http, &repository, &query, headers, body).await
        }
        (Route::Upload { repository, id }, "GET" | "HEAD") => {
            uploads::status(http, &repository, &id).await
        }
        (Route::Upload { repository, id }, "PATCH") => {
            uploads::append(http, &repository, &id, headers, body).await
        }
        (Route::Upload { repository, id }, "PUT") => {
            uploads::finish(http, &repository, &id, &query, headers, body).await
        }
        (Route::Upload { repository, id }, "DELETE") => {
            uploads::cancel(http, &repository, &id).await
        }
        (
            Route::Manifest {
                repository,
                reference,
            },
            "GET" | "HEAD",
        ) => {
            manifests::get(
                http,
                &Names::of(host, repository),
                &reference,
                method,
                headers,
            )
            .await
        }
        (
            Route::Manifest {
                repository,
                reference,
            },
            "PUT",
        ) => manifests::put(http, &repository, &reference, &query, headers, host, body).await,
        (
            Route::Manifest {
                repository,
                reference,
            },
            "DELETE",
        ) => manifests::delete(http, &Names::of(host, repository), &reference).await,
        (route, _) => Err(no_method(&route, method)),
    }
}

fn no_method(route: &Route, method: &Method) -> Refusal {
    let takes = match route {
        Route::Base | Route::Catalog | Route::Tags { .. } | Route::Referrers { .. } => "GET",
        Route::Blob { .. } => "GET, HEAD and DELETE",
        Route::Uploads { .. } => "POST",
        Route::Upload { .. } => "GET, PATCH, PUT and DELETE",
        Route::Manifest { .. } => "GET, HEAD, PUT and DELETE",
    };
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        RegistryCode::Unsupported,
        format!("this route takes {takes}, not {method}"),
    )
}

/// Under which name the client reached us: its images' names begin with it.
fn host_of(uri: &Uri, headers: &axum::http::HeaderMap) -> String {
    uri.authority()
        .map(|authority| authority.as_str())
        .or_else(|| {
            headers
                .get(header::HOST)
                .and_then(|value| value.to_str().ok())
        })
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// What a client may mean by a repository: what was pushed as it, and what came another way under this registry's own name, as
/// `warren commit web localhost:8080/web:2` does.
struct Names {
    pushed: String,
    /// As images that came another way are filed: with the host in front, its port behind a `_`.
    filed: Option<String>,
}

impl Names {
    fn of(host: String, repository: String) -> Self {
        let filed = format!("{}/{repository}", host.replace(':', "_"));
        Names {
            filed: route::is_repository(&filed).then_some(filed),
            pushed: repository,
        }
    }

    /// Asks for the one, then for the other where there is none of the first.
    async fn first<'a, T, F>(&'a self, ask: impl Fn(&'a str) -> F) -> Result<T, PortError>
    where
        F: Future<Output = Result<T, PortError>>,
    {
        match (ask(&self.pushed).await, &self.filed) {
            (Err(error), Some(filed)) if error.class == ErrorClass::NotFound => {
                ask(filed).await.map_err(|_| error)
            }
            (asked, _) => asked,
        }
    }
}

/// The query, each parameter as often as it was given.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn read(uri: &Uri) -> Result<Self, Refusal> {
        Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map(|Query(pairs)| Pairs(pairs))
            .map_err(|error| Refusal::bad(RegistryCode::Unsupported, error.body_text()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// A header that names a digest or a path of ours. Both are ASCII without control characters.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn empty(status: StatusCode) -> Response {
    let mut response = status.into_response();
    if status != StatusCode::NO_CONTENT {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    *response.body_mut() = Body::empty();
    response
}

/// `ETag` and `If-None-Match` (RFC 9110, 8.8.3, 13.1.2): content that is named by its digest never changes.
fn etag(digest: &str) -> String {
    format!("\"{digest}\"")
}

fn is_known(headers: &axum::http::HeaderMap, digest: &str) -> bool {
    let own = etag(digest);
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == own)
}

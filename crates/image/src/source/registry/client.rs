//! Requests to one registry, with its authentication and retries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode};
use warren_core::ports::images::Transport;

use super::RegistryError;
use super::auth::{Bearer, Challenge, Credentials, TokenAnswer};
use crate::digest::{Digest, Hasher};
use crate::source::SourceError;
use crate::source::manifest::{Descriptor, Fetch, MAX_MANIFEST};
use crate::source::reference::Reference;

/// Attempts of one request, the first included.
const ATTEMPTS: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// A registry may ask for longer than this; then the user is told.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One registry and repository.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    transport: Transport,
    registry: String,
    repository: String,
    base: String,
    credentials: Credentials,
    authorization: Mutex<Option<Authorization>>,
}

#[derive(Clone)]
enum Authorization {
    Basic,
    Bearer(Bearer),
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

impl Client {
    pub(crate) fn new(
        reference: &Reference,
        transport: Transport,
        credentials: Credentials,
        stall: Duration,
    ) -> Result<Self, RegistryError> {
        // Fails when the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")))
            .https_only(transport == Transport::Https)
            .connect_timeout(stall.min(Duration::from_secs(15)))
            .read_timeout(stall)
            .build()
            .map_err(|source| RegistryError::Unreachable {
                registry: reference.registry().to_owned(),
                source: source.into(),
            })?;
        let host = match reference.registry() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = match transport {
            Transport::Https => "https",
            Transport::PlainHttp => "http",
        };
        Ok(Client {
            http,
            transport,
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            credentials,
            authorization: Mutex::new(None),
        })
    }

    /// The manifest or index of a reference; its digest is checked where the reference has one.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, SourceError> {
        let bytes = self
            .document(
                &format!("manifests/{}", reference.manifest_name()),
                MAX_MANIFEST,
            )
            .await?;
        if let Some(expected) = reference.digest() {
            let mut hasher = Hasher::like(Some(expected));
            hasher.update(&bytes);
            if hasher.finish() != *expected {
                return Err(SourceError::Digest {
                    what: "the manifest".into(),
                    expected: expected.to_string(),
                });
            }
        }
        Ok(bytes)
    }

    /// A layer's bytes from `offset` on.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        self.get(&format!("blobs/{digest}"), headers).await
    }

    /// What a path below the repository is called in references: `registry/repository:tag`, or `…@digest`.
    fn name_of(&self, path: &str) -> String {
        let name = path.rsplit('/').next().unwrap_or(path);
        let separator = if name.contains(':') { '@' } else { ':' };
        format!("{}/{}{separator}{name}", self.registry, self.repository)
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    async fn document(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        let mut failures = 0;
        loop {
            let response = self.get(path, headers.clone()).await?;
            match self.body(response, path, limit).await {
                Err(SourceError::Registry(RegistryError::Unreachable { .. }))
                    if failures + 1 < ATTEMPTS =>
                {
                    failures += 1;
                    tokio::time::sleep(backoff(failures)).await;
                }
                result => return result,
            }
        }
    }

    async fn body(
        &self,
        mut response: Response,
        path: &str,
        limit: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let too_large = || SourceError::TooLarge {
            what: path.to_owned(),
            limit,
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(error))?
        {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// A GET with authentication and retries; the answer is a success.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response, RegistryError> {
        let mut failures = 0;
        let mut challenged = false;
        loop {
            let mut request = self
                .http
                .get(format!("{}/{path}", self.base))
                .headers(headers.clone());
            if let Some(value) = self.authorization_header() {
                request = request.header(AUTHORIZATION, value);
            }
            let (error, delay) = match request.send().await {
                Err(error) => (self.unreachable(error), None),
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !challenged => {
                    challenged = true;
                    self.authenticate(&response).await?;
                    continue;
                }
                Ok(response) => self.refusal(&response, path),
            };
            failures += 1;
            let transient = match &error {
                RegistryError::Unreachable { .. } | RegistryError::RateLimited { .. } => true,
                RegistryError::Status { status, .. } => *status >= 500,
                _ => false,
            };
            let delay = delay.unwrap_or_else(|| backoff(failures));
            if !transient || failures >= ATTEMPTS || delay > LONGEST_DELAY {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    fn refusal(&self, response: &Response, path: &str) -> (RegistryError, Option<Duration>) {
        let registry = self.registry.clone();
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let repository = self.repository.clone();
                (
                    RegistryError::Denied {
                        registry,
                        repository,
                    },
                    None,
                )
            }
            StatusCode::NOT_FOUND => {
                let reference = self.name_of(path);
                (RegistryError::NotFound { reference }, None)
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|v| v.to_str().ok()?.parse().ok());
                let retry_after = seconds.map(Duration::from_secs);
                (
                    RegistryError::RateLimited {
                        registry,
                        retry_after,
                    },
                    retry_after,
                )
            }
            status => (
                RegistryError::Status {
                    registry,
                    status: status.as_u16(),
                    what: path.to_owned(),
                },
                None,
            ),
        }
    }

    pub(super) fn unreachable(&self, error: reqwest::Error) -> RegistryError {
        let error = error.without_url();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(at) = cause {
            // rustls gives no type through reqwest for "this is not TLS".
            if self.transport == Transport::Https && at.to_string().contains("InvalidContentType") {
                return RegistryError::PlainHttp {
                    registry: self.registry.clone(),
                };
            }
            cause = at.source();
        }
        RegistryError::Unreachable {
            registry: self.registry.clone(),
            source: error.into(),
        }
    }

    fn authorization_header(&self) -> Option<HeaderValue> {
        let known = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = match (known, &self.credentials) {
            (Some(Authorization::Bearer(bearer)), _) if bearer.until > Instant::now() => {
                format!("Bearer {}", bearer.token)
            }
            (_, Credentials::Token(token)) => format!("Bearer {token}"),
            (Some(Authorization::Basic), Credentials::Basic { username, password }) => {
                use base64::Engine as _;
                let pair = format!("{username}:{password}");
                format!(
                    "Basic {}",
                    base64::engine::general_purpose::STANDARD.encode(pair)
                )
            }
            _ => return None,
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Gets what a 401 asks for.
    async fn authenticate(&self, response: &Response) -> Result<(), RegistryError> {
        let denied = || RegistryError::Denied {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
        };
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
            .ok_or_else(denied)?;
        let authorization = match challenge {
            Challenge::Basic => match self.credentials {
                Credentials::Basic { .. } => Authorization::Basic,
                _ => return Err(denied()),
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                if matches!(self.credentials, Credentials::Token(_)) {
                    return Err(denied());
                }
                Authorization::Bearer(self.token(&realm, service, scope).await?)
            }
        };
        *self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<Bearer, RegistryError> {
        let wrong = |why: &str| RegistryError::Wrong {
            registry: self.registry.clone(),
            why: why.to_owned(),
        };
        let mut url = reqwest::Url::parse(realm)
            .map_err(|_| wrong("its token server's address is not a URL"))?;
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut fields = HashMap::from([("scope", scope)]);
        if let Some(service) = service {
            fields.insert("service", service);
        }
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                fields.insert("grant_type", "refresh_token".into());
                fields.insert("client_id", "warren".into());
                fields.insert("refresh_token", token.clone());
                let mut form = reqwest::Url::parse("http://form/").map_err(|_| wrong("no form"))?;
                form.query_pairs_mut().extend_pairs(&fields);
                self.http
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            credentials => {
                url.query_pairs_mut().extend_pairs(&fields);
                let request = self.http.get(url);
                match credentials {
                    Credentials::Basic { username, password } => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        if !response.status().is_success() {
            return Err(self.refusal(&response, "the request for a token").0);
        }
        let bytes = match self.body(response, "the token", 1 << 20).await {
            Ok(bytes) => bytes,
            Err(SourceError::Registry(error)) => return Err(error),
            Err(_) => return Err(wrong("its token is too large")),
        };
        serde_json::from_slice::<TokenAnswer>(&bytes)
            .ok()
            .and_then(TokenAnswer::bearer)
            .ok_or_else(|| wrong("its token server's answer has no token"))
    }
}

/// Doubling, with up to a quarter more so that many do not come back together.
pub(super) fn backoff(failures: u32) -> Duration {
    let delay = FIRST_DELAY * 2u32.pow(failures.min(6));
    let spread = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos() % 256);
    delay + delay * spread / 1024
}

#[async_trait]
impl Fetch for Client {
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.digest()?;
        let path = match descriptor.media_type.as_str() {
            kind if kind.contains("manifest") || kind.contains("image.index") => {
                format!("manifests/{digest}")
            }
            _ => format!("blobs/{digest}"),
        };
        self.document(&path, limit).await
    }
}

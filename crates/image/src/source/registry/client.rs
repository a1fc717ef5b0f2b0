//! Pulling from one repository: its mirrors first, then the registry itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use reqwest::Response;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RANGE};

use super::RegistryError;
use super::endpoint::{Endpoint, Patience, Retries};
use crate::digest::{Digest, Hasher};
use crate::source::SourceError;
use crate::source::manifest::{Descriptor, Fetch, MAX_MANIFEST};
use crate::source::reference::Reference;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// One repository, wherever it can be had.
#[derive(Debug)]
pub(crate) struct Client {
    /// Mirrors, then the registry itself.
    endpoints: Vec<Endpoint>,
    /// The one that gave the last document: where the image is.
    found_at: AtomicUsize,
}

impl Client {
    /// `endpoints` has at least the registry itself, as the last.
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        Client {
            endpoints,
            found_at: AtomicUsize::new(0),
        }
    }

    /// The manifest or index of a reference; its digest is checked where the reference has one.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, SourceError> {
        let path = format!("manifests/{}", reference.manifest_name());
        let bytes = self.document(&path, MAX_MANIFEST).await?;
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

    /// One request for a layer's bytes from `offset` on. After `failures` in vain, mirrors are not asked any more.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
        failures: u32,
    ) -> Result<(&Endpoint, Response), RegistryError> {
        let path = format!("blobs/{digest}");
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut refused = None;
        for endpoint in self.in_order() {
            let may_be_skipped = endpoint.patience() == Patience::Mirror;
            if may_be_skipped && failures >= endpoint.patience().attempts() {
                continue;
            }
            let request = || {
                endpoint
                    .http()
                    .get(endpoint.url(&path))
                    .headers(headers.clone())
            };
            match endpoint.ask(&path, request).await {
                Ok(response) => return Ok((endpoint, response)),
                // The server has less than was promised: another has not got more to give from there.
                Err(error @ RegistryError::Status { status: 416, .. }) => return Err(error),
                Err(error) => {
                    if may_be_skipped {
                        tracing::debug!(mirror = endpoint.registry(), %error, "a mirror was skipped");
                    }
                    refused = Some(error);
                }
            }
        }
        Err(refused.unwrap_or(RegistryError::Cancelled))
    }

    pub(super) fn registry(&self) -> &str {
        self.endpoints.last().map_or("", Endpoint::registry)
    }

    /// Those who may have it: the one that had the manifest and those behind it.
    fn in_order(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints[self.found_at.load(Ordering::Relaxed)..].iter()
    }

    async fn document(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        let first = self.found_at.load(Ordering::Relaxed);
        let mut refused = None;
        for (at, endpoint) in self.endpoints.iter().enumerate().skip(first) {
            match one_document(endpoint, path, limit).await {
                Ok(Some(bytes)) => {
                    self.found_at.fetch_max(at, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Ok(None) => {
                    return Err(SourceError::TooLarge {
                        what: path.to_owned(),
                        limit,
                    });
                }
                Err(error) => {
                    if endpoint.patience() == Patience::Mirror {
                        tracing::debug!(mirror = endpoint.registry(), %error, "a mirror was skipped");
                    }
                    refused = Some(error);
                }
            }
        }
        Err(refused.unwrap_or(RegistryError::Cancelled).into())
    }
}

/// A document from one endpoint, asked for as often as that makes sense; `None` when it is too large.
async fn one_document(
    endpoint: &Endpoint,
    path: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, RegistryError> {
    let accept = HeaderValue::from_static(match path.starts_with("manifests/") {
        true => MANIFEST_TYPES,
        false => "*/*",
    });
    let request = || {
        let request = endpoint.http().get(endpoint.url(path));
        request.header(ACCEPT, accept.clone())
    };
    let mut retries = Retries::new(endpoint.patience());
    loop {
        let outcome = match endpoint.ask(path, request).await {
            Ok(response) => endpoint.body(response, limit).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(body) => return Ok(body),
            Err(error) => tokio::time::sleep(retries.after(error)?).await,
        }
    }
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

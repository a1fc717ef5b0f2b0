//! The typed client: one method per served route. Used by the CLI and by anybody who drives Warren
//! from Rust. Every wait has a deadline, streams resume where they broke, and what the server refuses
//! comes back with its code and sentence.

mod copy;
mod download;
mod error;
mod exec;
mod own;
mod patience;
mod routes;
mod ssh;
mod stream;

pub use copy::{CopyDownload, CopyUpload};
pub use download::Download;
pub use error::{ClientError, Refused};
pub use exec::{ExecConnection, ExecReader, ExecWriter};
pub use patience::Patience;
pub use routes::{CreateOptions, ListQuery, LoadContent, LoadSource, LogsQuery, Page, UntilReady};
pub use ssh::{SshReader, SshWriter};
pub use stream::{EventItem, TypedStream};

use crate::problem::Problem;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Answers larger than this are an error: the largest honest one is a page of instances.
const LONGEST_BODY: usize = 64 << 20;
/// How long an ordinary request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The header with which a server names a request, here and in its log.
const REQUEST_ID: &str = "x-request-id";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// HTTP/1.1 only: WebSockets over HTTP/2 are another protocol (RFC 8441).
    http1: reqwest::Client,
    base: Url,
    token: Option<String>,
    patience: Option<Patience>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

impl Client {
    /// A client of the server at `base` (`http://127.0.0.1:8080`, `https://host/prefix`), with a bearer token
    /// if the server wants one. Installs ring as the process's TLS provider unless there is one.
    ///
    /// # Errors
    /// [`ClientError::Address`] for anything that is not an HTTP address.
    pub fn new(base: &str, token: Option<String>) -> Result<Self, ClientError> {
        // A second call, or a provider the program chose itself, is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = |reason: String| ClientError::Address {
            address: base.to_owned(),
            reason,
        };
        let text = if base.contains("://") {
            base.to_owned()
        } else {
            format!("http://{base}")
        };
        let mut url = Url::parse(&text).map_err(|e| address(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(address("it must start with http:// or https://".to_owned()));
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let plain_and_here = url.scheme() == "http" && own::is_here(&url);
        let builder = || {
            let builder = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")));
            match plain_and_here {
                // No proxy leads there, and the system's certificates take longer to read than most requests.
                true => builder.no_proxy().tls_certs_only([]),
                false => builder,
            }
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|e| address(error::chain(&e)))
        };
        Ok(Client {
            http: build(builder())?,
            http1: build(builder().http1_only())?,
            base: url,
            token,
            patience: None,
        })
    }

    /// From now on it comes again when the server is busy and says so. Requests that stream their bodies do not.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Where it is.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Whether an image's reference names the registry that this server is itself.
    pub fn is_registry_of(&self, reference: &str) -> bool {
        own::is_of(reference, &self.base)
    }

    /// The address of a route; each segment is percent-encoded by itself.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an http address has segments")
            .pop_if_empty()
            .extend(segments);
        url
    }

    fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.authorize(self.http.request(method, self.url(segments)))
    }

    fn request_with(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> RequestBuilder {
        self.authorize(self.http.request(method, self.url_with(segments, query)))
    }

    fn upgrade_request(&self, segments: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        self.authorize(self.http1.get(self.url_with(segments, query)))
    }

    fn url_with(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, ClientError> {
        let mut waited = Duration::ZERO;
        loop {
            let again = self.patience.as_ref().zip(request.try_clone());
            let response = request
                .send()
                .await
                .map_err(|e| ClientError::from_transport(&self.base, &e))?;
            if response.status().is_success() || response.status().as_u16() == 101 {
                return Ok(response);
            }
            let pause = patience::retry_after(response.headers());
            let error = self.refused(response).await;
            let Some((patience, next)) = again else {
                return Err(error);
            };
            let Some(pause) = patience.pause(&error, pause, waited) else {
                return Err(error);
            };
            tokio::time::sleep(pause).await;
            waited += pause;
            request = next;
        }
    }

    async fn refused(&self, response: Response) -> ClientError {
        let status = response.status().as_u16();
        let request_id = response.headers().get(REQUEST_ID);
        let request_id = request_id.and_then(|id| id.to_str().ok().map(str::to_owned));
        match self.body(response).await {
            Err(error) => error,
            Ok(body) => {
                let refused = serde_json::from_slice::<Problem>(&body).map_or_else(
                    |_| Refused::unreadable(status, &String::from_utf8_lossy(&body)),
                    Refused::from,
                );
                ClientError::Refused(Box::new(Refused {
                    request_id,
                    ..refused
                }))
            }
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|e| ClientError::from_transport(&self.base, &e))?
        {
            if body.len() + chunk.len() > LONGEST_BODY {
                return Err(ClientError::Answer {
                    reason: "the answer is larger than 64 MiB".to_owned(),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.json_within(request, REQUEST_TIMEOUT).await
    }

    async fn json_within<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let response = self.send(request.timeout(deadline)).await?;
        let body = self.body(response).await?;
        error::decode(&body)
    }

    async fn empty(&self, request: RequestBuilder) -> Result<(), ClientError> {
        self.send(request.timeout(REQUEST_TIMEOUT)).await.map(drop)
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &B,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        self.json_within(self.request(Method::POST, segments).json(body), deadline)
            .await
    }
}

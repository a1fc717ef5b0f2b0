//! A registry of our own that does what a test tells it to: it serves images as the distribution-spec says, and before
//! that asks its rules. It keeps what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use warren_image::Digest;

use crate::support::{Archive, gzip};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The first value of a field of the query or of a form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let form = String::from_utf8_lossy(&self.body);
        let text = if query.is_empty() { &*form } else { query };
        let url = reqwest::Url::parse(&format!("form:?{text}")).unwrap();
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }
}

type Answer = dyn Fn(&Seen) -> Option<Response> + Send + Sync;

/// What a test wants instead of the usual answer, so many times.
struct Rule {
    left: usize,
    answer: Box<Answer>,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    /// Manifests by `repository/name`, with their types.
    manifests: Mutex<HashMap<String, (String, Bytes)>>,
    blobs: Mutex<HashMap<String, Bytes>>,
}

/// See the module. Ends when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn plain() -> Self {
        Server::start(None).await
    }

    pub(crate) async fn tls(config: rustls::ServerConfig) -> Self {
        Server::start(Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let stop = CancellationToken::new();
        let served = Arc::clone(&state);
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stopped.cancelled() => return,
                };
                let (stream, _) = accepted.unwrap();
                let (state, tls, stopped) = (Arc::clone(&served), tls.clone(), stopped.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection(stream, tls, state) => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Server {
            address,
            state,
            _stop: stop.drop_guard(),
        }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// From now on, `so often`, requests for which `answer` has one get that.
    pub(crate) fn rule(
        &self,
        so_often: usize,
        answer: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static,
    ) {
        self.state.rules.lock().unwrap().push(Rule {
            left: so_often,
            answer: Box::new(answer),
        });
    }

    /// The next `so_often` requests for a blob get `answer`.
    pub(crate) fn blob_rule(
        &self,
        so_often: usize,
        digest: &str,
        answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) {
        let wanted = format!("/blobs/{digest}");
        self.rule(so_often, move |seen| {
            (seen.method == Method::GET && seen.path.ends_with(&wanted)).then(|| answer(seen))
        });
    }

    pub(crate) fn no_rules(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }

    /// Requests with this method whose path contains that.
    pub(crate) fn asked(&self, method: Method, part: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.method == method && seen.path.contains(part));
        seen
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        let bytes = Bytes::copy_from_slice(bytes);
        self.state
            .blobs
            .lock()
            .unwrap()
            .insert(digest.clone(), bytes);
        digest
    }

    pub(crate) fn blob(&self, digest: &str) -> Option<Bytes> {
        self.state.blobs.lock().unwrap().get(digest).cloned()
    }

    pub(crate) fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        let manifests = self.state.manifests.lock().unwrap();
        manifests.get(&format!("{repository}/{name}")).cloned()
    }

    /// Under its tag and under its digest, which it gives.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let bytes = Bytes::from(manifest.to_string());
        let digest = Digest::of(&bytes).to_string();
        let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
        let mut manifests = self.state.manifests.lock().unwrap();
        for name in [tag, &digest] {
            let key = format!("{repository}/{name}");
            manifests.insert(key, (media_type.clone(), bytes.clone()));
        }
        digest
    }

    /// Puts an image there, and its layers.
    pub(crate) fn put_image(&self, repository: &str, tag: &str, image: &Image) -> String {
        self.put_blob(image.config.to_string().as_bytes());
        for (stored, _) in &image.layers {
            self.put_blob(stored);
        }
        self.put_manifest(repository, tag, &image.manifest())
    }
}

async fn connection(stream: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>, state: Arc<State>) {
    let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(state.answer(request.map(Body::new)).await) }
    });
    let builder =
        hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    // A client that goes away is none of the server's business.
    match tls {
        None => {
            let io = hyper_util::rt::TokioIo::new(stream);
            drop(builder.serve_connection(io, service).await);
        }
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                let io = hyper_util::rt::TokioIo::new(stream);
                drop(builder.serve_connection(io, service).await);
            }
        }
    }
}

impl State {
    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await;
        let seen = Seen {
            method: parts.method,
            path: parts
                .uri
                .path_and_query()
                .map_or_else(|| parts.uri.to_string(), ToString::to_string),
            headers: parts.headers,
            // A body that breaks off counts as none.
            body: body.unwrap_or_default(),
        };
        self.seen.lock().unwrap().push(seen.clone());
        if let Some(answer) = self.by_rule(&seen) {
            return answer;
        }
        self.usual(&seen)
    }

    fn by_rule(&self, seen: &Seen) -> Option<Response> {
        let mut rules = self.rules.lock().unwrap();
        let rule_and_answer = rules
            .iter_mut()
            .filter(|rule| rule.left > 0)
            .find_map(|rule| Some(((rule.answer)(seen)?, rule)));
        let (answer, rule) = rule_and_answer?;
        rule.left -= 1;
        Some(answer)
    }

    fn usual(&self, seen: &Seen) -> Response {
        let path = seen.path.split('?').next().unwrap_or_default();
        let Some(rest) = path.strip_prefix("/v2/") else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if let Some((repository, name)) = rest.rsplit_once("/manifests/") {
            return self.manifests(seen, repository, name);
        }
        if let Some((_, id)) = rest.split_once("/blobs/uploads/") {
            return self.uploads(seen, path, id);
        }
        match rest.rsplit_once("/blobs/") {
            Some((_, digest)) => match self.blobs.lock().unwrap().get(digest) {
                Some(blob) => part(seen, blob),
                None => StatusCode::NOT_FOUND.into_response(),
            },
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn manifests(&self, seen: &Seen, repository: &str, name: &str) -> Response {
        let key = format!("{repository}/{name}");
        let mut manifests = self.manifests.lock().unwrap();
        if seen.method == Method::PUT {
            let media_type = seen.header("content-type").unwrap_or_default().to_owned();
            let digest = Digest::of(&seen.body).to_string();
            manifests.insert(key, (media_type, seen.body.clone()));
            return (StatusCode::CREATED, [("docker-content-digest", digest)]).into_response();
        }
        match manifests.get(&key) {
            Some((media_type, bytes)) => {
                let media_type = [(header::CONTENT_TYPE, media_type.clone())];
                (media_type, bytes.clone()).into_response()
            }
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn uploads(&self, seen: &Seen, path: &str, id: &str) -> Response {
        if seen.method == Method::POST {
            let mounted = seen.field("mount").filter(|digest| {
                seen.field("from").is_some() && self.blobs.lock().unwrap().contains_key(digest)
            });
            if mounted.is_some() {
                return StatusCode::CREATED.into_response();
            }
            let location = [(header::LOCATION, format!("{path}one?state=s"))];
            return (StatusCode::ACCEPTED, location).into_response();
        }
        let digest = seen.field("digest").unwrap_or_default();
        if id.is_empty() || Digest::of(&seen.body).to_string() != digest {
            return (
                StatusCode::BAD_REQUEST,
                refusal("DIGEST_INVALID", "digests differ"),
            )
                .into_response();
        }
        self.blobs.lock().unwrap().insert(digest, seen.body.clone());
        StatusCode::CREATED.into_response()
    }
}

/// The body of a refusal.
pub(crate) fn refusal(code: &str, message: &str) -> String {
    json!({ "errors": [{ "code": code, "message": message }] }).to_string()
}

/// A blob, or the part of it that is asked for.
pub(crate) fn part(seen: &Seen, blob: &Bytes) -> Response {
    let range = seen
        .header("range")
        .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-'));
    match range.map(|start| start.parse::<usize>().unwrap()) {
        None => blob.clone().into_response(),
        Some(start) if start >= blob.len() => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            let headers = [(header::CONTENT_RANGE, range)];
            (StatusCode::PARTIAL_CONTENT, headers, blob.slice(start..)).into_response()
        }
    }
}

/// How a body ends that is not sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The connection is closed.
    Break,
    /// Nothing more comes.
    Silence,
}

/// The first `sent` bytes of a body that promises to be all of `blob`.
pub(crate) fn cut(blob: &Bytes, sent: usize, then: Then) -> Response {
    let start = futures::stream::iter([Ok(blob.slice(..sent))]);
    let end = futures::stream::once(async move {
        match then {
            // What was sent so far is on its way before the connection goes.
            Then::Break => tokio::time::sleep(Duration::from_millis(20)).await,
            Then::Silence => std::future::pending().await,
        }
        Err(std::io::Error::other("broken"))
    });
    let headers = [(header::CONTENT_LENGTH, blob.len())];
    (headers, Body::from_stream(start.chain(end))).into_response()
}

/// A body that never ends.
pub(crate) fn endless() -> Response {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let pieces = futures::stream::repeat(Ok::<_, Infallible>(piece));
    Body::from_stream(pieces).into_response()
}

/// An image, made here.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Value,
    /// Compressed and not.
    pub(crate) layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Image {
    pub(crate) fn of(layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        Image::for_platform("amd64", None, layers)
    }

    pub(crate) fn for_platform(
        architecture: &str,
        variant: Option<&str>,
        layers: &[(Vec<u8>, Vec<u8>)],
    ) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|(_, plain)| Digest::of(plain).to_string())
            .collect();
        let mut config = json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["/x"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if let Some(variant) = variant {
            config["variant"] = variant.into();
        }
        Image {
            config,
            layers: layers.to_vec(),
        }
    }

    pub(crate) fn manifest(&self) -> Value {
        let config = self.config.to_string();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(stored, _)| {
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(stored).to_string(), "size": stored.len() })
            })
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len() },
            "layers": layers,
        })
    }

    pub(crate) fn layer(&self, at: usize) -> (String, Bytes) {
        let stored = &self.layers[at].0;
        (
            Digest::of(stored).to_string(),
            Bytes::copy_from_slice(stored),
        )
    }
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer of one file that does not compress, compressed and not.
pub(crate) fn layer(name: &str, size: usize) -> (Vec<u8>, Vec<u8>) {
    let mut noise = Vec::with_capacity(size + 32);
    let mut block = Digest::of(name.as_bytes());
    while noise.len() < size {
        noise.extend_from_slice(&block.prefix());
        block = Digest::of(block.hex().as_bytes());
    }
    let plain = Archive::new().file(name.as_bytes(), &noise[..size]).end();
    (gzip(&plain), plain)
}

//! Images that a containerd on this host has already: found by name in all of its namespaces, read through its socket.
//!
//! Nothing that it says is believed: documents and layers are checked by their digests as if they came from a registry.

mod wire;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::SourceError;
use super::manifest::{self, Descriptor, Fetch, Image, MAX_MANIFEST, Platform, Wanted};
use super::reference::Reference;
use crate::digest::{Digest, DigestError, Hasher};
use crate::pipeline::{LayerInput, OpenLayer};

/// Pieces of a layer on their way to whoever reads it. containerd sends a mebibyte at once.
const PIECES: usize = 4;
/// More namespaces than anybody has.
const NAMESPACES: usize = 256;

/// Why containerd gives no image.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody listens there, or not to us.
    #[error("containerd cannot be reached at {}", socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It refused.
    #[error("containerd refused: {0}")]
    Refused(Box<Status>),
    /// It says nothing.
    #[error("containerd did not answer within {0:?}")]
    Stalled(Duration),
}

/// A containerd, by its socket.
#[derive(Debug, Clone)]
pub(crate) struct Containerd {
    socket: PathBuf,
    /// How long it may say nothing.
    stall: Duration,
}

/// An image that it has, whole.
pub(crate) struct Offer {
    pub(crate) image: Image,
    /// Its layers, oldest first.
    pub(crate) inputs: Vec<LayerInput>,
}

impl Containerd {
    pub(crate) fn new(socket: PathBuf, stall: Duration) -> Self {
        Containerd { socket, stall }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Looks for an image in all namespaces; `None` where none has all of it.
    ///
    /// # Errors
    /// Where containerd does not answer, and where what it has is not an image that can run.
    pub(crate) async fn find(
        &self,
        reference: &Reference,
        platform: &Platform,
        wanted: Wanted,
    ) -> Result<Option<Offer>, SourceError> {
        let channel = self.connect().await?;
        for namespace in self.namespaces(&channel).await? {
            let content = NamespaceContent {
                channel: channel.clone(),
                namespace,
                stall: self.stall,
            };
            let Some(target) = content.image(&reference.to_string()).await? else {
                continue;
            };
            if let Some(offer) = content.offer(&target, platform, wanted).await? {
                return Ok(Some(offer));
            }
        }
        Ok(None)
    }

    async fn connect(&self) -> Result<Channel, ContainerdError> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The name of a host is needed and of no meaning.
        Endpoint::from_static("http://containerd")
            .connect_timeout(self.stall)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ContainerdError::Unreachable {
                socket: self.socket.clone(),
                source,
            })
    }

    async fn namespaces(&self, channel: &Channel) -> Result<Vec<String>, ContainerdError> {
        let request = Request::new(wire::ListNamespaces {});
        let answer: wire::Namespaces =
            unary(channel, self.stall, wire::LIST_NAMESPACES, request).await?;
        let names = answer.namespaces.into_iter().map(|it| it.name);
        Ok(names.take(NAMESPACES).collect())
    }
}

/// What one namespace of containerd's holds.
#[derive(Debug, Clone)]
struct NamespaceContent {
    channel: Channel,
    namespace: String,
    stall: Duration,
}

impl NamespaceContent {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A name that cannot be said in a header is the name of no namespace.
        if let Ok(namespace) = self.namespace.parse() {
            request.metadata_mut().insert(wire::NAMESPACE, namespace);
        }
        request
    }

    /// The manifest or index that the name stands for.
    async fn image(&self, name: &str) -> Result<Option<String>, ContainerdError> {
        let request = self.request(wire::GetImage {
            name: name.to_owned(),
        });
        let answer = unary(&self.channel, self.stall, wire::GET_IMAGE, request).await;
        let answer: wire::GotImage = match found(answer)? {
            Some(answer) => answer,
            None => return Ok(None),
        };
        let target = answer.image.and_then(|image| image.target);
        Ok(target.map(|target| target.digest))
    }

    /// The image behind a digest, where all of it is here: containerd keeps of an index only what somebody pulled.
    async fn offer(
        &self,
        target: &str,
        platform: &Platform,
        wanted: Wanted,
    ) -> Result<Option<Offer>, SourceError> {
        let what = "containerd's image";
        let expected: Digest = target
            .parse()
            .map_err(|error: DigestError| manifest::malformed(what, &error.to_string()))?;
        if self.size(&expected).await?.is_none() {
            return Ok(None);
        }
        let bytes = self.document(target, MAX_MANIFEST).await?;
        let mut hasher = Hasher::like(Some(&expected));
        hasher.update(&bytes);
        if hasher.finish() != expected {
            return Err(SourceError::Digest {
                what: what.to_owned(),
                expected: target.to_owned(),
            });
        }
        let image = match manifest::resolve(self, bytes, platform, wanted).await {
            Ok(image) => image,
            Err(SourceError::Containerd(ContainerdError::Refused(status)))
                if status.code() == Code::NotFound =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        for layer in &image.layers {
            if self.size(&layer.digest).await? != Some(layer.size) {
                return Ok(None);
            }
        }
        let inputs = image.layers.iter().map(|layer| LayerInput {
            digest: Some(layer.digest.clone()),
            size: Some(layer.size),
            diff_id: Some(layer.diff_id.clone()),
            open: self.opener(layer.digest.clone()),
        });
        let inputs = inputs.collect();
        Ok(Some(Offer { image, inputs }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, ContainerdError> {
        let request = self.request(wire::ContentInfo {
            digest: digest.to_string(),
        });
        let answer = unary(&self.channel, self.stall, wire::CONTENT_INFO, request).await;
        let answer: Option<wire::GotContentInfo> = found(answer)?;
        let info = answer.and_then(|answer| answer.info);
        Ok(info.and_then(|info| u64::try_from(info.size).ok()))
    }

    async fn read(&self, digest: &str) -> Result<Streaming<wire::Content>, ContainerdError> {
        let request = self.request(wire::ReadContent {
            digest: digest.to_owned(),
        });
        let asked = async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.map_err(unready)?;
            let path = PathAndQuery::from_static(wire::READ_CONTENT);
            let codec = ProstCodec::<wire::ReadContent, wire::Content>::default();
            client.server_streaming(request, path, codec).await
        };
        Ok(within(self.stall, asked).await?.into_inner())
    }

    async fn document(&self, digest: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        let mut from = self.read(digest).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&mut from).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(SourceError::TooLarge {
                    what: digest.to_owned(),
                    limit,
                });
            }
        }
        Ok(bytes)
    }

    /// The next piece; `None` at the end.
    async fn piece(
        &self,
        from: &mut Streaming<wire::Content>,
    ) -> Result<Option<Bytes>, ContainerdError> {
        let piece = within(self.stall, from.message()).await?;
        Ok(piece.map(|piece| piece.data))
    }

    /// Reads a layer when its turn comes.
    fn opener(&self, digest: Digest) -> OpenLayer {
        let (content, runtime) = (self.clone(), Handle::current());
        Box::new(move |stop: &CancellationToken| {
            let (sender, pieces) = mpsc::channel(PIECES);
            runtime.spawn(content.send(digest, sender, stop.clone()));
            Ok(Box::new(Pieces {
                pieces,
                piece: Bytes::new(),
            }))
        })
    }

    /// Sends a layer's pieces until there are no more, somebody stops it, or nobody wants them.
    async fn send(
        self,
        digest: Digest,
        to: mpsc::Sender<io::Result<Bytes>>,
        stop: CancellationToken,
    ) {
        let sending = async {
            let mut from = self.read(&digest.to_string()).await?;
            while let Some(piece) = self.piece(&mut from).await? {
                if to.send(Ok(piece)).await.is_err() {
                    break;
                }
            }
            Ok::<_, ContainerdError>(())
        };
        let failure = tokio::select! {
            sent = sending => match sent {
                Ok(()) => return,
                Err(error) => io::Error::other(error),
            },
            () = stop.cancelled() => io::ErrorKind::Interrupted.into(),
        };
        // Nobody is left to hear it.
        let _ = to.send(Err(failure)).await;
    }
}

#[async_trait]
impl Fetch for NamespaceContent {
    async fn fetch(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError> {
        self.document(&descriptor.digest, limit).await
    }
}

/// A layer, as it comes.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}

fn unready(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

async fn within<T>(
    stall: Duration,
    asked: impl Future<Output = Result<T, Status>>,
) -> Result<T, ContainerdError> {
    match tokio::time::timeout(stall, asked).await {
        Ok(answer) => answer.map_err(|status| ContainerdError::Refused(Box::new(status))),
        Err(_) => Err(ContainerdError::Stalled(stall)),
    }
}

async fn unary<Q, A>(
    channel: &Channel,
    stall: Duration,
    path: &'static str,
    request: Request<Q>,
) -> Result<A, ContainerdError>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let asked = async {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.map_err(unready)?;
        let codec = ProstCodec::<Q, A>::default();
        client
            .unary(request, PathAndQuery::from_static(path), codec)
            .await
    };
    Ok(within(stall, asked).await?.into_inner())
}

/// What is not there is no failure.
fn found<A>(answer: Result<A, ContainerdError>) -> Result<Option<A>, ContainerdError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ContainerdError::Refused(status)) if status.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

//! Images: here, on their way, and out again.

use super::{ListQuery, Page, problem};
use crate::client::stream::{Kind, Outcome, TypedStream};
use crate::client::{Client, ClientError, Download, error};
use crate::image::{
    CommitInstanceRequest, CreateImageRequest, ExportImageRequest, Image, ImageEvent,
    SaveImagesRequest, events,
};
use crate::push::{CreatePushRequest, PUSH, PushEvent};
use crate::storage::{
    ImageVerification, PruneImagesRequest, PruneImagesResponse, VerifyImageRequest,
};
use bytes::Bytes;
use reqwest::Method;
use std::path::PathBuf;
use std::time::Duration;

/// How long reading or removing large images may take.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(3600);

/// An OCI or docker archive, or a root-file-system tarball; plain or compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadContent {
    /// A file.
    File(PathBuf),
    /// In memory.
    Bytes(Bytes),
}

/// What is uploaded by [`Client::load_image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSource {
    /// The archive.
    pub content: LoadContent,
    /// The reference to give it.
    pub name: Option<String>,
    /// The id to give it.
    pub id: Option<String>,
}

impl Client {
    /// `GET /images`: one page.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn images_page(&self, query: &ListQuery) -> Result<Page<Image>, ClientError> {
        self.page(&["images"], query).await
    }

    /// `GET /images`: all pages.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn images(&self, query: &ListQuery) -> Result<Vec<Image>, ClientError> {
        self.all(&["images"], query).await
    }

    /// `GET /images/{id}`: by id, reference, digest or prefix.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn image(&self, id: &str) -> Result<Image, ClientError> {
        self.json(self.request(Method::GET, &["images", id])).await
    }

    /// `DELETE /images/{id}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_image(&self, id: &str) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["images", id]))
            .await
    }

    /// `POST /images/prune`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn prune_images(
        &self,
        request: &PruneImagesRequest,
    ) -> Result<PruneImagesResponse, ClientError> {
        self.post(&["images", "prune"], request, IMAGE_TIMEOUT)
            .await
    }

    /// `POST /images/verify`. Takes as long as reading the image.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn verify_image(
        &self,
        request: &VerifyImageRequest,
    ) -> Result<ImageVerification, ClientError> {
        self.post(&["images", "verify"], request, IMAGE_TIMEOUT)
            .await
    }

    /// `POST /images`: starts a pull and returns its state at once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_image(&self, request: &CreateImageRequest) -> Result<Image, ClientError> {
        self.post(&["images"], request, crate::client::REQUEST_TIMEOUT)
            .await
    }

    /// `POST /images/save`: an archive, to be read piece by piece.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn save_images(&self, request: &SaveImagesRequest) -> Result<Download, ClientError> {
        let request = self
            .request(Method::POST, &["images", "save"])
            .json(request);
        Ok(Download::new(self, self.send(request).await?))
    }

    /// `POST /images/export`: an archive with one sparse file, to be read piece by piece.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn export_image(
        &self,
        request: &ExportImageRequest,
    ) -> Result<Download, ClientError> {
        let request = self
            .request(Method::POST, &["images", "export"])
            .json(request);
        Ok(Download::new(self, self.send(request).await?))
    }

    /// `POST /images` with progress. Joins the pull again when the connection breaks; dropping the stream cancels nothing.
    pub fn pull_image(&self, request: &CreateImageRequest) -> TypedStream<ImageEvent> {
        let client = self.clone();
        let request = request.clone();
        TypedStream::new(
            self.clone(),
            Kind::Ends,
            None,
            Box::new(move || client.request(Method::POST, &["images"]).json(&request)),
            Box::new(image_event),
        )
    }

    /// `POST /instances/{id}/commit` with progress. A connection that breaks is an error: the commit goes on, and is not repeated
    /// by itself.
    pub fn commit_instance(
        &self,
        id: &str,
        request: &CommitInstanceRequest,
    ) -> TypedStream<ImageEvent> {
        let call = self
            .request(Method::POST, &["instances", id, "commit"])
            .json(request);
        TypedStream::once(self.clone(), call, Box::new(image_event))
    }

    /// `POST /pushes` with progress. Joins the push again when the connection breaks; dropping the stream cancels nothing.
    pub fn push_image(&self, request: &CreatePushRequest) -> TypedStream<PushEvent> {
        let client = self.clone();
        let request = request.clone();
        TypedStream::new(
            self.clone(),
            Kind::Ends,
            None,
            Box::new(move || client.request(Method::POST, &["pushes"]).json(&request)),
            Box::new(|message| match message.event.as_str() {
                events::PROGRESS => error::decode(message.data.as_bytes())
                    .map(|progress| Outcome::Item(PushEvent::Progress(progress))),
                PUSH => error::decode(message.data.as_bytes())
                    .map(|push| Outcome::Last(PushEvent::Done(push))),
                events::PROBLEM => Err(problem(&message.data)),
                // A newer server may say more.
                _ => Ok(Outcome::Nothing),
            }),
        )
    }

    /// `POST /images/load` with progress. A connection that breaks is an error: the upload is not repeated by itself.
    ///
    /// # Errors
    /// [`ClientError::Answer`] when the file cannot be opened.
    pub async fn load_image(
        &self,
        source: &LoadSource,
    ) -> Result<TypedStream<ImageEvent>, ClientError> {
        let (length, body) = match &source.content {
            LoadContent::Bytes(bytes) => (bytes.len() as u64, reqwest::Body::from(bytes.clone())),
            LoadContent::File(path) => {
                let unreadable = |e: std::io::Error| ClientError::Answer {
                    reason: format!("{} cannot be read: {e}", path.display()),
                };
                let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
                let length = file.metadata().await.map_err(unreadable)?.len();
                let pieces = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
                (length, reqwest::Body::wrap_stream(pieces))
            }
        };
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(source.name.clone().map(|name| ("name", name)));
        pairs.extend(source.id.clone().map(|id| ("id", id)));
        let request = self
            .request_with(Method::POST, &["images", "load"], &pairs)
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(body);
        Ok(TypedStream::once(
            self.clone(),
            request,
            Box::new(image_event),
        ))
    }
}

fn image_event(message: &crate::sse::Message) -> Result<Outcome<ImageEvent>, ClientError> {
    match message.event.as_str() {
        events::PROGRESS => error::decode(message.data.as_bytes())
            .map(|progress| Outcome::Item(ImageEvent::Progress(progress))),
        events::IMAGES => error::decode(message.data.as_bytes())
            .map(|images| Outcome::Last(ImageEvent::Done(images))),
        events::PROBLEM => Err(problem(&message.data)),
        // A newer server may say more.
        _ => Ok(Outcome::Nothing),
    }
}

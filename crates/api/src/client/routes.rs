//! One method per served route.

use super::stream::{EventItem, Kind, Outcome, Source, TypedStream};
use super::{Client, ClientError, Download, error};
use crate::event::{Event, RESET};
use crate::exec::LogEntry;
use crate::image::{
    CommitInstanceRequest, CreateImageRequest, ExportImageRequest, Image, ImageEvent,
    SaveImagesRequest, events,
};
use crate::instance::{
    CreateInstanceRequest, Instance, InstanceState, InstanceStats, StartInstanceRequest,
    UpdateInstanceRequest, WaitForStateResponse,
};
use crate::operation::Operation;
use crate::problem::Problem;
use crate::push::{CreatePushRequest, PUSH, PushEvent};
use crate::resources::{Health, Readiness, Resources};
use crate::storage::{
    ImageVerification, PruneImagesRequest, PruneImagesResponse, StorageUsage, VerifyImageRequest,
};
use crate::upkeep::{Check, Recovery};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{Method, RequestBuilder};
use std::path::PathBuf;
use std::time::Duration;
use warren_core::ports::host_link::{Follow, LogSource};

/// How long a create, start or stop may take before the server answers with what there is.
const LIFECYCLE_TIMEOUT: Duration = Duration::from_secs(90);

/// How long looking through or copying everything may take.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(600);
/// How long reading or removing large images may take.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Whether a call returns when its effect can be seen, or at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UntilReady {
    /// When the instance has started or failed, or after 30 s.
    #[default]
    Wait,
    /// At once.
    Return,
}

/// How an instance is created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// When the call returns.
    pub until: UntilReady,
    /// Makes repeating the call safe.
    pub idempotency_key: Option<String>,
}

/// What a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only these states.
    pub states: Vec<InstanceState>,
    /// Only with these labels.
    pub labels: Vec<(String, String)>,
    /// At most so many on a page.
    pub limit: Option<u32>,
    /// From an earlier page.
    pub page_token: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one starts, when there is one.
    pub next: Option<String>,
}

/// Which lines of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// Which output.
    pub source: LogSource,
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only after this line.
    pub after: Option<u64>,
    /// Whether to stay for more.
    pub follow: Follow,
}

/// What is uploaded by [`Client::load_image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSource {
    /// A file: an OCI or docker archive, or a root-file-system tarball; plain or compressed.
    pub path: PathBuf,
    /// The reference to give it.
    pub name: Option<String>,
    /// The id to give it.
    pub id: Option<String>,
}

/// The name of the header that holds the next page's token.
pub(crate) const NEXT_PAGE: &str = "x-next-page-token";

impl Client {
    /// `GET /health`.
    ///
    /// # Errors
    /// [`ClientError`]; so for every method here.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.json(self.request(Method::GET, &["health"])).await
    }

    /// `GET /ready`. A server that is not ready is [`ClientError::Refused`] with 503.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ready(&self) -> Result<Readiness, ClientError> {
        self.json(self.request(Method::GET, &["ready"])).await
    }

    /// `GET /resources`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resources(&self) -> Result<Resources, ClientError> {
        self.json(self.request(Method::GET, &["resources"])).await
    }

    /// `GET /host`: what the host says about itself, for `warren doctor`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn host(&self) -> Result<warren_core::host::HostReport, ClientError> {
        self.json(self.request(Method::GET, &["host"])).await
    }

    /// `GET /system/check`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn check(&self) -> Result<Check, ClientError> {
        self.json(self.request(Method::GET, &["system", "check"]))
            .await
    }

    /// `POST /system/repair`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn repair(&self) -> Result<Check, ClientError> {
        let request = self.request(Method::POST, &["system", "repair"]);
        self.json_within(request, UPKEEP_TIMEOUT).await
    }

    /// `POST /system/recover`; `missing` is `forget` or `recreate`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn recover(&self, missing: &str) -> Result<Recovery, ClientError> {
        let query = [("missing", missing.to_owned())];
        let request = self.request_with(Method::POST, &["system", "recover"], &query);
        self.json_within(request, UPKEEP_TIMEOUT).await
    }

    /// `POST /system/backup`: the copy's bytes, as they come.
    ///
    /// # Errors
    /// See [`ClientError`]; also in the stream, where the connection breaks off.
    pub async fn backup(
        &self,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + use<>, ClientError> {
        let request = self.request(Method::POST, &["system", "backup"]);
        let response = self.send(request.timeout(UPKEEP_TIMEOUT)).await?;
        let base = self.base().clone();
        Ok(response
            .bytes_stream()
            .map(move |chunk| chunk.map_err(|error| ClientError::from_transport(&base, &error))))
    }

    /// `GET /system/df`: what takes room.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn storage(&self) -> Result<StorageUsage, ClientError> {
        self.json(self.request(Method::GET, &["system", "df"]))
            .await
    }

    async fn page<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &ListQuery,
    ) -> Result<Page<T>, ClientError> {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(
            query
                .states
                .iter()
                .map(|state| ("state", state.to_string())),
        );
        pairs.extend(
            query
                .labels
                .iter()
                .map(|(key, value)| ("labels", format!("{key}={value}"))),
        );
        pairs.extend(query.limit.map(|limit| ("limit", limit.to_string())));
        pairs.extend(query.page_token.clone().map(|token| ("page_token", token)));
        let request = self.request_with(Method::GET, segments, &pairs);
        let response = self.send(request.timeout(super::REQUEST_TIMEOUT)).await?;
        let next = response
            .headers()
            .get(NEXT_PAGE)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = self.body(response).await?;
        Ok(Page {
            items: error::decode(&body)?,
            next,
        })
    }

    async fn all<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &ListQuery,
    ) -> Result<Vec<T>, ClientError> {
        let mut query = query.clone();
        let mut items = Vec::new();
        loop {
            let page = self.page(segments, &query).await?;
            items.extend(page.items);
            match page.next {
                Some(next) if query.page_token.as_ref() != Some(&next) => {
                    query.page_token = Some(next);
                }
                _ => return Ok(items),
            }
        }
    }

    /// `GET /instances`: one page.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn instances_page(&self, query: &ListQuery) -> Result<Page<Instance>, ClientError> {
        self.page(&["instances"], query).await
    }

    /// `GET /instances`: all pages.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn instances(&self, query: &ListQuery) -> Result<Vec<Instance>, ClientError> {
        self.all(&["instances"], query).await
    }

    /// `POST /instances`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_instance(
        &self,
        request: &CreateInstanceRequest,
        options: &CreateOptions,
    ) -> Result<Instance, ClientError> {
        let mut query = Vec::new();
        if options.until == UntilReady::Return {
            query.push(("wait", "none".to_owned()));
        }
        let mut call = self.request_with(Method::POST, &["instances"], &query);
        if let Some(key) = &options.idempotency_key {
            call = call.header("idempotency-key", key);
        }
        self.json_within(call.json(request), LIFECYCLE_TIMEOUT)
            .await
    }

    /// `GET /instances/{id}`: by id, name or prefix.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn instance(&self, id: &str) -> Result<Instance, ClientError> {
        self.json(self.request(Method::GET, &["instances", id]))
            .await
    }

    /// `PATCH /instances/{id}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn update_instance(
        &self,
        id: &str,
        request: &UpdateInstanceRequest,
    ) -> Result<Instance, ClientError> {
        self.json(
            self.request(Method::PATCH, &["instances", id])
                .json(request),
        )
        .await
    }

    /// `DELETE /instances/{id}`: by id or name. Returns when nothing is left of it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_instance(&self, id: &str) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["instances", id]))
            .await
    }

    /// `POST /instances/{id}/start`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_instance(
        &self,
        id: &str,
        request: &StartInstanceRequest,
    ) -> Result<Instance, ClientError> {
        self.post(&["instances", id, "start"], request, LIFECYCLE_TIMEOUT)
            .await
    }

    /// `POST /instances/{id}/stop`. May take as long as the instance's grace period.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop_instance(&self, id: &str) -> Result<Instance, ClientError> {
        self.json_within(
            self.request(Method::POST, &["instances", id, "stop"]),
            Duration::from_secs(3700),
        )
        .await
    }

    /// `POST /instances/{id}/pause`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pause_instance(&self, id: &str) -> Result<Instance, ClientError> {
        self.json(self.request(Method::POST, &["instances", id, "pause"]))
            .await
    }

    /// `POST /instances/{id}/resume`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resume_instance(&self, id: &str) -> Result<Instance, ClientError> {
        self.json(self.request(Method::POST, &["instances", id, "resume"]))
            .await
    }

    /// `GET /instances/{id}/wait`: until the state, a final other one, or the time is up.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait_for_state(
        &self,
        id: &str,
        state: InstanceState,
        timeout: Duration,
    ) -> Result<WaitForStateResponse, ClientError> {
        let query = [
            ("state", state.to_string()),
            ("timeout", format!("{}ms", timeout.as_millis())),
        ];
        let request = self.request_with(Method::GET, &["instances", id, "wait"], &query);
        self.json_within(request, timeout + super::REQUEST_TIMEOUT)
            .await
    }

    /// `GET /instances/{id}/stats`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn instance_stats(&self, id: &str) -> Result<InstanceStats, ClientError> {
        self.json(self.request(Method::GET, &["instances", id, "stats"]))
            .await
    }

    /// `GET /instances/{id}/logs`, line by line. Resumes after the last line it gave when the connection breaks.
    pub fn logs(&self, id: &str, query: LogsQuery) -> TypedStream<LogEntry> {
        let mut pairs: Vec<(&str, String)> = vec![("format", "json".into())];
        let source = match query.source {
            LogSource::Workload => "workload",
            LogSource::Console => "console",
            LogSource::Vmm => "vmm",
        };
        pairs.push(("source", source.into()));
        if query.follow == Follow::Yes {
            pairs.push(("follow", "true".into()));
        }
        pairs.extend(query.tail.map(|tail| ("tail", tail.to_string())));
        let client = self.clone();
        let id = id.to_owned();
        TypedStream::new(
            self.clone(),
            Kind::Ends,
            query.after.map(|after| after.to_string()),
            Box::new(move || client.request_with(Method::GET, &["instances", &id, "logs"], &pairs)),
            Box::new(|message| match message.event.as_str() {
                events::PROBLEM => Err(problem(&message.data)),
                _ => error::decode(message.data.as_bytes()).map(Outcome::Item),
            }),
        )
    }

    /// `GET /events` from now on, or from after the event with the id `after`. Resumes when the connection breaks; never ends by itself.
    pub fn events(&self, after: Option<u64>) -> TypedStream<EventItem> {
        let client = self.clone();
        TypedStream::new(
            self.clone(),
            Kind::Endless,
            after.map(|after| after.to_string()),
            Box::new(move || client.request(Method::GET, &["events"])),
            Box::new(|message| match message.event.as_str() {
                RESET => Ok(Outcome::Item(EventItem::Reset)),
                events::PROBLEM => Err(problem(&message.data)),
                _ => {
                    let event: Event = error::decode(message.data.as_bytes())?;
                    Ok(Outcome::Item(EventItem::Event {
                        id: message.id.as_deref().and_then(|id| id.parse().ok()),
                        event,
                    }))
                }
            }),
        )
    }

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
        self.post(&["images"], request, super::REQUEST_TIMEOUT)
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

    /// `GET /instances/{id}/debug-bundle`: a gzipped tar archive of everything that is known of an instance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn debug_bundle(&self, id: &str) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, &["instances", id, "debug-bundle"]);
        let response = self.send(request.timeout(LIFECYCLE_TIMEOUT)).await?;
        self.body(response).await
    }

    /// `GET /operations`: everything long that the server does or has done of late, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        self.json(self.request(Method::GET, &["operations"])).await
    }

    /// `GET /operations/{id}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.json(self.request(Method::GET, &["operations", id]))
            .await
    }

    /// `DELETE /operations/{id}`: cancels it, and returns how it ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.json(self.request(Method::DELETE, &["operations", id]))
            .await
    }

    /// `POST /images/load` with progress. A connection that breaks is an error: the upload is not repeated by itself.
    ///
    /// # Errors
    /// [`ClientError::Answer`] when the file cannot be opened.
    pub async fn load_image(
        &self,
        source: &LoadSource,
    ) -> Result<TypedStream<ImageEvent>, ClientError> {
        let unreadable = |e: std::io::Error| ClientError::Answer {
            reason: format!("{} cannot be read: {e}", source.path.display()),
        };
        let file = tokio::fs::File::open(&source.path)
            .await
            .map_err(unreadable)?;
        let length = file.metadata().await.map_err(unreadable)?.len();
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(source.name.clone().map(|name| ("name", name)));
        pairs.extend(source.id.clone().map(|id| ("id", id)));
        let request = self
            .request_with(Method::POST, &["images", "load"], &pairs)
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(reqwest::Body::wrap_stream(
                tokio_util::io::ReaderStream::with_capacity(file, 256 << 10),
            ));
        Ok(TypedStream::once(
            self.clone(),
            request,
            Box::new(image_event),
        ))
    }
}

fn problem(data: &str) -> ClientError {
    match error::decode::<Problem>(data.as_bytes()) {
        Ok(problem) => ClientError::Refused(Box::new(problem.into())),
        Err(error) => error,
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

impl Source for RequestBuilder {
    fn accept_events(self, last_event_id: Option<&str>) -> RequestBuilder {
        let request = self.header("accept", "text/event-stream");
        match last_event_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        }
    }
}

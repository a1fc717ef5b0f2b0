//! The server itself: its host, its record, what goes on.

use super::problem;
use crate::client::stream::{EventItem, Kind, Outcome, TypedStream};
use crate::client::{Client, ClientError, error};
use crate::event::{Event, RESET};
use crate::image::events;
use crate::operation::Operation;
use crate::resources::{Health, Readiness, Resources};
use crate::storage::StorageUsage;
use crate::upkeep::{Check, Recovery};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::Method;
use std::time::Duration;

/// How long looking through or copying everything may take.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(600);

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
}

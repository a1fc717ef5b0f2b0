//! Instances, and what they write.

use super::{LIFECYCLE_TIMEOUT, ListQuery, Page, STANDBY_TIMEOUT, problem};
use crate::client::stream::{Kind, Outcome, TypedStream};
use crate::client::{Client, ClientError, error};
use crate::exec::LogEntry;
use crate::image::events;
use crate::instance::{
    CreateInstanceRequest, Instance, InstanceState, StandbyInstanceRequest, StartInstanceRequest,
    UpdateInstanceRequest, WaitForStateResponse,
};
use crate::stats::InstanceStats;
use reqwest::Method;
use std::time::Duration;
use time::format_description::well_known::Rfc3339;
use warren_core::ports::host_link::{Follow, LogPeriod, LogSource};

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

/// Which lines of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// Which output.
    pub source: LogSource,
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only after this line.
    pub after: Option<u64>,
    /// Only what was written at these times.
    pub period: LogPeriod,
    /// Whether to stay for more.
    pub follow: Follow,
}

impl Client {
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

    /// `POST /instances/{id}/standby`. May take as long as writing its memory does.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn standby_instance(
        &self,
        id: &str,
        request: &StandbyInstanceRequest,
    ) -> Result<Instance, ClientError> {
        self.post(&["instances", id, "standby"], request, STANDBY_TIMEOUT)
            .await
    }

    /// `POST /instances/{id}/restore`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn restore_instance(&self, id: &str) -> Result<Instance, ClientError> {
        let request = self.request(Method::POST, &["instances", id, "restore"]);
        self.json_within(request, STANDBY_TIMEOUT).await
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
        self.json_within(request, timeout + crate::client::REQUEST_TIMEOUT)
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
        for (name, time) in [("since", query.period.since), ("until", query.period.until)] {
            // A time that RFC 3339 cannot hold bounds nothing that a log has.
            let time = time.and_then(|time| time.format(&Rfc3339).ok());
            pairs.extend(time.map(|time| (name, time)));
        }
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

    /// `GET /instances/{id}/debug-bundle`: a gzipped tar archive of everything that is known of an instance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn debug_bundle(&self, id: &str) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, &["instances", id, "debug-bundle"]);
        let response = self.send(request.timeout(LIFECYCLE_TIMEOUT)).await?;
        self.body(response).await
    }
}

//! Reading: one instance, pages of many, waits, statistics, resources. Reads never write.

use super::{App, AppError, View, Waiting};
use crate::metrics::Now;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{StreamExt, stream};
use std::time::Duration;
use warren_api::convert::state_error;
use warren_api::resources::{PartStatus, ResourceAllocation, ResourceStatus};
use warren_api::{Code, InstanceStats, Readiness, Resources, WaitForStateResponse};
use warren_core::InstanceId;
use warren_core::id::Prefixes;
use warren_core::instance::Desired;
use warren_core::placement::{Capacity, capacity};
use warren_core::state::StateName;

/// How long a scrape waits for what instances use: longer than for one guest that is silent.
const USAGE_PATIENCE: Duration = Duration::from_secs(3);
/// Instances that are asked at the same time.
const USAGE_AT_ONCE: usize = 64;

/// What a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these states; all when empty.
    pub states: Vec<StateName>,
    /// All of these labels.
    pub labels: Vec<(String, String)>,
}

impl Filter {
    pub(super) fn admits(
        &self,
        state: Option<StateName>,
        labels: &std::collections::BTreeMap<String, String>,
    ) -> bool {
        state.is_none_or(|state| self.states.is_empty() || self.states.contains(&state))
            && self
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// At most so many.
    pub limit: usize,
    /// After the last one of an earlier page.
    pub token: Option<String>,
}

/// The largest page, and the one given when none is asked for.
const LARGEST_PAGE: usize = 1000;

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageOf<T> {
    /// In the order of their ids.
    pub items: Vec<T>,
    /// Where the next one starts.
    pub next: Option<String>,
}

impl<T> PageOf<T> {
    /// Cuts a page out of everything, which is sorted by `id`.
    pub(super) fn cut(
        all: impl IntoIterator<Item = T>,
        request: &PageRequest,
        id: impl Fn(&T) -> String,
    ) -> Result<Self, AppError> {
        let after = request.token.as_deref().map(decode_token).transpose()?;
        let mut rest = all
            .into_iter()
            .filter(|item| after.as_ref().is_none_or(|after| id(item) > *after));
        let items: Vec<T> = rest
            .by_ref()
            .take(request.limit.clamp(1, LARGEST_PAGE))
            .collect();
        let next = match (rest.next(), items.last()) {
            (Some(_), Some(last)) => Some(token_after(&id(last))),
            _ => None,
        };
        Ok(PageOf { items, next })
    }
}

fn token_after(id: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("after:{id}"))
}

fn not_our_token() -> AppError {
    AppError::coded(
        Code::InvalidPageToken,
        "the page_token is none of ours: take it from the answer before",
    )
}

fn decode_token(token: &str) -> Result<String, AppError> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix("after:").map(str::to_owned))
        .ok_or_else(not_our_token)
}

/// The end of a wait.
pub type Waited = WaitForStateResponse;

impl App {
    /// The instance that `wanted` names: id, name, or prefix.
    ///
    /// # Errors
    /// Missing or ambiguous.
    pub fn instance(&self, wanted: &str) -> Result<View, AppError> {
        self.find(wanted, Prefixes::Accepted)
    }

    /// The same without prefixes, for those whose names are made by programs.
    ///
    /// # Errors
    /// Missing.
    pub fn instance_in_full(&self, wanted: &str) -> Result<View, AppError> {
        self.find(wanted, Prefixes::Refused)
    }

    /// All instances, in the order of their ids.
    pub fn all_instances(&self) -> Vec<View> {
        self.0.board.all()
    }

    /// A page of instances.
    ///
    /// # Errors
    /// A page token that is none.
    pub fn instances(&self, filter: &Filter, page: &PageRequest) -> Result<PageOf<View>, AppError> {
        let after = page.token.as_deref().map(decode_token).transpose()?;
        let after: Option<InstanceId> =
            (after.as_deref().map(str::parse).transpose()).map_err(|_| not_our_token())?;
        let most = page.limit.clamp(1, LARGEST_PAGE);
        // One more than is asked for tells whether there is a next page.
        let mut items = self.0.board.page(after.as_ref(), most + 1, |view| {
            filter.admits(Some(view.status.state.name()), &view.intent.spec.labels)
        });
        let more = items.len() > most;
        items.truncate(most);
        let last = items.last().filter(|_| more);
        let next = last.map(|last| token_after(last.intent.id.as_str()));
        Ok(PageOf { items, next })
    }

    /// Waits until the state, another final one, or the time is up.
    ///
    /// # Errors
    /// Missing or ambiguous; missing too when it is deleted meanwhile.
    pub async fn wait_for(
        &self,
        wanted: &str,
        state: StateName,
        limit: Duration,
    ) -> Result<Waited, AppError> {
        let id = self.find(wanted, Prefixes::Accepted)?.intent.id.clone();
        let waited = self
            .wait_until(&id, limit, |view| {
                view.is_current() && (view.status.state.name() == state || view.has_ended())
            })
            .await;
        let (view, timed_out) = match waited {
            Waiting::Done(view) => (view, false),
            Waiting::TimedOut(view) => {
                let reached = view.is_current() && view.status.state.name() == state;
                (view, !reached)
            }
            Waiting::Gone => return Err(AppError::no_instance(wanted)),
        };
        Ok(WaitForStateResponse {
            state: view.status.state.name().into(),
            state_error: state_error(&view.status),
            exit_code: view.status.exit.as_ref().and_then(|exit| exit.code),
            timed_out,
        })
    }

    /// Resources an instance uses.
    ///
    /// # Errors
    /// Missing or ambiguous; the host's errors.
    pub async fn stats(&self, wanted: &str) -> Result<InstanceStats, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        let usage = self.0.host.usage(&view.intent.id).await?;
        Ok(warren_api::stats::of(&view.intent, &usage))
    }

    /// The host's resources and who was promised what.
    ///
    /// # Errors
    /// The host's.
    pub async fn resources(&self) -> Result<Resources, AppError> {
        let report = self.0.host.report().await?;
        let room: Capacity = capacity(report.cpus, report.memory, self.0.settings.overcommit);
        let views = self.0.board.all();
        let running: Vec<&View> = views.iter().filter(|view| view.takes_room()).collect();
        let vcpus: u64 = running.iter().map(|v| u64::from(v.intent.spec.vcpus)).sum();
        let memory: u64 = running.iter().map(|v| v.intent.spec.memory.bytes()).sum();
        let disk: u64 = views.iter().map(|v| v.intent.spec.disk.0).sum();
        let addresses = views.iter().filter(|v| v.intent.address.is_some()).count() as u64;
        let pool = report
            .network
            .subnet
            .as_ref()
            .map_or(0, |subnet| subnet.capacity() as u64);
        Ok(Resources {
            cpu: resource(
                "cpu",
                report.cpus.into(),
                room.vcpus.into(),
                vcpus,
                "the kernel",
            ),
            memory: resource(
                "memory",
                report.memory.bytes(),
                room.memory.bytes(),
                memory,
                "the kernel",
            ),
            disk: ResourceStatus {
                available: report.disk_free,
                ..resource(
                    "disk",
                    report.disk_total,
                    report.disk_total,
                    disk,
                    "the file system",
                )
            },
            network: resource(
                "network",
                pool,
                pool,
                addresses,
                "addresses of the guest network",
            ),
            allocations: views
                .iter()
                .filter(|view| view.intent.desired != Desired::Deleted)
                .map(|view| ResourceAllocation {
                    instance_id: view.intent.id.to_string(),
                    instance_name: view.intent.spec.name.clone(),
                    cpu: view.intent.spec.vcpus.into(),
                    memory_bytes: view.intent.spec.memory.bytes(),
                    disk_bytes: view.intent.spec.disk.0,
                })
                .collect(),
        })
    }

    /// Whether the store and the host answer.
    pub async fn readiness(&self) -> Readiness {
        let store = self
            .0
            .store
            .revision()
            .await
            .map(drop)
            .map_err(|e| e.sentence());
        let host = self.0.connected.borrow().clone();
        let part = |name: &str, state: Result<(), String>| PartStatus {
            name: name.to_owned(),
            ready: state.is_ok(),
            reason: state.err(),
        };
        let record = self.doubt().map_or(Ok(()), |why| {
            Err(format!("{why}: run `warren system recover`"))
        });
        let parts = vec![
            part("store", store),
            part("host", host),
            part("record", record),
        ];
        Readiness {
            ready: parts.iter().all(|part| part.ready),
            parts,
        }
    }

    /// What running instances use, as far as it is known within [`USAGE_PATIENCE`].
    async fn usage_of_running(&self) -> Vec<InstanceStats> {
        let running = self.0.board.all().into_iter();
        let running = running.filter(|view| view.status.state.name() == StateName::Running);
        let asked = running.map(async |view| {
            let usage = self.0.host.usage(&view.intent.id).await.ok()?;
            Some(warren_api::stats::of(&view.intent, &usage))
        });
        let known = stream::iter(asked).buffer_unordered(USAGE_AT_ONCE);
        let in_time = known.take_until(self.0.clock.sleep(USAGE_PATIENCE));
        in_time.filter_map(std::future::ready).collect().await
    }

    /// Metrics in the OpenMetrics text format. An instance whose guest is silent is in them with what the host knows, or, where
    /// there are too many of that kind, not at all.
    pub async fn metrics_text(&self) -> String {
        let usage = self.usage_of_running().await;
        let states = self
            .0
            .board
            .all()
            .into_iter()
            .map(|view| view.status.state.name());
        self.0.metrics.text(Now {
            states,
            pulls: self.jobs_running(),
            operations: self.operations_under_way(),
            starts: self.starts_under_way(),
            usage,
        })
    }
}

fn resource(kind: &str, capacity: u64, limit: u64, allocated: u64, source: &str) -> ResourceStatus {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio for people: 52 bits are plenty"
    )]
    let ratio = if capacity == 0 {
        1.0
    } else {
        limit as f64 / capacity as f64
    };
    ResourceStatus {
        kind: kind.to_owned(),
        capacity,
        effective_limit: limit,
        allocated,
        available: limit.saturating_sub(allocated),
        oversub_ratio: ratio,
        source: Some(source.to_owned()),
    }
}

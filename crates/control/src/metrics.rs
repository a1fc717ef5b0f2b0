//! Numbers for Prometheus, in the OpenMetrics text format.

mod instances;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use warren_api::{InstanceStats, OperationKind};
use warren_core::state::StateName;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum PullOutcome {
    Done,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    outcome: PullOutcome,
}

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabels, Histogram>,
    instances: Family<StateLabels, Gauge>,
    pulls: Family<PullLabels, Counter>,
    pulls_running: Gauge,
    operations: Family<KindLabels, Gauge>,
    starts_running: Gauge,
}

/// What is counted when somebody asks.
pub(crate) struct Now<S> {
    /// The state of each instance.
    pub(crate) states: S,
    /// Images on their way in, and waiting to be.
    pub(crate) pulls: usize,
    /// Operations that have not ended, by kind.
    pub(crate) operations: Vec<(OperationKind, usize)>,
    /// Instances on their way up.
    pub(crate) starts: usize,
    /// What instances use.
    pub(crate) usage: Vec<InstanceStats>,
}

fn gauge<N: TryInto<i64>>(count: N) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("warren");
        let requests = Family::default();
        let latency = Family::<RouteLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 3.0, 11))
        });
        let instances = Family::default();
        let pulls = Family::default();
        let pulls_running = Gauge::default();
        let operations = Family::default();
        let starts_running = Gauge::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Time from a request to the head of its answer",
            latency.clone(),
        );
        registry.register("instances", "Instances by state", instances.clone());
        registry.register("image_imports", "Pulls and loads ended", pulls.clone());
        registry.register(
            "image_imports_running",
            "Pulls and loads queued or under way",
            pulls_running.clone(),
        );
        registry.register(
            "operations_running",
            "Operations queued or under way",
            operations.clone(),
        );
        registry.register(
            "instance_starts_running",
            "Instances on their way up",
            starts_running.clone(),
        );
        Metrics {
            registry,
            requests,
            latency,
            instances,
            pulls,
            pulls_running,
            operations,
            starts_running,
        }
    }

    /// `route` is the pattern and never the path: paths have no bound.
    pub(crate) fn answered(
        &self,
        method: &'static str,
        route: &Arc<str>,
        status: u16,
        took: Duration,
    ) {
        self.requests
            .get_or_create(&RequestLabels {
                method,
                route: Arc::clone(route),
                status,
            })
            .inc();
        self.latency
            .get_or_create(&RouteLabels {
                method,
                route: Arc::clone(route),
            })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn pull_ended(&self, done: bool) {
        let outcome = if done {
            PullOutcome::Done
        } else {
            PullOutcome::Failed
        };
        self.pulls.get_or_create(&PullLabels { outcome }).inc();
    }

    pub(crate) fn text(&self, now: Now<impl Iterator<Item = StateName>>) -> String {
        let mut counts = std::collections::BTreeMap::from(StateName::ALL.map(|s| (s, 0i64)));
        for state in now.states {
            *counts.entry(state).or_default() += 1;
        }
        for (state, count) in counts {
            self.instances
                .get_or_create(&StateLabels {
                    state: state.to_string(),
                })
                .set(count);
        }
        self.pulls_running.set(gauge(now.pulls));
        self.starts_running.set(gauge(now.starts));
        for (kind, count) in now.operations {
            let kind = kind.to_string();
            self.operations
                .get_or_create(&KindLabels { kind })
                .set(gauge(count));
        }
        let mut text = String::new();
        for registry in [&self.registry, &instances::registry(&now.usage)] {
            encode_registry(&mut text, registry).expect("a String takes everything");
        }
        encode_eof(&mut text).expect("a String takes everything");
        text
    }
}

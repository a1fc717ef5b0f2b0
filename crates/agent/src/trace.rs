//! Traces of what an instance's changes took: a span for the change, under the request that asked for it; one for each
//! step; and the guest's own boot, as the guest reports it.
//!
//! The spans have a target of their own: a log leaves them out, an exporter takes them in. Without an exporter
//! nothing here costs more than a look at a flag.

use crate::guest_session::Booted;
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use warren_core::instance::InstanceIntent;
use warren_core::planner::Step;
use warren_core::{PortError, TRACE_TARGET};

/// Who asked for a change: kept until the actor begins with it.
#[derive(Default)]
pub(crate) struct Cause(Mutex<Option<Context>>);

impl Cause {
    /// Whoever is at work now.
    pub(crate) fn here() -> Self {
        Cause(Mutex::new(Some(Context::current())))
    }

    /// Takes over the other one's.
    pub(crate) fn replace(&self, other: &Cause) {
        let cause = other.take();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    fn take(&self) -> Option<Context> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One change of an instance, while it is being made.
#[derive(Default)]
pub(crate) struct Change(Option<Span>);

impl Change {
    /// Begins one, unless one is under way and nobody asked for another.
    pub(crate) fn begin(&mut self, intent: &InstanceIntent, cause: &Cause) {
        let asked = cause.take();
        if asked.is_none() && self.0.is_some() {
            return;
        }
        let span = tracing::info_span!(
            target: TRACE_TARGET,
            "converge",
            instance = %intent.id,
            name = %intent.spec.name,
            generation = intent.generation,
            run = intent.run,
            desired = ?intent.desired,
        );
        if let Some(asked) = asked {
            // Only fails where nobody listens.
            let _ = span.set_parent(asked);
        }
        self.0 = Some(span);
    }

    /// It is made.
    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// A span for one of its steps.
    pub(crate) fn step(&self, step: Step) -> Span {
        let Some(change) = &self.0 else {
            return Span::none();
        };
        tracing::info_span!(
            target: TRACE_TARGET,
            parent: change,
            "step",
            "otel.name" = step_name(step),
            "otel.status_code" = tracing::field::Empty,
            "otel.status_description" = tracing::field::Empty,
        )
    }

    /// Adds the guest's boot, which ended when this host heard of it.
    pub(crate) fn guest_booted(&self, booted: Booted) {
        let (report, ready) = (booted.report, SystemTime::from(booted.heard));
        let Some(change) = &self.0 else { return };
        let parent = change.context();
        if !parent.span().span_context().is_valid() {
            return;
        }
        let tracer = opentelemetry::global::tracer("warren-guest");
        let at = |millis: u64| {
            let before = Duration::from_millis(report.ready_millis.saturating_sub(millis));
            ready.checked_sub(before).unwrap_or(ready)
        };
        let span = |name: &'static str, from: u64, parent: &Context| {
            tracer
                .span_builder(name)
                .with_start_time(at(from))
                .with_attributes([KeyValue::new("clock", "guest, since its kernel started")])
                .start_with_context(&tracer, parent)
        };
        let whole = span("guest boot", 0, &parent);
        let whole = parent.with_span(whole);
        let waited = report.config_millis.min(report.ready_millis);
        for (name, from, to) in [
            ("guest: kernel", 0, report.init_millis),
            ("guest: channel", report.init_millis, report.port_millis),
            (
                "guest: root mounted",
                report.init_millis,
                report.root_millis,
            ),
            ("guest: waits for the host", report.port_millis, waited),
            ("guest: becomes the instance", waited, report.ready_millis),
        ] {
            span(name, from, &whole).end_with_timestamp(at(to.max(from)));
        }
        whole.span().end_with_timestamp(ready);
    }
}

/// Writes a step's failure into its span.
pub(crate) fn failed(span: &Span, error: &PortError) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", error.sentence());
}

/// What a step is called, in traces and among the phases of a start.
pub(crate) fn step_name(step: Step) -> &'static str {
    match step {
        Step::RecordIntent => "record",
        Step::EnsureImage => "image",
        Step::EnsureDisk => "disk",
        Step::EnsureNetwork => "network",
        Step::StartVmm => "vmm",
        Step::AttachGuest => "kernel",
        Step::BootGuest => "guest",
        Step::Pause => "pause",
        Step::SaveMachine => "save",
        Step::RestoreVmm => "restore",
        Step::RemoveSaved => "remove saved",
        Step::Resume => "resume",
        Step::ShutDownGuest => "shut down",
        Step::RecordExit => "record exit",
        Step::DestroyVmm => "destroy vmm",
        Step::ReleaseNetwork => "release network",
        Step::RemoveDisk => "remove disk",
        Step::RemoveDirectory => "remove directory",
    }
}

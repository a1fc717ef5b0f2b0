//! What a server tells of itself while it runs: its log, on standard error, and traces, to whoever collects them with
//! OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/>). Metrics are asked for, at `/metrics`.

use super::config::{Config, LogFormat};
use anyhow::Context as _;
use async_trait::async_trait;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};
use warren_core::TRACE_TARGET;

/// A collector that takes longer gets nothing of this batch.
const EXPORT_PATIENCE: Duration = Duration::from_secs(10);
/// What is not delivered so long after the end is lost.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// The environment's own ways to say where traces go, which the exporter reads
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
const STANDARD: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// The running log and, where one is wanted, the exporter of traces.
pub(super) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts both for the whole process. Must be called in a runtime.
    ///
    /// # Errors
    /// A sentence about the endpoint for traces.
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        let traces = exporting(config)?;
        let spans = traces.as_ref().map(|provider| {
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
            opentelemetry::global::set_tracer_provider(provider.clone());
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("warren"))
                .with_location(false)
                .with_threads(false)
                .with_filter(Targets::new().with_target(TRACE_TARGET, tracing::Level::INFO))
        });
        tracing_subscriber::registry()
            .with(log(config))
            .with(spans)
            .init();
        Ok(Telemetry { traces })
    }

    /// Delivers what is left.
    pub(super) async fn flush(self) {
        let Some(traces) = self.traces else { return };
        let shut =
            tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(FLUSH_PATIENCE));
        match tokio::time::timeout(FLUSH_PATIENCE, shut).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last traces were not delivered"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last traces were not delivered in time"),
        }
    }
}

/// Whether the log is coloured: it goes to a terminal, and nobody said no (<https://no-color.org>).
fn is_coloured(is_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
    is_terminal && no_color.is_none_or(std::ffi::OsStr::is_empty)
}

fn log(config: &Config) -> Box<dyn Layer<Registry> + Send + Sync> {
    let no_color = std::env::var_os("NO_COLOR");
    let coloured = is_coloured(std::io::stderr().is_terminal(), no_color.as_deref());
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let silence = format!("{TRACE_TARGET}=off");
    let filter = filter.add_directive(silence.parse().expect("a target and a level"));
    match config.log_format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_ansi(coloured)
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            // The list of spans has it.
            .with_current_span(false)
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
    }
}

/// The exporter, where somebody said where to.
fn exporting(config: &Config) -> anyhow::Result<Option<SdkTracerProvider>> {
    let standard = STANDARD
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let disabled =
        std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    if disabled || (config.otlp_endpoint.is_none() && !standard) {
        return Ok(None);
    }
    let client = OverReqwest {
        client: reqwest::Client::builder()
            .timeout(EXPORT_PATIENCE)
            .build()
            .context("cannot make an HTTP client for traces")?,
        runtime: tokio::runtime::Handle::current(),
        failing: AtomicBool::new(false),
    };
    let mut exporter = SpanExporter::builder().with_http().with_http_client(client);
    if let Some(endpoint) = &config.otlp_endpoint {
        let base = endpoint.trim_end_matches('/');
        exporter = exporter.with_endpoint(format!("{base}/v1/traces"));
    }
    let exporter = exporter
        .build()
        .context("otlp_endpoint: traces cannot be sent there")?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("warren");
    }
    Ok(Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build(),
    ))
}

/// Sends over the client that everything else uses. The exporter has a thread of its own, without a runtime.
#[derive(Debug)]
struct OverReqwest {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
    /// Whether it was said already that nothing arrives.
    failing: AtomicBool,
}

#[async_trait]
impl HttpClient for OverReqwest {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let answer = client
                .execute(request.try_into()?)
                .await?
                .error_for_status()?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            Ok::<_, HttpError>(response.body(answer.bytes().await?)?)
        };
        let sent = self.runtime.spawn(sending).await?;
        let failing = sent.is_err();
        if let Err(error) = &sent
            && !self.failing.load(Ordering::Relaxed)
        {
            tracing::warn!(%error, "traces do not arrive; everything else goes on without them");
        }
        self.failing.store(failing, Ordering::Relaxed);
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn only_a_terminal_that_nobody_minds_gets_colours() {
        assert!(is_coloured(true, None));
        assert!(is_coloured(true, Some(OsStr::new(""))));
        assert!(!is_coloured(true, Some(OsStr::new("1"))));
        assert!(!is_coloured(false, None));
    }
}

//! A create as a trace: a collector that speaks OTLP is told what the request, the actor, the VMM and the guest did, and
//! when.

use crate::harness::{Mode, Server, eventually, missing, skip};
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Text;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// The caller's own place in a trace (<https://www.w3.org/TR/trace-context/#traceparent-header>).
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: [u8; 16] = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
const PARENT: [u8; 8] = 0xb7ad_6b71_6920_3331_u64.to_be_bytes();
/// How far the guest's account of its boot may be from the host's: its clock starts a little after the VMM's, and what it
/// says is heard a little later.
const SLACK: u64 = 50_000_000;

/// Spans leave in batches after so many milliseconds.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

type Heard = Arc<Mutex<Vec<Span>>>;

struct Collector {
    url: String,
    heard: Heard,
    _runtime: tokio::runtime::Runtime,
}

async fn take_in(State(heard): State<Heard>, body: axum::body::Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut heard = heard.lock().unwrap();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap().attributes;
        let service = attributes.iter().find(|key| key.key == "service.name");
        let service = service.unwrap().value.as_ref().unwrap().value.as_ref();
        assert_eq!(service, Some(&Text::StringValue("warren".into())));
        heard.extend(
            resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans),
        );
    }
}

impl Collector {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Heard::default();
        let app = axum::Router::new()
            .route("/v1/traces", post(take_in))
            .with_state(Arc::clone(&heard));
        runtime.spawn(async move { axum::serve(listener, app).await });
        Collector {
            url,
            heard,
            _runtime: runtime,
        }
    }

    fn named(&self, name: &str) -> Option<Span> {
        let heard = self.heard.lock().unwrap();
        heard.iter().find(|span| span.name == name).cloned()
    }

    fn wait_for(&self, name: &str) -> Span {
        eventually(&format!("the span {name:?}"), 15, || self.named(name))
    }
}

fn instance() -> Value {
    json!({"id": "traced", "name": "traced", "image": "busybox-web", "memory_mb": 128, "overlay_size": "16MB",
           "cmd": ["sleep", "1000"]})
}

/// It happened during the other, give or take.
fn within(inner: &Span, outer: &Span, slack: u64) -> bool {
    inner.start_time_unix_nano <= inner.end_time_unix_nano
        && inner.start_time_unix_nano + slack >= outer.start_time_unix_nano
        && inner.end_time_unix_nano <= outer.end_time_unix_nano + slack
}

fn one_create_is_one_trace(name: &str, environment: &[(&str, &str)], guest: &[&str]) {
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(name, &reason);
    }
    let collector = Collector::start();
    let mut all = vec![("WARREN_OTLP_ENDPOINT", collector.url.as_str()), SOON];
    all.extend(environment);
    let mut server = Server::start_in(Mode::Bridge, &all);
    let headers = [("traceparent", CALLER)];
    let made = server.try_api_with("POST", "/instances", Some(instance()), &headers);
    assert_eq!(made, Some(201), "{}", server.log());
    let request = collector.wait_for("POST /instances");
    assert_eq!(request.trace_id, TRACE);
    assert_eq!(request.parent_span_id, PARENT);
    assert_eq!(request.kind, 2, "a server's span");
    let change = collector.wait_for("converge");
    assert_eq!(change.trace_id, TRACE);
    assert_eq!(change.parent_span_id, request.span_id);
    for step in [
        "record", "image", "disk", "network", "vmm", "kernel", "guest",
    ] {
        let span = collector.wait_for(step);
        assert_eq!(span.trace_id, TRACE, "{step}");
        assert_eq!(span.parent_span_id, change.span_id, "{step}");
        assert!(within(&span, &change, 0), "{step}: {span:?} {change:?}");
    }
    for part in guest {
        let span = collector.wait_for(part);
        assert_eq!(span.trace_id, TRACE, "{part}");
        assert!(within(&span, &change, SLACK), "{part}: {span:?} {change:?}");
    }
    // What fails says why, in the trace of whoever asked.
    let (status, _) = server.api("GET", "/instances/nobody-there", None);
    assert_eq!(status, 404);
    collector.wait_for("GET /instances/{id}");
    let (status, answer) = server.api("DELETE", "/instances/traced", None);
    assert_eq!(status, 204, "{answer}");
    // What is left is delivered when the server ends.
    let ended = server.terminate();
    assert!(ended.success(), "{}", server.log());
    let removed = collector.named("remove directory");
    assert!(removed.is_some(), "{:?}", collector.heard.lock().unwrap());
    assert!(!server.log().contains("traces"), "{}", server.log());
}

#[test]
fn a_create_is_one_trace_from_the_callers_request_on() {
    const NAME: &str = "a_create_is_one_trace_from_the_callers_request_on";
    one_create_is_one_trace(NAME, &[("WARREN_HYPERVISORS", "[fake]")], &["guest boot"]);
}

#[test]
fn a_real_guests_boot_is_part_of_the_trace() {
    const NAME: &str = "a_real_guests_boot_is_part_of_the_trace";
    let boot = [
        "guest boot",
        "guest: kernel",
        "guest: channel",
        "guest: root mounted",
        "guest: waits for the host",
        "guest: becomes the instance",
    ];
    one_create_is_one_trace(NAME, &[], &boot);
}

#[test]
fn a_collector_that_is_not_there_is_said_once_and_harms_nothing() {
    const NAME: &str = "a_collector_that_is_not_there_is_said_once_and_harms_nothing";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let nowhere = format!("http://127.0.0.1:{}", crate::harness::free_port());
    let environment = [
        ("WARREN_HYPERVISORS", "[fake]"),
        ("WARREN_OTLP_ENDPOINT", &nowhere),
        SOON,
    ];
    let mut server = Server::start_in(Mode::Bridge, &environment);
    const SAID: &str = "traces do not arrive";
    for _ in 0..3 {
        let (status, made) = server.api("POST", "/instances", Some(instance()));
        assert_eq!(status, 201, "{made}");
        let (status, _) = server.api("DELETE", "/instances/traced", None);
        assert_eq!(status, 204);
        eventually("a word about it", 10, || {
            server.log().contains(SAID).then_some(())
        });
    }
    assert!(server.terminate().success());
    let log = server.log();
    assert_eq!(log.matches(SAID).count(), 1, "{log}");
}

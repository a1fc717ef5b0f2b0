//! The gRPC API `container.ContainerService`: decode, call one use case, encode, as `http` does for REST. With it come
//! `grpc.health.v1.Health` and server reflection (v1 and v1alpha), which need no credential. No rule about instances is
//! made here, but for what this API says of users: an instance's user is its label `user_id`, so that REST shows it
//! and finds it by it (`labels=user_id=…`).

mod caller;
mod commands;
mod connect;
mod convert;
mod envelope;
mod files;
mod lifecycle;
mod logs;
mod refusal;
mod service;
mod usage;

use crate::{App, Auth};
use axum::Router;
use axum::extract::Request;
use axum::middleware;
use service::Service;
use std::sync::Arc;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt};
use wire::container_service_server::ContainerServiceServer;

/// The messages and the service, made of `proto/container.proto`.
#[expect(
    clippy::allow_attributes,
    reason = "generated: what there is to say is in the proto file"
)]
pub mod wire {
    tonic::include_proto!("container");
}

/// What reflection serves: an encoded `google.protobuf.FileDescriptorSet`.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/container.binpb"));

/// The largest message, bytes, in both directions.
pub const LARGEST_MESSAGE: usize = 100 << 20;

/// How much of that may be a file or what a command has said: the rest is for everything else in a message.
const LARGEST_CONTENT: usize = LARGEST_MESSAGE - (64 << 10);

/// The service's name in `grpc.health.v1`, beside the empty one and its own.
pub const HEALTH_NAME: &str = "container-grpc";

/// The whole service. `health_name` is one more name under which it is healthy.
///
/// # Errors
/// Never for the descriptors that were built in.
pub async fn router(app: App, auth: Auth, health_name: &str) -> Router {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1();
    let v1alpha = reflection().build_v1alpha();
    let health = health(&app, health_name).await;
    let routes = Routes::new(service(&app))
        .add_service(health)
        .add_service(v1.expect("the descriptors that were built in are whole"))
        .add_service(v1alpha.expect("the descriptors that were built in are whole"));
    enveloped(routes.into_axum_router(), app, Arc::new(auth))
}

/// The service alone, for the port of REST, where it speaks gRPC-Web and unary Connect as well: for clients to whom one
/// port is open, or HTTP/1.1.
pub(crate) fn beside_rest(app: App, auth: Arc<Auth>) -> Router {
    const ROUTE: &str = "/container.ContainerService/{*method}";
    let service = service(&app).map_request(|request: Request| request.map(tonic::body::Body::new));
    let enveloped = enveloped(Router::new().route_service(ROUTE, service), app, auth);
    let connect = connect::Connect::new(enveloped.clone());
    Router::new()
        .route_service(ROUTE, GrpcWebLayer::new().layer(enveloped))
        .layer(middleware::from_fn_with_state(connect, connect::translate))
}

fn service(app: &App) -> ContainerServiceServer<Service> {
    ContainerServiceServer::new(Service { app: app.clone() })
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE)
}

fn enveloped(routes: Router, app: App, auth: Arc<Auth>) -> Router {
    let gate = envelope::Gate { app, auth };
    routes
        .layer(middleware::from_fn_with_state(
            gate.clone(),
            envelope::admit,
        ))
        .layer(middleware::from_fn_with_state(gate, envelope::wrap))
}

/// Serving, until the server is asked to stop.
async fn health(app: &App, name: &str) -> HealthServer<HealthService> {
    let reporter = HealthReporter::new();
    let names = [
        String::new(),
        name.to_owned(),
        "container.ContainerService".to_owned(),
    ];
    for name in &names {
        let status = ServingStatus::Serving;
        reporter.set_service_status(name, status).await;
    }
    let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let stopping = app.stopping().clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        for name in &names {
            let status = ServingStatus::NotServing;
            reporter.set_service_status(name, status).await;
        }
    });
    server
}

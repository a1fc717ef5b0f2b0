//! The REST API: decode, call one use case, encode. Every refusal is a problem document; no rule about
//! instances is made here.

mod copy;
mod envelope;
mod exec;
mod execs;
mod extract;
mod images;
mod instances;
mod operations;
mod pushes;
mod registry;
mod reply;
mod spec;
mod sse;
mod ssh;
mod system;
mod unserved;
mod upkeep;
mod websocket;

use crate::{App, Auth, ContainerService, grpc};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{any, get};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use spec::document;

/// What every handler sees.
#[derive(Clone)]
pub(crate) struct Http {
    pub(crate) app: App,
    pub(crate) auth: Arc<Auth>,
    pub(crate) spec: Arc<spec::Rendered>,
}

fn served() -> OpenApiRouter<Http> {
    OpenApiRouter::with_openapi(spec::head())
        .routes(routes!(system::health))
        .routes(routes!(system::ready))
        .routes(routes!(system::metrics))
        .routes(routes!(system::resources))
        .routes(routes!(system::host))
        .routes(routes!(system::storage))
        .routes(routes!(system::spec_json))
        .routes(routes!(system::spec_yaml))
        .routes(routes!(system::docs))
        .routes(routes!(upkeep::check))
        .routes(routes!(upkeep::repair))
        .routes(routes!(upkeep::recover))
        .routes(routes!(upkeep::backup))
        .routes(routes!(sse::events))
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(
            instances::get,
            instances::delete,
            instances::update
        ))
        .routes(routes!(instances::start))
        .routes(routes!(instances::stop))
        .routes(routes!(instances::pause))
        .routes(routes!(instances::resume))
        .routes(routes!(instances::standby))
        .routes(routes!(instances::restore))
        .routes(routes!(instances::wait))
        .routes(routes!(instances::commit))
        .routes(routes!(instances::debug_bundle))
        .routes(routes!(instances::stats))
        .routes(routes!(sse::logs))
        .routes(routes!(exec::exec))
        .routes(routes!(exec::attach))
        .routes(routes!(execs::list, execs::start))
        .routes(routes!(execs::get, execs::remove))
        .routes(routes!(execs::attach))
        .routes(routes!(copy::stat))
        .routes(routes!(ssh::ssh))
        .routes(routes!(ssh::host_key))
        .routes(routes!(copy::copy))
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::load))
        .routes(routes!(images::save))
        .routes(routes!(images::export))
        .routes(routes!(images::prune))
        .routes(routes!(images::verify))
        .routes(routes!(images::get, images::delete))
        .routes(routes!(pushes::list, pushes::create))
        .routes(routes!(pushes::get))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get, operations::cancel))
}

/// The whole service.
pub fn router(app: App, auth: Auth) -> Router {
    let spec = Arc::new(spec::Rendered::new());
    let limit = app.0.settings.body_limit;
    let http = Http {
        app,
        auth: Arc::new(auth),
        spec,
    };
    let (mut router, _) = served().split_for_parts();
    // References contain slashes; clients send them bare or percent-encoded.
    router = router.route(
        "/images/{name}/{*rest}",
        get(images::get_long).delete(images::delete_long),
    );
    router = unserved::add(router);
    for path in ["/v2", "/v2/", "/v2/{*rest}"] {
        router = router.route(path, any(registry::serve));
    }
    let beside = match http.app.0.settings.container_service {
        ContainerService::Served => grpc::beside_rest(http.app.clone(), Arc::clone(&http.auth)),
        ContainerService::Unserved => Router::new(),
    };
    router
        .fallback(envelope::no_route)
        .method_not_allowed_fallback(envelope::no_method)
        .layer(DefaultBodyLimit::max(limit))
        .layer(middleware::from_fn_with_state(
            http.clone(),
            envelope::admit,
        ))
        .layer(middleware::from_fn_with_state(http.clone(), envelope::wrap))
        .with_state(http)
        // With an envelope of its own.
        .merge(beside)
}

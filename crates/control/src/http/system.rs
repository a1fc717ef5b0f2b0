//! The server about itself.

use super::Http;
use super::extract::NoParams;
use super::reply::{Reply, json};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use warren_api::resources::HealthStatus;
use warren_api::storage::StorageUsage;
use warren_api::{Health, Readiness, Resources};

/// Whether the process lives
#[utoipa::path(get, path = "/health", operation_id = "getHealth", tag = "system", security(()),
    responses((status = 200, description = "It does", body = Health)))]
pub(super) async fn health(_: NoParams) -> Reply {
    let health = Health {
        status: HealthStatus::Ok,
    };
    Ok(json(StatusCode::OK, &health))
}

/// Whether the server can do its work
#[utoipa::path(get, path = "/ready", operation_id = "getReadiness", tag = "system",
    responses((status = 200, description = "It can", body = Readiness), (status = 503, description = "It cannot", body = Readiness)))]
pub(super) async fn ready(State(http): State<Http>, _: NoParams) -> Reply {
    let readiness = http.app.readiness().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Ok(json(status, &readiness))
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "system",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String)))]
pub(super) async fn metrics(State(http): State<Http>, _: NoParams) -> Reply {
    Ok((
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        http.app.metrics_text().await,
    )
        .into_response())
}

/// The host's resources and who was promised what
#[utoipa::path(get, path = "/resources", operation_id = "getResources", tag = "system",
    responses((status = 200, description = "Resources", body = Resources)))]
pub(super) async fn resources(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.resources().await?))
}

/// What the host can do and why not more
#[utoipa::path(get, path = "/host", operation_id = "getHost", tag = "system",
    responses((status = 200, description = "Hypervisors, network, sizes", body = Object)))]
pub(super) async fn host(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.host_report().await?))
}

/// What takes room on the host
///
/// Images with what they share, layers with the number of images that have them, instances' disks and logs. Sizes are what
/// the file system has allocated.
#[utoipa::path(get, path = "/system/df", operation_id = "getStorageUsage", tag = "system",
    responses((status = 200, description = "Bytes", body = StorageUsage)))]
pub(super) async fn storage(State(http): State<Http>, _: NoParams) -> Reply {
    Ok(json(StatusCode::OK, &http.app.storage().await?))
}

/// This document as JSON
#[utoipa::path(get, path = "/spec.json", operation_id = "getSpecJson", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)))]
pub(super) async fn spec_json(State(http): State<Http>, _: NoParams) -> Reply {
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        http.spec.json.clone(),
    )
        .into_response())
}

/// This document as YAML
#[utoipa::path(get, path = "/spec.yaml", operation_id = "getSpecYaml", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/yaml", body = Object)))]
pub(super) async fn spec_yaml(State(http): State<Http>, _: NoParams) -> Reply {
    Ok((
        [(header::CONTENT_TYPE, "application/yaml")],
        http.spec.yaml.clone(),
    )
        .into_response())
}

/// The API's reference as a page
#[utoipa::path(get, path = "/docs", operation_id = "getDocs", tag = "system",
    responses((status = 200, description = "A page that needs nothing from elsewhere", content_type = "text/html", body = String)))]
pub(super) async fn docs(_: NoParams) -> Reply {
    const POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    Ok((
        [(header::CONTENT_SECURITY_POLICY, POLICY)],
        Html(include_str!("docs.html")),
    )
        .into_response())
}

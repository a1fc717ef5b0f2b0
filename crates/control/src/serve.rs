//! Listening: HTTP/1.1 and HTTP/2 (h2c) on one port, with bounds on connections, heads and shutdown.

use crate::{App, Auth, Settings, grpc, http};
use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How an HTTP/2 connection starts (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It would let anybody in.
    #[error(transparent)]
    Open(#[from] crate::auth::OpenToAll),
    /// The listener is of no use.
    #[error("the listening socket cannot be used")]
    Listener(#[source] io::Error),
}

/// Serves until `stopping`, then lets requests end for a while, then drops what is left.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub async fn serve(
    listeners: Vec<TcpListener>,
    app: App,
    auth: Auth,
    stopping: CancellationToken,
) -> Result<(), ServeError> {
    for listener in &listeners {
        auth.check_listener(listener.local_addr().map_err(ServeError::Listener)?)?;
    }
    let settings = app.0.settings.clone();
    accept_all(listeners, http::router(app, auth), &settings, stopping).await;
    Ok(())
}

/// The same for the gRPC API, on listeners of its own. `health_name` is one more name under which
/// `grpc.health.v1.Health` answers.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub async fn serve_container_service(
    listeners: Vec<TcpListener>,
    app: App,
    auth: Auth,
    health_name: &str,
    stopping: CancellationToken,
) -> Result<(), ServeError> {
    for listener in &listeners {
        auth.check_listener(listener.local_addr().map_err(ServeError::Listener)?)?;
    }
    if listeners.is_empty() {
        return Ok(());
    }
    let settings = app.0.settings.clone();
    let router = grpc::router(app, auth, health_name).await;
    accept_all(listeners, router, &settings, stopping).await;
    Ok(())
}

async fn accept_all(
    listeners: Vec<TcpListener>,
    router: Router,
    settings: &Settings,
    stopping: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(settings.connections));
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        let (router, permits, stopping) = (router.clone(), Arc::clone(&permits), stopping.clone());
        let grace = settings.shutdown_grace;
        acceptors.spawn(async move { accept(listener, router, permits, stopping, grace).await });
    }
    while acceptors.join_next().await.is_some() {}
}

async fn accept(
    listener: TcpListener,
    router: Router,
    permits: Arc<Semaphore>,
    stopping: CancellationToken,
    grace: Duration,
) {
    let mut connections = JoinSet::new();
    loop {
        // Not accepted before there is room: the kernel's queue holds the rest.
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit,
            () = stopping.cancelled() => break,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
            // Ended connections are collected as they end.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection(stream, peer, router, stopping).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of descriptors: trying again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::info!("connections that did not end in time are dropped");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    stopping: CancellationToken,
) {
    // Small answers must not wait for more; without it everything still works.
    let _ = stream.set_nodelay(true);
    let first = tokio::select! {
        first = tokio::time::timeout(HEAD_TIMEOUT, speaks_http2(&stream)) => first,
        () = stopping.cancelled() => return,
    };
    let Ok(Ok(http2)) = first else { return };
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(256)
        .max_header_list_size(64 << 10);
    let builder = if http2 {
        builder.http2_only()
    } else {
        builder.http1_only()
    };
    let service = TowerToHyperService::new(router.map_request(
        move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request.map(axum::body::Body::new)
        },
    ));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopping.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}

/// Looks at the first bytes without taking them, so that no half-sent preface holds a connection for ever.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 24];
    let mut seen = 0;
    loop {
        let count = stream.peek(&mut first).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..count] != PREFACE[..count] {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        if count == seen {
            // `peek` returns at once while the same bytes wait.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        seen = count;
    }
}

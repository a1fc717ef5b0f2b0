//! The API over a host without machines, on a port of loopback: for tools that try every request.
//!
//! `cargo run -p warren-control --example double -- 18080`

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod support;

use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warren_control::{App, Auth, Settings, serve};
use warren_core::InstallationId;
use warren_store::MemoryStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let spool = tempfile::tempdir()?;
    let installation = InstallationId::from_entropy([1; 3]);
    let mut settings = Settings::new(installation, spool.path().to_owned());
    settings.start_wait = std::time::Duration::from_secs(1);
    settings.delete_wait = std::time::Duration::from_secs(1);
    settings.longest_wait = std::time::Duration::from_secs(1);
    let stopping = CancellationToken::new();
    let app = App::start(
        Arc::new(MemoryStore::new()),
        support::Host::new(),
        support::TestClock::new(),
        settings,
        stopping.clone(),
    )
    .await?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let stopper = stopping.clone();
    tokio::spawn(async move {
        // Without the signal it runs until it is killed.
        let _ = tokio::signal::ctrl_c().await;
        stopper.cancel();
    });
    serve(
        vec![listener],
        app.clone(),
        Auth::from_secret(None),
        stopping,
    )
    .await?;
    app.stopped().await;
    Ok(())
}

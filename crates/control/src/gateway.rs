//! The SSH gateway: one address for all instances, for clients that have a key and no Warren.

use crate::App;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Connections at the same time; who comes beyond them waits to be accepted.
const CONNECTIONS: usize = 512;
/// After a failed accept, which is mostly a want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves SSH on this address until the app stops.
pub async fn serve_ssh(listener: TcpListener, app: App) {
    let (key, door) = (app.ssh_gateway_key(), app.ssh_gateway());
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
                return;
            };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the SSH gateway could not accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (key, door, stopping) = (key.clone(), Arc::clone(&door), app.stopping().clone());
            let span = tracing::info_span!("ssh", %peer);
            let serving = async move {
                tokio::select! {
                    () = one(stream, peer, &key, door) => {}
                    () = stopping.cancelled() => {}
                }
                drop(turn);
            };
            connections.spawn(serving.instrument(span));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = app.stopping().cancelled() => {}
    }
    connections.close();
    connections.wait().await;
}

async fn one(
    stream: TcpStream,
    peer: SocketAddr,
    key: &warren_ssh::HostKey,
    door: Arc<dyn warren_ssh::Door>,
) {
    // Interactive: what is typed is sent at once. A socket that cannot do it works all the same.
    let _ = stream.set_nodelay(true);
    if let Err(error) = warren_ssh::serve(stream, key, door).await {
        tracing::info!(%peer, %error, "an SSH connection ended");
    }
}

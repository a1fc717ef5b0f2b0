//! Carries TCP connections to a guest, both directions apart, so that either side may close its half first.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections that one published port carries at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 4096;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long accepting pauses when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);
const BUFFER: usize = 64 * 1024;

pub(super) fn spawn(
    socket: OwnedFd,
    target: SocketAddr,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(std::net::TcpListener::from(socket))?;
    tokio::spawn(async move {
        let _ = stop
            .clone()
            .run_until_cancelled_owned(accept(listener, target, stop))
            .await;
    });
    Ok(())
}

async fn accept(listener: TcpListener, target: SocketAddr, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, %target, "accept failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permit = permit;
            stop.run_until_cancelled_owned(carry(client, target)).await;
        });
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr) {
    let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(target)).await;
    let mut guest = match connected {
        Ok(Ok(guest)) => guest,
        Ok(Err(_)) | Err(_) => {
            // The client sees a reset, as near to "refused" as an accepted connection can come.
            let _ = sockopt::set_socket_linger(&client, Some(Duration::ZERO));
            return;
        }
    };
    for side in [&client, &guest] {
        let _ = side.set_nodelay(true);
        // A peer that vanished must not hold a place for ever.
        let _ = sockopt::set_socket_keepalive(side, true);
    }
    let done =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await;
    if done.is_err() {
        for side in [&client, &guest] {
            let _ = sockopt::set_socket_linger(side, Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn forwarder(target: SocketAddr) -> (SocketAddr, CancellationToken) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        spawn(listener.into(), target, stop.clone()).unwrap();
        (address, stop)
    }

    #[tokio::test]
    async fn each_half_closes_on_its_own() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, _stop) = forwarder(guest.local_addr().unwrap()).await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = guest.accept().await.unwrap();
            let mut all = Vec::new();
            // Ends only when the client's end of stream arrives.
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
            all.len()
        });
        let mut client = TcpStream::connect(address).await.unwrap();
        let sent = vec![7_u8; 1_000_000];
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert_eq!(server.await.unwrap(), sent.len());
        assert_eq!(back, sent);
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_is_a_reset() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = guest.local_addr().unwrap();
        drop(guest);
        let (address, _stop) = forwarder(target).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn stopping_closes_the_port_and_its_connections() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = forwarder(guest.local_addr().unwrap()).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let (_server, _) = guest.accept().await.unwrap();
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0; 1])).await;
        assert!(matches!(ended.unwrap(), Ok(0) | Err(_)));
        let refused = tokio::time::timeout(Duration::from_secs(5), async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        refused.await.unwrap();
    }
}

//! The name server's sockets: UDP and TCP on the gateway's address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::NameTable;
use super::answer::{Decision, decide, failure};
use super::upstream::{self, Over};

/// Queries in flight; more are dropped and asked again by whoever wants them.
const QUERIES: usize = 512;
/// Open TCP connections.
const CONNECTIONS: usize = 128;
const TCP_IDLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// What fits into a datagram without EDNS (RFC 1035, 4.2.1).
const PLAIN_UDP: usize = 512;

/// A running name server; dropping it stops it.
#[derive(Debug)]
pub(crate) struct DnsServer {
    _stop: DropGuard,
}

struct Shared {
    names: Arc<NameTable>,
    subnet: Ipv4Net,
    upstream: Vec<SocketAddr>,
    queries: Semaphore,
}

/// Serves on the two sockets, both bound to the gateway's address.
pub(crate) fn serve(
    udp: OwnedFd,
    tcp: OwnedFd,
    names: Arc<NameTable>,
    subnet: Ipv4Net,
    upstream: Vec<SocketAddr>,
) -> io::Result<DnsServer> {
    let udp = Arc::new(UdpSocket::from_std(udp.into())?);
    let tcp = TcpListener::from_std(tcp.into())?;
    let stop = CancellationToken::new();
    let shared = Arc::new(Shared {
        names,
        subnet,
        upstream,
        queries: Semaphore::new(QUERIES),
    });
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(datagrams(udp, Arc::clone(&shared))),
    );
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(connections(tcp, shared)),
    );
    Ok(DnsServer {
        _stop: stop.drop_guard(),
    })
}

impl Shared {
    fn may_ask(&self, from: SocketAddr) -> bool {
        match from.ip() {
            IpAddr::V4(address) => self.subnet.contains(&address) || address.is_loopback(),
            IpAddr::V6(_) => false,
        }
    }

    async fn answer(&self, raw: &[u8], over: Over) -> Option<Vec<u8>> {
        let _permit = self.queries.try_acquire().ok()?;
        let query = Message::from_vec(raw).ok()?;
        match decide(&query, &self.names, self.subnet) {
            Decision::Ignore => None,
            Decision::Answer(message) => message.to_vec().ok(),
            Decision::Forward => match upstream::ask(&query, raw, &self.upstream, over).await {
                Some(answer) => Some(answer),
                None => failure(&query).to_vec().ok(),
            },
        }
    }
}

async fn datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0_u8; 4096];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(one) => one,
            Err(error) => {
                tracing::debug!(%error, "receiving a query failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !shared.may_ask(from) {
            continue;
        }
        let raw = buffer[..length].to_vec();
        let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
        tokio::spawn(async move {
            if let Some(answer) = shared.answer(&raw, Over::Udp).await {
                let _ = socket.send_to(&fit(answer, &raw), from).await;
            }
        });
    }
}

/// Cuts an answer that is larger than the guest said it takes, so that it asks again over TCP.
pub(super) fn fit(answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    let room = Message::from_vec(query)
        .ok()
        .and_then(|query| query.edns.map(|edns| usize::from(edns.max_payload())))
        .map_or(PLAIN_UDP, |room| room.max(PLAIN_UDP));
    if answer.len() <= room {
        return answer;
    }
    Message::from_vec(&answer)
        .map(|message| message.truncate().to_vec().unwrap_or_default())
        .unwrap_or_default()
}

async fn connections(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) if shared.may_ask(from) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _permit = permit;
                    let _ = conversation(stream, &shared).await;
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "accepting a query failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn conversation(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut raw = vec![0_u8; usize::from(length)];
            stream.read_exact(&mut raw).await?;
            io::Result::Ok(raw)
        };
        let raw = tokio::time::timeout(TCP_IDLE, question)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        let Some(answer) = shared.answer(&raw, Over::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

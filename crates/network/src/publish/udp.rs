//! Carries UDP datagrams to a guest: one connected socket per peer, so that answers find their way back.
//!
//! Answers leave from the address that the peer had sent to (IP_PKTINFO): a wildcard socket would otherwise answer
//! from whatever address the route prefers, and a connected peer would throw the answer away.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Peers that one published port remembers; the one that was quiet longest makes room.
const SESSIONS: usize = 1024;
const IDLE: Duration = Duration::from_secs(60);
/// Datagrams that wait for one guest socket; more are dropped, as UDP may.
const QUEUE: usize = 64;
const DATAGRAM: usize = 65_535;
/// How long receiving pauses after an error that is not a datagram's own.
const PAUSE: Duration = Duration::from_millis(50);

/// A peer and the address of ours that it sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer {
    from: SocketAddr,
    to: Option<IpAddr>,
}

struct Session {
    datagrams: mpsc::Sender<Vec<u8>>,
    used: Instant,
}

pub(super) fn spawn(
    socket: OwnedFd,
    target: SocketAddr,
    stop: CancellationToken,
) -> io::Result<()> {
    let socket = std::net::UdpSocket::from(socket);
    if socket.local_addr()?.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    tokio::spawn(async move {
        let sessions = receive(socket, target, stop.clone());
        stop.run_until_cancelled_owned(sessions).await;
    });
    Ok(())
}

async fn receive(socket: Arc<UdpSocket>, target: SocketAddr, stop: CancellationToken) {
    let mut sessions: HashMap<Peer, Session> = HashMap::new();
    let mut buffer = vec![0_u8; DATAGRAM];
    loop {
        let received = socket
            .async_io(Interest::READABLE, || receive_one(&socket, &mut buffer))
            .await;
        let (length, peer) = match received {
            Ok(one) => one,
            // An answer that could not be delivered shows up here; it concerns one peer and not the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::debug!(%error, %target, "receiving failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if sessions
            .get(&peer)
            .is_none_or(|session| session.datagrams.is_closed())
        {
            make_room(&mut sessions);
            let (datagrams, queue) = mpsc::channel(QUEUE);
            let answers = Arc::clone(&socket);
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.run_until_cancelled_owned(carry(answers, peer, target, queue))
                    .await;
            });
            let used = Instant::now();
            sessions.insert(peer, Session { datagrams, used });
        }
        if let Some(session) = sessions.get_mut(&peer) {
            session.used = Instant::now();
            let _ = session.datagrams.try_send(buffer[..length].to_vec());
        }
    }
}

/// Forgets sessions that ended and, when it is still too many, the one that was quiet longest.
fn make_room(sessions: &mut HashMap<Peer, Session>) {
    if sessions.len() < SESSIONS {
        return;
    }
    sessions.retain(|_, session| !session.datagrams.is_closed());
    if sessions.len() < SESSIONS {
        return;
    }
    let oldest = sessions
        .iter()
        .min_by_key(|(_, session)| session.used)
        .map(|(peer, _)| *peer);
    if let Some(peer) = oldest {
        sessions.remove(&peer);
    }
}

/// One peer's session: ends when it was quiet for a while, or when its queue is closed.
async fn carry(
    answers: Arc<UdpSocket>,
    peer: Peer,
    target: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    let any: IpAddr = if target.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let Ok(guest) = UdpSocket::bind((any, 0)).await else {
        return;
    };
    if guest.connect(target).await.is_err() {
        return;
    }
    let mut buffer = vec![0_u8; DATAGRAM];
    loop {
        tokio::select! {
            datagram = queue.recv() => match datagram {
                Some(datagram) => { let _ = guest.send(&datagram).await; }
                None => return,
            },
            // "Refused" is the guest's answer to an earlier datagram: nobody listens there yet.
            received = guest.recv(&mut buffer) => if let Ok(length) = received {
                let _ = answers
                    .async_io(Interest::WRITABLE, || send_one(&answers, &buffer[..length], peer))
                    .await;
            },
            () = tokio::time::sleep(IDLE) => return,
        }
    }
}

fn receive_one(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let from = message
        .address
        .as_ref()
        .and_then(socket_address)
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    Ok((message.bytes, Peer { from, to }))
}

fn send_one(socket: &UdpSocket, datagram: &[u8], peer: Peer) -> io::Result<usize> {
    let to = SockaddrStorage::from(peer.from);
    let slices = [IoSlice::new(datagram)];
    let send = |control: &[ControlMessage<'_>]| {
        sendmsg(
            socket.as_raw_fd(),
            &slices,
            control,
            MsgFlags::empty(),
            Some(&to),
        )
    };
    let sent = match peer.to {
        Some(IpAddr::V4(address)) => send(&[ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(address.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })]),
        Some(IpAddr::V6(address)) => send(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: address.octets(),
            },
            ipi6_ifindex: 0,
        })]),
        None => send(&[]),
    };
    Ok(sent?)
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(four) = storage.as_sockaddr_in() {
        return Some(SocketAddr::from((four.ip(), four.port())));
    }
    storage
        .as_sockaddr_in6()
        .map(|six| SocketAddr::V6((*six).into()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        let guest = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = guest.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = guest.recv_from(&mut buffer).await {
                let _ = guest.send_to(&buffer[..length], from).await;
            }
        });
        let listener = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        spawn(listener.into(), target, stop.clone()).unwrap();
        for asked in ["127.0.0.1", "127.0.0.77"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // A connected socket takes answers from the asked address only.
            client.connect((asked, port)).await.unwrap();
            client.send(b"hello").await.unwrap();
            let mut buffer = [0; 64];
            let answer =
                tokio::time::timeout(Duration::from_secs(5), client.recv(&mut buffer)).await;
            assert_eq!(&buffer[..answer.unwrap().unwrap()], b"hello");
        }
        stop.cancel();
    }

    #[test]
    fn the_quietest_session_makes_room() {
        let mut sessions = HashMap::new();
        let mut queues = Vec::new();
        let start = Instant::now();
        for n in 0..SESSIONS {
            let (datagrams, queue) = mpsc::channel(1);
            queues.push(queue);
            let from = SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()));
            let used = start + Duration::from_millis(u64::try_from(n).unwrap());
            sessions.insert(Peer { from, to: None }, Session { datagrams, used });
        }
        make_room(&mut sessions);
        assert_eq!(sessions.len(), SESSIONS - 1);
        assert!(!sessions.keys().any(|peer| peer.from.port() == 0));
    }
}

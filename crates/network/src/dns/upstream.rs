//! Asks the servers outside, one after the other, over the transport that the guest used.
//!
//! Each query leaves from a fresh, connected socket with a fresh id; an answer counts only when id and question
//! are the ones that were asked.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const DEADLINE: Duration = Duration::from_secs(3);
/// Twice through the servers' list at most, so that one lost datagram is not a failed look-up.
const ROUNDS: usize = 2;
/// Largest answer taken over UDP (what EDNS lets people ask for in practice).
const UDP_ANSWER: usize = 4096;

/// How the guest asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// The answer as it came, with the guest's id in it.
pub(super) async fn ask(
    query: &Message,
    raw: &[u8],
    servers: &[SocketAddr],
    over: Over,
) -> Option<Vec<u8>> {
    let id = fresh_id();
    let mut question = raw.to_vec();
    question.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
    for _ in 0..ROUNDS {
        for server in servers {
            let asked = async {
                match over {
                    Over::Udp => over_udp(*server, &question, query, id).await,
                    Over::Tcp => over_tcp(*server, &question).await,
                }
            };
            match tokio::time::timeout(DEADLINE, asked).await {
                Ok(Ok(mut answer)) if belongs(&answer, query, id) => {
                    answer[..2].copy_from_slice(&query.metadata.id.to_be_bytes());
                    return Some(answer);
                }
                Ok(Ok(_)) => tracing::debug!(%server, "answer does not belong to the query"),
                Ok(Err(error)) => tracing::debug!(%server, %error, "name server failed"),
                Err(_) => tracing::debug!(%server, "name server did not answer in time"),
            }
        }
    }
    None
}

fn fresh_id() -> u16 {
    let mut bytes = [0_u8; 2];
    // Without randomness at boot the port alone, chosen by the kernel, has to do.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u16::from_ne_bytes(bytes)
}

pub(super) fn belongs(answer: &[u8], query: &Message, id: u16) -> bool {
    Message::from_vec(answer)
        .is_ok_and(|message| message.metadata.id == id && message.queries == query.queries)
}

async fn over_udp(
    server: SocketAddr,
    question: &[u8],
    query: &Message,
    id: u16,
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0_u8; UDP_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A forged answer does not end the wait for the right one; the deadline does.
        if belongs(&buffer[..length], query, id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let mut answer = vec![0_u8; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

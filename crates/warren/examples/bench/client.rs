//! A small HTTP/1.1 client on kept connections: what it costs itself is the same in both arms.

use anyhow::Context;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// Until an answer must have come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A kept connection to a server on loopback.
pub(crate) struct Connection {
    stream: BufStream<TcpStream>,
    port: u16,
    /// Of the last answer: where the next page starts.
    next_page: Option<String>,
}

impl Connection {
    pub(crate) async fn open(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufStream::with_capacity(64 << 10, 16 << 10, stream),
            port,
            next_page: None,
        })
    }

    /// Where the page after the last answer starts, where it was a page and there is another.
    pub(crate) fn next_page(&self) -> Option<&str> {
        self.next_page.as_deref()
    }

    /// Status and body.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        tokio::time::timeout(PATIENCE, self.exchange(method, path, body))
            .await
            .context("no answer in time")?
    }

    async fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body).await?;
        self.stream.flush().await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status: u16 = line
            .split(' ')
            .nth(1)
            .with_context(|| format!("no status in {line:?}"))?
            .parse()?;
        let (mut length, mut chunked) = (0usize, false);
        self.next_page = None;
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if header.starts_with("x-next-page-token:") {
                let value = line.split_once(':').map_or("", |(_, value)| value.trim());
                self.next_page = Some(value.to_owned());
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        if !chunked {
            let mut answer = vec![0; length];
            self.stream.read_exact(&mut answer).await?;
            return Ok((status, answer));
        }
        let mut answer = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim_end(), 16)?;
            let start = answer.len();
            answer.resize(start + size + 2, 0);
            self.stream.read_exact(&mut answer[start..]).await?;
            answer.truncate(start + size);
            if size == 0 {
                return Ok((status, answer));
            }
        }
    }
}

/// Requests a second of `connections` clients that ask for `path` again and again for `time`.
pub(crate) async fn get_rate(
    port: u16,
    path: &str,
    connections: usize,
    time: Duration,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let clients = (0..connections).map(|_| {
        let path = path.to_owned();
        tokio::spawn(async move {
            let mut connection = Connection::open(port).await?;
            let mut answered = 0u64;
            while start.elapsed() < time {
                let (status, _) = connection.request("GET", &path, b"").await?;
                anyhow::ensure!(status == 200, "{path} answered {status}");
                answered += 1;
            }
            anyhow::Ok(answered)
        })
    });
    let mut answered = 0;
    for client in futures::future::join_all(clients).await {
        answered += client??;
    }
    Ok(answered as f64 / start.elapsed().as_secs_f64())
}

//! The host's end of a session with a guest that says anything after a right handshake. Time is virtual, so that
//! deadlines cost nothing.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use warren_guest::client::GuestClient;
use warren_guest::protocol::{AttachKey, ExecRequest};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let words = match choice & 1 {
        0 => bytes.to_vec(),
        _ => on_streams(bytes),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers needs nothing");
    runtime.block_on(session(words));
});

/// Yamux data frames around pieces of `length, stream, bytes`: else few inputs would get past its headers.
fn on_streams(mut bytes: &[u8]) -> Vec<u8> {
    let mut words = Vec::new();
    while let [length, stream, rest @ ..] = bytes {
        let (data, later) = rest.split_at(usize::from(*length).min(rest.len()));
        let [flags, window] = [stream >> 4 & 3, stream >> 6 & 1];
        words.extend_from_slice(&[0, window, 0, flags, 0, 0, 0, stream & 15]);
        words.extend_from_slice(&(data.len() as u32).to_be_bytes());
        if window == 0 {
            words.extend_from_slice(data);
        }
        bytes = later;
    }
    words
}

async fn session(words: Vec<u8>) {
    let guest = Guest {
        heard: Vec::new(),
        words,
        said: 0,
    };
    let attached = GuestClient::attach(guest, &AttachKey::WELL_KNOWN, Duration::from_secs(5)).await;
    let Ok((client, mut events)) = attached else {
        return;
    };
    let _ = client.ping().await;
    if let Ok(mut logs) = client.logs(1).await {
        while let Ok(Some(_)) = logs.next().await {}
    }
    let request = ExecRequest {
        command: vec!["true".into()],
        ..ExecRequest::default()
    };
    if let Ok(mut exec) = client.exec(request).await {
        let _ = tokio::time::timeout(Duration::from_secs(5), exec.output.collect(1 << 16)).await;
    }
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(5), events.next()).await {}
}

/// Echoes the nonce, says its words, hangs up.
struct Guest {
    heard: Vec<u8>,
    words: Vec<u8>,
    said: usize,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said < 16 {
            let said = self.said;
            let nonce = self.heard[16 + said..32].to_vec();
            let count = nonce.len().min(into.remaining());
            into.put_slice(&nonce[..count]);
            self.said += count;
            return Poll::Ready(Ok(()));
        }
        let rest = &self.words[self.said - 16..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        self.said += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.heard.len() < 32 {
            self.heard.extend_from_slice(data);
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! The host's end of a session with a guest that says anything after a right handshake. Time is virtual, so that
//! deadlines cost nothing.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
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
        0 => [(Turn::AfterHost, bytes.to_vec())].into(),
        _ => on_streams(bytes),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers needs nothing");
    runtime.block_on(session(words));
});

/// When a guest says something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    AtOnce,
    /// When the host has said something since.
    AfterHost,
}

type Words = VecDeque<(Turn, Vec<u8>)>;

/// Yamux frames around pieces of `length, stream, bytes`: else few inputs would get past its headers, or come when
/// there is a stream to take them.
fn on_streams(mut bytes: &[u8]) -> Words {
    let mut words = Words::new();
    while let [length, stream, rest @ ..] = bytes {
        let (data, later) = rest.split_at(usize::from(*length).min(rest.len()));
        let [flags, window] = [stream >> 4 & 3, stream >> 6 & 1];
        let mut frame = vec![0, window, 0, flags, 0, 0, 0, stream & 15];
        frame.extend_from_slice(&(data.len() as u32).to_be_bytes());
        if window == 0 {
            frame.extend_from_slice(data);
        }
        let turn = match stream >> 7 {
            0 => Turn::AtOnce,
            _ => Turn::AfterHost,
        };
        words.push_back((turn, frame));
        bytes = later;
    }
    words
}

async fn session(words: Words) {
    let guest = Guest {
        heard: Vec::new(),
        host_spoke: false,
        waiting: None,
        echoed: false,
        paused: false,
        words,
    };
    let attached = GuestClient::attach(guest, &AttachKey::WELL_KNOWN, Duration::from_secs(5)).await;
    let Ok((client, mut events)) = attached else {
        return;
    };
    let _ = client.ping().await;
    let deadline = Duration::from_secs(5);
    if let Ok(mut logs) = client.logs(1).await {
        while let Ok(Ok(Some(_))) = tokio::time::timeout(deadline, logs.next()).await {}
    }
    let request = ExecRequest {
        command: vec!["true".into()],
        ..ExecRequest::default()
    };
    if let Ok(mut exec) = client.exec(request).await {
        let _ = tokio::time::timeout(deadline, exec.output.collect(1 << 16)).await;
    }
    while let Ok(Some(_)) = tokio::time::timeout(deadline, events.next()).await {}
}

/// Echoes the nonce, says its words, hangs up.
struct Guest {
    heard: Vec<u8>,
    host_spoke: bool,
    waiting: Option<Waker>,
    echoed: bool,
    /// Whether the host's tasks have had a turn since the last words.
    paused: bool,
    words: Words,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.echoed {
            into.put_slice(&self.heard[16..32]);
            self.echoed = true;
            return Poll::Ready(Ok(()));
        }
        if !self.paused {
            self.paused = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let spoke = self.host_spoke;
        let Some((turn, words)) = self.words.front_mut() else {
            return Poll::Ready(Ok(()));
        };
        if *turn == Turn::AfterHost && !spoke {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        *turn = Turn::AtOnce;
        let count = words.len().min(into.remaining());
        into.put_slice(&words[..count]);
        words.drain(..count);
        if words.is_empty() {
            self.words.pop_front();
            (self.host_spoke, self.paused) = (false, false);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let opening = 32 - self.heard.len();
        let new = &data[..data.len().min(opening)];
        self.heard.extend_from_slice(new);
        if data.len() > opening || opening == 0 {
            self.host_spoke = true;
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
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

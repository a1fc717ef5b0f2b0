//! What the routes that are WebSockets have in common: exec, attach and copies.

use super::reply::Failure;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocketUpgrade, close_code};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::timeout;
use warren_api::Code;

/// How long the first frame may take, and a farewell.
pub(super) const BRIEF: Duration = Duration::from_secs(10);
/// Pings find peers that went away without a word, and keep what stands between both from taking them for gone.
pub(super) const PING: Duration = Duration::from_secs(30);
/// A peer that takes nothing for this long, or gives nothing where it should, has gone.
pub(super) const SILENCE: Duration = Duration::from_secs(300);
/// A frame from a client may be this large.
const LONGEST_FRAME: usize = 1 << 20;

/// Makes a request a WebSocket, with bounds.
pub(super) fn upgrade(
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Failure> {
    socket
        .map(|socket| {
            socket
                .max_message_size(LONGEST_FRAME)
                .max_frame_size(LONGEST_FRAME)
        })
        .map_err(|e| {
            Failure::new(
                Code::UpgradeRequired,
                format!("this route is a WebSocket: {}", e.body_text()),
            )
        })
}

/// What a client says first, which is text: a `what`.
///
/// # Errors
/// A sentence: it is something else, or late.
pub(super) async fn first_frame<T: DeserializeOwned>(
    socket: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    what: &str,
) -> Result<T, String> {
    let first = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|e| format!("the first frame is not what it should be: {e}"));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(format!("the first frame must be text: {what}"));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    return Err("the connection closed before its first frame".to_owned());
                }
            }
        }
    };
    timeout(BRIEF, first)
        .await
        .unwrap_or_else(|_| Err("the first frame did not come in time".to_owned()))
}

/// What a client is told when the server ends.
pub(super) fn stopping() -> CloseFrame {
    CloseFrame {
        code: close_code::RESTART,
        reason: "the server is stopping".into(),
    }
}

//! Commands through the client, and through WebSockets as other clients open them.

use super::*;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use warren_api::ExecStart;
use warren_api::client::ExecReader;
use warren_api::exec::TerminalSize;
use warren_core::ports::host_link::{ExecInput, ExecOutput, OutputStream};

async fn outputs(reader: &mut ExecReader) -> (Vec<u8>, Vec<u8>, i32) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(SOON, reader.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            ExecOutput::Data(OutputStream::Stdout, bytes) => out.extend_from_slice(&bytes),
            ExecOutput::Data(OutputStream::Stderr, bytes) => err.extend_from_slice(&bytes),
            ExecOutput::Exited { code, .. } => return (out, err, code),
        }
    }
}

#[tokio::test]
async fn exec_keeps_streams_apart_and_gives_the_code() {
    let server = server().await;
    server.make("e").await;
    let start = ExecStart {
        command: vec!["say".into(), "hello".into()],
        ..ExecStart::default()
    };
    let mut connection = server.client.exec("e", &start).await.unwrap();
    let (out, err, code) = outputs(&mut connection.output).await;
    assert_eq!(
        (out.as_slice(), err.as_slice(), code),
        (&b"say hello"[..], &b"oops"[..], 3)
    );
    assert!(connection.output.next().await.is_none());
    let missing = server.client.exec("nobody", &start).await.err().unwrap();
    assert_eq!(missing.code(), Some("instance_not_found"));
    server.client.stop_instance("e").await.unwrap();
    let stopped = server.client.exec("e", &start).await.err().unwrap();
    assert_eq!(
        (stopped.status(), stopped.code()),
        (Some(409), Some("wrong_state"))
    );
}

#[tokio::test]
async fn exec_carries_input_sizes_signals_and_its_end() {
    let server = server().await;
    server.make("cat").await;
    let start = ExecStart {
        command: vec!["cat".into()],
        tty: true,
        ..ExecStart::default()
    };
    let mut connection = server.client.exec("cat", &start).await.unwrap();
    let big = vec![b'x'; 300_000];
    connection
        .input
        .send(ExecInput::Stdin(Bytes::from(big.clone())))
        .await
        .unwrap();
    connection
        .input
        .send(ExecInput::Resize {
            rows: 40,
            columns: 100,
        })
        .await
        .unwrap();
    connection.input.send(ExecInput::CloseStdin).await.unwrap();
    let (out, _, code) = outputs(&mut connection.output).await;
    assert_eq!(code, 0);
    assert_eq!(out, [big.as_slice(), b"40x100"].concat());
    let terminal = Some(TerminalSize { rows: 24, cols: 80 });
    let mut attached = server.client.attach("cat", terminal).await.unwrap();
    attached.input.send(ExecInput::Signal(9)).await.unwrap();
    assert_eq!(outputs(&mut attached.output).await.2, 137);
}

#[tokio::test]
async fn a_client_of_the_older_generation_gets_one_stream_and_an_exit_code() {
    let server = server().await;
    server.make("old").await;
    let first =
        r#"{"command":["say","hi"],"tty":false,"env":{},"cwd":"","timeout":0,"wait_for_agent":5}"#;
    let first = [Message::text(first)];
    let (texts, bytes) = server.web_socket("/instances/old/exec", &first).await;
    let last = texts.last().unwrap();
    assert_eq!(
        (bytes.as_slice(), last.as_str()),
        (&b"say hioops"[..], r#"{"exitCode":3}"#)
    );
}

#[tokio::test]
async fn a_web_page_cannot_open_a_web_socket() {
    let server = server().await;
    server.make("w").await;
    let mut request = format!("ws://{}/instances/w/exec", server.address)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("origin", "http://evil.example".parse().unwrap());
    let refused = tokio_tungstenite::connect_async(request).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
}

//! The typed client against the real server: streams that resume, exec, attach, HTTP/2, shutdown.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[expect(dead_code, reason = "each test file uses a part")]
mod support;

use bytes::Bytes;
use futures::StreamExt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{Host, TestClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warren_api::client::{
    Client, ClientError, CreateOptions, EventItem, ListQuery, LoadSource, LogsQuery,
};
use warren_api::exec::TerminalSize;
use warren_api::image::ImageEvent;
use warren_api::{CreateImageRequest, CreateInstanceRequest, EventType, ExecStart, InstanceState};
use warren_control::{App, Auth, Settings, serve};
use warren_core::InstallationId;
use warren_core::ports::host_link::{ExecInput, ExecOutput, Follow, OutputStream};
use warren_store::MemoryStore;

const SOON: Duration = Duration::from_secs(10);

struct Server {
    client: Client,
    host: Arc<Host>,
    store: Arc<MemoryStore>,
    address: SocketAddr,
    stopping: CancellationToken,
    serving: JoinHandle<()>,
    _spool: tempfile::TempDir,
}

async fn server() -> Server {
    server_on("127.0.0.1:0", Host::new(), Arc::new(MemoryStore::new())).await
}

async fn server_on(address: &str, host: Arc<Host>, store: Arc<MemoryStore>) -> Server {
    let spool = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(InstallationId::from_entropy([1; 3]), spool.path().into());
    settings.shutdown_grace = Duration::from_secs(2);
    let stopping = CancellationToken::new();
    let app = App::start(
        store.clone(),
        host.clone(),
        TestClock::new(),
        settings,
        stopping.clone(),
    )
    .await
    .unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = stopping.clone();
    let serving = tokio::spawn(async move {
        serve(vec![listener], app, Auth::from_secret(None), token)
            .await
            .unwrap();
    });
    Server {
        client: Client::new(&format!("http://{address}"), None).unwrap(),
        host,
        store,
        address,
        stopping,
        serving,
        _spool: spool,
    }
}

impl Server {
    async fn make(&self, name: &str) -> warren_api::Instance {
        let request = CreateInstanceRequest {
            name: name.into(),
            image: "busybox".into(),
            ..CreateInstanceRequest::default()
        };
        self.client
            .create_instance(&request, &CreateOptions::default())
            .await
            .unwrap()
    }

    async fn stop(self) -> (Arc<Host>, Arc<MemoryStore>, SocketAddr) {
        self.stopping.cancel();
        timeout(SOON, self.serving)
            .await
            .expect("it ends in time")
            .unwrap();
        (self.host, self.store, self.address)
    }
}

#[tokio::test]
async fn a_life_through_the_client() {
    let server = server().await;
    let client = &server.client;
    let made = server.make("life").await;
    assert_eq!(made.state, InstanceState::Running);
    assert_eq!(
        client.instances(&ListQuery::default()).await.unwrap().len(),
        1
    );
    assert_eq!(
        client.pause_instance("life").await.unwrap().state,
        InstanceState::Paused
    );
    assert_eq!(
        client.resume_instance("life").await.unwrap().state,
        InstanceState::Running
    );
    assert_eq!(
        client.stop_instance("life").await.unwrap().state,
        InstanceState::Stopped
    );
    let waited = client
        .wait_for_state("life", InstanceState::Stopped, SOON)
        .await
        .unwrap();
    assert!(!waited.timed_out);
    let started = client
        .start_instance("life", &warren_api::StartInstanceRequest::default())
        .await
        .unwrap();
    assert_eq!(started.state, InstanceState::Running);
    assert_eq!(
        client
            .instance_stats("life")
            .await
            .unwrap()
            .memory_rss_bytes,
        64 << 20
    );
    assert_eq!(client.resources().await.unwrap().allocations.len(), 1);
    assert_eq!(client.host().await.unwrap().cpus, 8);
    client.delete_instance("life").await.unwrap();
    let gone = client.instance("life").await.unwrap_err();
    assert_eq!(
        (gone.status(), gone.code()),
        (Some(404), Some("instance_not_found"))
    );
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::new(&free.to_string(), None).unwrap();
    assert!(matches!(
        client.health().await,
        Err(ClientError::Unreachable { .. })
    ));
    assert!(matches!(
        Client::new("ftp://x", None),
        Err(ClientError::Address { .. })
    ));
}

async fn outputs(reader: &mut warren_api::client::ExecReader) -> (Vec<u8>, Vec<u8>, i32) {
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
    use futures::SinkExt;
    use tokio_tungstenite::tungstenite::Message;
    let server = server().await;
    server.make("old").await;
    let url = format!("ws://{}/instances/old/exec", server.address);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let first =
        r#"{"command":["say","hi"],"tty":false,"env":{},"cwd":"","timeout":0,"wait_for_agent":5}"#;
    socket.send(Message::text(first)).await.unwrap();
    let (mut bytes, mut last) = (Vec::new(), String::new());
    while let Some(Ok(message)) = timeout(SOON, socket.next()).await.unwrap() {
        match message {
            Message::Binary(piece) => bytes.extend_from_slice(&piece),
            Message::Text(text) => last = text.to_string(),
            _ => {}
        }
    }
    assert_eq!(
        (bytes.as_slice(), last.as_str()),
        (&b"say hioops"[..], r#"{"exitCode":3}"#)
    );
}

#[tokio::test]
async fn a_web_page_cannot_open_a_web_socket() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
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

#[tokio::test]
async fn logs_and_pulls_stream() {
    let server = server().await;
    server.make("logs").await;
    let query = LogsQuery {
        tail: Some(4),
        ..LogsQuery::default()
    };
    let lines: Vec<_> = server
        .client
        .logs("logs", query)
        .map(|line| line.unwrap().seq)
        .collect()
        .await;
    assert_eq!(lines, [7, 8, 9, 10]);
    let request = CreateImageRequest {
        name: "localhost:5000/new:1".into(),
        ..CreateImageRequest::default()
    };
    let updates: Vec<_> = server
        .client
        .pull_image(&request)
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(
        matches!(updates.last(), Some(ImageEvent::Done(images)) if images[0].name == request.name)
    );
    let file = server._spool.path().join("upload.tar");
    std::fs::write(&file, b"archive").unwrap();
    let source = LoadSource {
        path: file,
        name: Some("loaded:1".into()),
        id: None,
    };
    let updates: Vec<_> = server
        .client
        .load_image(&source)
        .await
        .unwrap()
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(
        matches!(updates.last(), Some(ImageEvent::Done(images)) if images[0].name == "loaded:1")
    );
    let missing = CreateImageRequest {
        name: "registry.example/no:1".into(),
        ..CreateImageRequest::default()
    };
    let last = server
        .client
        .pull_image(&missing)
        .collect::<Vec<_>>()
        .await
        .pop()
        .unwrap();
    assert_eq!(last.unwrap_err().code(), Some("registry_has_no_such_image"));
}

#[tokio::test]
async fn followers_go_on_across_a_restart_of_the_server() {
    let server = server().await;
    server.make("first").await;
    let revision_events = server.client.events(Some(0));
    let mut events = Box::pin(revision_events);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            EventItem::Event { id, event } => seen.push((id.unwrap(), event.name, event.kind)),
            EventItem::Reset => panic!("nothing was lost"),
        }
    }
    assert_eq!(seen[0].2, EventType::Created);
    let follow = LogsQuery {
        follow: Follow::Yes,
        ..LogsQuery::default()
    };
    let mut logs = Box::pin(server.client.logs("first", follow));
    for expected in 1..=10 {
        let line = timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(line.seq, expected);
    }
    let (host, store, address) = server.stop().await;
    host.logs
        .lock()
        .unwrap()
        .push(warren_core::ports::host_link::LogLine {
            seq: 11,
            at: support::now(),
            stream: OutputStream::Stdout,
            text: "after".into(),
        });
    let again = server_on(&address.to_string(), host, store).await;
    again.make("second").await;
    let line = timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((line.seq, line.text.as_str()), (11, "after"));
    loop {
        match timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            EventItem::Event { id, event } => {
                assert!(id.unwrap() > seen.last().unwrap().0, "told twice");
                if event.name == "second" && event.kind == EventType::Created {
                    break;
                }
            }
            EventItem::Reset => panic!("nothing was lost"),
        }
    }
}

#[tokio::test]
async fn open_listeners_are_refused_without_a_secret() {
    let host = Host::new();
    let spool = tempfile::tempdir().unwrap();
    let settings = Settings::new(InstallationId::from_entropy([1; 3]), spool.path().into());
    let stopping = CancellationToken::new();
    let app = App::start(
        Arc::new(MemoryStore::new()),
        host,
        TestClock::new(),
        settings,
        stopping.clone(),
    )
    .await
    .unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = serve(vec![listener], app, Auth::from_secret(None), stopping).await;
    assert!(refused.unwrap_err().to_string().contains("JWT_SECRET"));
}

#[tokio::test]
async fn an_event_id_of_another_store_is_answered_with_a_reset() {
    let server = server().await;
    let mut events = Box::pin(server.client.events(Some(1 << 40)));
    let first = timeout(SOON, events.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap(), EventItem::Reset);
    server.make("after").await;
    let next = timeout(SOON, events.next()).await.unwrap().unwrap();
    assert!(matches!(next.unwrap(), EventItem::Event { event, .. } if event.name == "after"));
}

#[tokio::test]
async fn half_a_head_and_idle_connections_do_not_hold_a_shutdown_up() {
    use tokio::io::AsyncWriteExt;
    let server = server().await;
    let _idle = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let mut half = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    half.write_all(b"PRI * HT").await.unwrap();
    let mut other = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    other.write_all(b"GET /health HT").await.unwrap();
    server.client.health().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn http_2_without_tls_is_served_on_the_same_port() {
    let server = server().await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let url = format!("http://{}/health", server.address);
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.status(), 200);
    let foreign = client.get(&url).header("origin", "http://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_refusal_names_its_request() {
    let server = server().await;
    match server.client.instance("nobody").await {
        Err(ClientError::Refused(refused)) => {
            let id = refused.request_id.expect("the server names every request");
            assert_eq!(id.len(), 16, "{id}");
        }
        other => panic!("{other:?}"),
    }
}

/// One copy as the instance API has it: what is sent, then every text frame that comes, and all binary data.
async fn copied(
    server: &Server,
    start: &serde_json::Value,
    send: &[tokio_tungstenite::tungstenite::Message],
) -> (Vec<serde_json::Value>, Vec<u8>) {
    use futures::SinkExt;
    use tokio_tungstenite::tungstenite::Message;
    let url = format!("ws://{}/instances/files/cp", server.address);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    socket.send(Message::text(start.to_string())).await.unwrap();
    for message in send {
        socket.send(message.clone()).await.unwrap();
    }
    let (mut texts, mut bytes) = (Vec::new(), Vec::new());
    while let Some(Ok(message)) = timeout(SOON, socket.next()).await.unwrap() {
        match message {
            Message::Binary(piece) => bytes.extend_from_slice(&piece),
            Message::Text(text) => texts.push(serde_json::from_str(&text).unwrap()),
            _ => {}
        }
    }
    (texts, bytes)
}

#[tokio::test]
async fn files_are_copied_with_the_frames_of_the_instance_api() {
    use serde_json::json;
    use tokio_tungstenite::tungstenite::Message;
    let server = server().await;
    server.make("files").await;
    let end = || Message::text(r#"{"type":"end"}"#);
    let to = |path: &str| {
        json!({"direction": "to", "guest_path": path, "is_dir": false, "mode": 0o751, "follow_links": false,
                                  "src_basename": "name", "uid": 5, "gid": 6})
    };
    let data = [
        Message::binary(vec![1; 100_000]),
        Message::binary(vec![2; 5]),
        end(),
    ];
    let (texts, _) = copied(&server, &to("/etc"), &data).await;
    let done = json!({"type": "result", "success": true, "bytes_written": 100_005});
    assert_eq!(texts, [done]);
    let from = |path: &str| json!({"direction": "from", "guest_path": path});
    let (texts, bytes) = copied(&server, &from("/etc/name"), &[]).await;
    assert_eq!(bytes.len(), 100_005);
    let header = json!({"type": "header", "path": "name", "mode": 0o751, "is_dir": false, "is_symlink": false, "size": 100_005,
                         "mtime": 1_700_000_000, "uid": 5, "gid": 6});
    let last = json!({"type": "end", "final": true});
    assert_eq!(
        texts,
        [header, json!({"type": "end", "final": false}), last.clone()]
    );
    let mut directory = to("/made/here");
    directory["is_dir"] = json!(true);
    assert_eq!(
        copied(&server, &directory, &[end()]).await.0[0]["success"],
        true
    );
    let (texts, bytes) = copied(&server, &from("/made"), &[]).await;
    let paths: Vec<_> = texts
        .iter()
        .filter_map(|text| text["path"].as_str())
        .collect();
    assert_eq!(
        (paths, bytes.len(), texts.last()),
        (vec![".", "here"], 0, Some(&last))
    );

    // What breaks off, and what cannot be.
    let kept = || server.client.stat_path("files", "/etc/half", false);
    for cut in [
        vec![data[0].clone(), Message::Close(None)],
        vec![data[0].clone(), Message::text("{}")],
    ] {
        copied(&server, &to("/etc/half"), &cut).await;
        assert!(!kept().await.unwrap().exists);
    }
    let (texts, _) = copied(&server, &to("/full/x"), &data).await;
    assert_eq!(
        (&texts[0]["success"], &texts[0]["code"]),
        (&json!(false), &json!("guest_disk_full"))
    );
    let (texts, _) = copied(&server, &from("/nothing"), &[]).await;
    assert_eq!(
        (&texts[0]["type"], &texts[0]["code"]),
        (&json!("error"), &json!("file_not_found"))
    );
    let (texts, _) = copied(&server, &from("/lies"), &[]).await;
    assert_eq!(texts.last().unwrap()["code"], "guest_unreachable");
    for bad in [
        json!({"direction": "up", "guest_path": "/x"}),
        json!({"direction": "to"}),
        json!({"direction": "from", "guest_path": "x"}),
    ] {
        let (texts, _) = copied(&server, &bad, &[]).await;
        assert_eq!(texts[0]["type"], "error", "{bad}: {texts:?}");
    }
}

#[tokio::test]
async fn trees_are_copied_as_tar_streams_and_broken_ones_are_errors() {
    use warren_api::{CopyDirection, CopyStart};
    let server = server().await;
    server.make("files").await;
    let start = |direction: &str, path: &str| -> CopyStart {
        let start =
            serde_json::json!({"direction": direction, "guest_path": path, "format": "tar"});
        serde_json::from_value(start).unwrap()
    };
    let all = async |path: &str| {
        let start = start("from", path);
        assert_eq!(start.direction, CopyDirection::From);
        let mut download = server.client.copy_from("files", &start).await?;
        let mut all = Vec::new();
        while let Some(piece) = timeout(SOON, download.next()).await.unwrap()? {
            all.extend_from_slice(&piece);
        }
        Ok::<_, ClientError>(all)
    };
    let archive = all("/etc").await.unwrap();
    let mut upload = server
        .client
        .copy_to("files", &start("to", "/new"))
        .await
        .unwrap();
    for piece in archive.chunks(1000) {
        upload.send(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), archive.len() as u64);
    let info = server
        .client
        .stat_path("files", "/new/motd", false)
        .await
        .unwrap();
    assert_eq!((info.is_file, info.size), (Some(true), Some(5)));
    assert_eq!(
        all("/nothing").await.unwrap_err().code(),
        Some("file_not_found")
    );
    assert_eq!(
        all("/lies").await.unwrap_err().code(),
        Some("guest_unreachable")
    );
    let mut broken = server
        .client
        .copy_to("files", &start("to", "/half"))
        .await
        .unwrap();
    broken.send(Bytes::from(archive)).await.unwrap();
    drop(broken);
    let info = server
        .client
        .stat_path("files", "/half", false)
        .await
        .unwrap();
    assert!(!info.exists);
}

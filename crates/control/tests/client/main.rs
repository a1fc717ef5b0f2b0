//! The typed client against the real server: streams that resume, exec, attach, HTTP/2, shutdown.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod copying;
mod exec;
mod serving;
mod streams;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test file uses a part")]
mod support;

use futures::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{Host, TestClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use warren_api::client::{Client, ClientError, CreateOptions, ListQuery};
use warren_api::{CreateInstanceRequest, InstanceState};
use warren_control::{App, Auth, Settings, serve};
use warren_core::InstallationId;
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

    /// Every text and all binary data that a WebSocket says to these messages until it ends.
    async fn web_socket(&self, path: &str, send: &[Message]) -> (Vec<String>, Vec<u8>) {
        let url = format!("ws://{}{path}", self.address);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        for message in send {
            socket.send(message.clone()).await.unwrap();
        }
        let (mut texts, mut bytes) = (Vec::new(), Vec::new());
        while let Some(Ok(message)) = timeout(SOON, socket.next()).await.unwrap() {
            match message {
                Message::Binary(piece) => bytes.extend_from_slice(&piece),
                Message::Text(text) => texts.push(text.to_string()),
                _ => {}
            }
        }
        (texts, bytes)
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
    let request = warren_api::StandbyInstanceRequest::default();
    let saved = client.standby_instance("life", &request).await.unwrap();
    assert_eq!(saved.state, InstanceState::Standby);
    assert_eq!(
        client.restore_instance("life").await.unwrap().state,
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

//! Listeners and connections: which are served, how, and for how long.

use super::*;
use tokio::io::AsyncWriteExt;

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
async fn half_a_head_and_idle_connections_do_not_hold_a_shutdown_up() {
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

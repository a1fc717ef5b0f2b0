//! Proxies as the environment names them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use warren_core::ports::images::{PullRequest, Transport};
use warren_image::source::registry::{HostSettings, Proxies, RegistrySettings, TlsSettings};

use crate::server::{Image, Server, layer};
use crate::tls::{Authority, settings};
use crate::{Host, plain};

fn image() -> Image {
    Image::of(&[layer("a", 20_000)])
}

fn through(proxies: Proxies) -> RegistrySettings {
    RegistrySettings {
        proxies,
        ..RegistrySettings::default()
    }
}

/// Below a name that no resolver knows.
fn far_away(transport: Transport) -> PullRequest {
    PullRequest {
        reference: "registry.invalid:5000/web:1".into(),
        transport,
        ..PullRequest::default()
    }
}

#[tokio::test]
async fn plain_requests_go_through_the_proxy_with_its_password() {
    // A proxy of plain HTTP is asked like the registry itself.
    let proxy = Server::plain().await;
    proxy.put_image("web", "1", &image());
    let host = Host::with(
        through(Proxies {
            http: Some(format!("http://me:secret@{}", proxy.host())),
            ..Proxies::default()
        }),
        None,
    );
    host.pull(far_away(Transport::PlainHttp)).await.unwrap();
    for seen in proxy.seen() {
        assert_eq!(seen.header("host"), Some("registry.invalid:5000"));
        // me:secret
        assert_eq!(
            seen.header("proxy-authorization"),
            Some("Basic bWU6c2VjcmV0")
        );
    }
}

/// A proxy that opens tunnels, all to `to`; what it was asked for.
async fn tunnels(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                log.lock()
                    .unwrap()
                    .push(head.lines().next().unwrap().to_owned());
                let mut server = TcpStream::connect(to).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                // Either end may go first.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn encrypted_requests_go_through_a_tunnel() {
    let authority = Authority::new();
    let server = Server::tls(authority.server("registry.invalid")).await;
    server.put_image("web", "1", &image());
    let (proxy, asked) = tunnels(server.address).await;
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let tls = TlsSettings {
        ca: vec![ca],
        client: None,
    };
    let registries = RegistrySettings {
        proxies: Proxies {
            https: Some(proxy.to_string()),
            ..Proxies::default()
        },
        ..settings(
            "registry.invalid:5000",
            HostSettings {
                tls,
                ..HostSettings::default()
            },
        )
    };
    Host::with(registries, None)
        .pull(far_away(Transport::Https))
        .await
        .unwrap();
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty());
    assert!(
        asked
            .iter()
            .all(|line| line == "CONNECT registry.invalid:5000 HTTP/1.1"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn loopback_and_what_is_excepted_are_reached_directly() {
    let proxy = Server::plain().await;
    let server = Server::plain().await;
    server.put_image("web", "1", &image());
    let host = Host::with(
        through(Proxies {
            http: Some(format!("http://{}", proxy.host())),
            https: None,
            none: "other.example, .invalid".into(),
        }),
        None,
    );
    let error = host
        .refused(far_away(Transport::PlainHttp), "registry_unreachable")
        .await;
    assert!(error.message.contains("name is not known"), "{error}");
    host.pull(plain(&server, "web:1")).await.unwrap();
    let by_name = PullRequest {
        reference: format!("localhost:{}/web:1", server.address.port()),
        transport: Transport::PlainHttp,
        ..PullRequest::default()
    };
    host.pull(by_name).await.unwrap();
    assert!(proxy.seen().is_empty());
}

#[tokio::test]
async fn a_proxy_that_cannot_be_used_is_named() {
    let host = Host::with(
        through(Proxies {
            http: Some("socks5://127.0.0.1:1".into()),
            ..Proxies::default()
        }),
        None,
    );
    let error = host
        .refused(far_away(Transport::PlainHttp), "registry_settings_invalid")
        .await;
    assert!(error.message.contains("proxy"), "{error}");
}

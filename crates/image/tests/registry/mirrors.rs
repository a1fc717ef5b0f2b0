//! Mirrors are asked first, get nothing that is not theirs, and are never needed.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use warren_core::ports::images::{PullRequest, RegistryCredentials, Transport};
use warren_image::source::registry::{HostSettings, RegistrySettings};

use crate::server::{Image, Server, Then, cut, layer};
use crate::tls::settings;
use crate::{Host, plain};

fn image() -> Image {
    Image::of(&[layer("a", 100_000), layer("b", 1000)])
}

fn mirrored(origin: &str, mirrors: &[String]) -> RegistrySettings {
    let mirrors = mirrors.iter().map(|mirror| mirror.parse().unwrap());
    settings(
        origin,
        HostSettings {
            mirrors: mirrors.collect(),
            transport: Transport::PlainHttp,
            ..HostSettings::default()
        },
    )
}

fn at(server: &Server) -> String {
    format!("http://{}", server.host())
}

#[tokio::test]
async fn a_mirror_that_has_it_is_enough() {
    let (origin, mirror) = (Server::plain().await, Server::plain().await);
    mirror.put_image("hub/cache/web", "1", &image());
    let registries = mirrored(&origin.host(), &[format!("{}/hub/cache", at(&mirror))]);
    let record = Host::with(registries, None)
        .pull(plain(&origin, "web:1"))
        .await
        .unwrap();
    assert_eq!(record.name, format!("{}/web:1", origin.host()));
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn docker_hubs_images_come_from_its_mirror_without_a_word_to_it() {
    let mirror = Server::plain().await;
    mirror.put_image("library/web", "1", &image());
    let host = Host::with(mirrored("docker.io", &[at(&mirror)]), None);
    let request = PullRequest {
        reference: "web:1".into(),
        ..PullRequest::default()
    };
    assert_eq!(
        host.pull(request).await.unwrap().name,
        "docker.io/library/web:1"
    );
}

#[tokio::test]
async fn mirrors_that_fail_are_passed_over() {
    let origin = Server::plain().await;
    origin.put_image("web", "1", &image());
    let gone = at(&Server::plain().await);
    let (empty, broken, closed) = (
        Server::plain().await,
        Server::plain().await,
        Server::plain().await,
    );
    broken.rule(usize::MAX, |_| {
        Some(StatusCode::BAD_GATEWAY.into_response())
    });
    closed.rule(usize::MAX, |_| Some(StatusCode::FORBIDDEN.into_response()));
    let registries = mirrored(
        &origin.host(),
        &[gone, at(&empty), at(&broken), at(&closed)],
    );
    Host::with(registries, None)
        .pull(plain(&origin, "web:1"))
        .await
        .unwrap();
    for mirror in [&empty, &broken, &closed] {
        assert!(!mirror.seen().is_empty());
        // Where the manifest was not, the layers are not looked for.
        assert!(mirror.asked(Method::GET, "/blobs/").is_empty());
    }
}

#[tokio::test]
async fn a_layer_that_a_mirror_cannot_finish_comes_from_the_registry() {
    let (origin, mirror) = (Server::plain().await, Server::plain().await);
    let image = image();
    origin.put_image("web", "1", &image);
    mirror.put_image("web", "1", &image);
    let (digest, bytes) = image.layer(0);
    let start = bytes.clone();
    mirror.blob_rule(1, &digest, move |_| cut(&start, 40_000, Then::Silence));
    mirror.blob_rule(usize::MAX, &digest, move |_| cut(&bytes, 0, Then::Break));
    let host = Host::with(mirrored(&origin.host(), &[at(&mirror)]), None);
    host.pull(plain(&origin, "web:1")).await.unwrap();
    let rest = origin.asked(Method::GET, &digest);
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].header("range"), Some("bytes=40000-"));
    // The other layer came from the mirror.
    assert!(origin.asked(Method::GET, &image.layer(1).0).is_empty());
}

#[tokio::test]
async fn a_mirror_does_not_see_the_registrys_credentials() {
    let (origin, mirror) = (Server::plain().await, Server::plain().await);
    origin.put_image("web", "1", &image());
    let wants = |_: &crate::server::Seen| -> Option<Response> {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"m\"")];
        Some((StatusCode::UNAUTHORIZED, challenge).into_response())
    };
    mirror.rule(usize::MAX, wants);
    let host = Host::with(mirrored(&origin.host(), &[at(&mirror)]), None);
    let request = PullRequest {
        credentials: Some(RegistryCredentials::Basic {
            username: "user".into(),
            password: "pass".into(),
        }),
        ..plain(&origin, "web:1")
    };
    host.pull(request).await.unwrap();
    assert_eq!(mirror.seen().len(), 1);
    assert!(
        mirror
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_mirror_that_lies_is_refused() {
    let (origin, mirror) = (Server::plain().await, Server::plain().await);
    let image = image();
    origin.put_image("web", "1", &image);
    mirror.put_image("web", "1", &image);
    let (digest, bytes) = image.layer(0);
    mirror.blob_rule(1, &digest, move |_| vec![0u8; bytes.len()].into_response());
    let host = Host::with(mirrored(&origin.host(), &[at(&mirror)]), None);
    host.refused(plain(&origin, "web:1"), "image_damaged").await;
    host.pull(plain(&origin, "web:1")).await.unwrap();
}

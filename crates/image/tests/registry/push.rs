//! Pushes: what is sent, what is not, and what is done when it does not go well.

use std::sync::{Arc, Mutex};

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::Images as _;
use warren_core::ports::images::{PushRequest, Pushed, Transport};
use warren_core::{ErrorClass, PortError};

use crate::docker::{Guarded, TOOLS};
use crate::server::{Image, MANIFEST, Server, layer, refusal};
use crate::support::{have, quiet};
use crate::{Host, plain};

fn image() -> Image {
    Image::of(&[layer("a", 600_000), layer("b", 1000)])
}

/// A host with the image, pulled from a registry that is of no further interest; the image's id and digest.
async fn host_with(image: &Image) -> (Host, String, String) {
    let origin = Server::plain().await;
    let digest = origin.put_image("web", "1", image);
    let host = Host::new();
    let record = host.pull(plain(&origin, "web:1")).await.unwrap();
    (host, record.id, digest)
}

async fn push(host: &Host, id: &str, server: &Server, name: &str) -> Result<Pushed, PortError> {
    let request = PushRequest {
        id: id.into(),
        target: format!("{}/{name}", server.host()),
        transport: Transport::PlainHttp,
        credentials: None,
    };
    host.images.push(request, quiet()).await
}

/// Uploads that were sent whole.
fn uploads(server: &Server) -> usize {
    server.asked(Method::PUT, "/blobs/uploads/").len()
}

#[tokio::test]
async fn an_image_is_pushed_as_it_came_and_only_once() {
    let image = image();
    let (host, id, digest) = host_with(&image).await;
    let server = Server::plain().await;
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let request = PushRequest {
        id: id.clone(),
        target: format!("{}/team/app:2", server.host()),
        transport: Transport::PlainHttp,
        credentials: None,
    };
    let pushed = host.images.push(request, sink).await.unwrap();
    assert_eq!(
        (pushed.digest.as_str(), pushed.layers),
        (digest.as_str(), 2)
    );
    let sizes: usize = image.layers.iter().map(|(stored, _)| stored.len()).sum();
    let config = image.config.to_string();
    assert_eq!(pushed.sent_bytes, (sizes + config.len()) as u64);
    // Byte for byte, and each blob in one request that says how long it is.
    let (media_type, manifest) = server.manifest("team/app", "2").unwrap();
    assert_eq!(
        (media_type.as_str(), manifest),
        (MANIFEST, image.manifest().to_string().into())
    );
    for at in 0..2 {
        let (digest, bytes) = image.layer(at);
        assert_eq!(server.blob(&digest).unwrap(), bytes);
    }
    for upload in server.asked(Method::PUT, "/blobs/uploads/") {
        assert_eq!(
            upload.header("content-length").unwrap(),
            upload.body.len().to_string()
        );
        assert_eq!(upload.header("transfer-encoding"), None);
        // What the registry put into the address has come back.
        assert_eq!(upload.field("state").as_deref(), Some("s"));
    }
    {
        let events = events.lock().unwrap();
        assert!(matches!(
            &events[0],
            ImageProgress::Resolved { layers: 2, .. }
        ));
        assert_eq!(events.last(), Some(&ImageProgress::Finishing));
        let done = |event: &&ImageProgress| {
            matches!(
                event,
                ImageProgress::Layer {
                    phase: LayerPhase::Done,
                    ..
                }
            )
        };
        assert_eq!(events.iter().filter(done).count(), 2);
    }
    // Again: it is all there.
    server.forget();
    let again = push(&host, &id, &server, "team/app:3").await.unwrap();
    assert_eq!((again.sent_bytes, uploads(&server)), (0, 0));
    // And what was pushed can be pulled, by somebody else.
    let record = Host::new()
        .pull(plain(&server, "team/app:3"))
        .await
        .unwrap();
    assert_eq!(record.digest, digest);
}

#[tokio::test]
async fn layers_of_another_repository_are_mounted() {
    let server = Server::plain().await;
    let image = image();
    server.put_image("base", "1", &image);
    let host = Host::new();
    let id = host.pull(plain(&server, "base:1")).await.unwrap().id;
    server.forget();
    // The repository has nothing; the registry has it all.
    server.rule(usize::MAX, |seen| {
        (seen.method == Method::HEAD).then(|| StatusCode::NOT_FOUND.into_response())
    });
    push(&host, &id, &server, "app:1").await.unwrap();
    let begun = server.asked(Method::POST, "/v2/app/blobs/uploads/");
    assert_eq!(
        begun
            .iter()
            .filter(|seen| seen.field("from").as_deref() == Some("base"))
            .count(),
        2
    );
    // The configuration's alone.
    assert_eq!(uploads(&server), 1);
    // A registry that does not let us mount gets the layers.
    server.rule(usize::MAX, |seen| {
        let refused = (StatusCode::FORBIDDEN, refusal("DENIED", "no"));
        seen.path
            .contains("mount=")
            .then(|| refused.into_response())
    });
    server.forget();
    push(&host, &id, &server, "app:2").await.unwrap();
    assert_eq!(uploads(&server), 3);
}

#[tokio::test]
async fn uploads_are_repeated_from_the_start() {
    let (host, id, _) = host_with(&image()).await;
    let server = Server::plain().await;
    for _ in 0..2 {
        server.rule(1, |seen| {
            let busy = StatusCode::BAD_GATEWAY.into_response();
            (seen.method == Method::PUT && seen.path.contains("/blobs/")).then_some(busy)
        });
    }
    server.rule(1, |seen| {
        let busy = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response();
        (seen.method == Method::PUT && seen.path.contains("/manifests/")).then_some(busy)
    });
    push(&host, &id, &server, "app:1").await.unwrap();
    assert_eq!(uploads(&server), 5);
    assert!(server.manifest("app", "1").is_some());
}

#[tokio::test]
async fn a_blob_that_is_damaged_here_is_not_sent_as_what_it_is_not() {
    let image = image();
    let (host, id, _) = host_with(&image).await;
    let (digest, bytes) = image.layer(0);
    let path = host
        .data
        .path()
        .join("images/blobs/sha256")
        .join(&digest["sha256:".len()..]);
    let mut damaged = bytes.to_vec();
    damaged[1000] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let server = Server::plain().await;
    let error = push(&host, &id, &server, "app:1").await.unwrap_err();
    assert_eq!(
        (error.class, error.code),
        (ErrorClass::Conflict, "image_blob_unreadable")
    );
    assert!(server.manifest("app", "1").is_none());
    std::fs::remove_file(&path).unwrap();
    let error = push(&host, &id, &server, "app:1").await.unwrap_err();
    assert_eq!(error.code, "blob_not_here");
    assert_eq!(
        push(&host, "none", &server, "app:1")
            .await
            .unwrap_err()
            .code,
        "image_not_here"
    );
}

#[tokio::test]
async fn a_manifest_that_is_stored_as_another_is_told() {
    let (host, id, _) = host_with(&image()).await;
    let server = Server::plain().await;
    server.rule(1, |seen| {
        let other = [(
            "docker-content-digest",
            warren_image::Digest::of(b"x").to_string(),
        )];
        let stored = (StatusCode::CREATED, other).into_response();
        (seen.method == Method::PUT && seen.path.contains("/manifests/")).then_some(stored)
    });
    let error = push(&host, &id, &server, "app:1").await.unwrap_err();
    assert_eq!(error.code, "image_damaged");
}

#[tokio::test]
async fn an_upload_elsewhere_gets_no_credentials() {
    let (host, id, _) = host_with(&image()).await;
    let (server, storage) = (Server::plain().await, Server::plain().await);
    let to = format!("http://{}/v2/store/blobs/uploads/x", storage.host());
    server.rule(usize::MAX, move |seen| {
        if seen.header("authorization").is_none() {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")];
            return Some((StatusCode::UNAUTHORIZED, challenge).into_response());
        }
        let accepted = (StatusCode::ACCEPTED, [(header::LOCATION, to.clone())]);
        (seen.method == Method::POST).then(|| accepted.into_response())
    });
    let request = PushRequest {
        id,
        target: format!("{}/app:1", server.host()),
        transport: Transport::PlainHttp,
        credentials: Some(warren_core::ports::images::RegistryCredentials::Basic {
            username: "user".into(),
            password: "pass".into(),
        }),
    };
    host.images.push(request, quiet()).await.unwrap();
    assert_eq!(uploads(&storage), 3);
    assert!(
        storage
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
    assert!(server.manifest("app", "1").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_with_passwords_and_a_private_ca_is_pushed_to() {
    let test = "a_real_registry_with_passwords_and_a_private_ca_is_pushed_to";
    if !have(test, &TOOLS[..1]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let registry = Guarded::start(work.path());
    let origin = Server::plain().await;
    let digest = origin.put_image("web", "1", &image());
    for (password, works) in [("wrong", false), ("pass", true)] {
        let settings = registry.settings(work.path(), Some(("user", password)));
        let host = Host::with(settings, None);
        let id = host.pull(plain(&origin, "web:1")).await.unwrap().id;
        let to = |name: &str| PushRequest {
            id: id.clone(),
            target: format!("{}/{name}", registry.host()),
            ..PushRequest::default()
        };
        if !works {
            let error = host
                .images
                .push(to("team/app:1"), quiet())
                .await
                .unwrap_err();
            assert_eq!(
                (error.class, error.code),
                (ErrorClass::Denied, "registry_denied")
            );
            continue;
        }
        let pushed = host.images.push(to("team/app:1"), quiet()).await.unwrap();
        assert!(pushed.sent_bytes > 600_000);
        assert_eq!(pushed.digest, digest);
        // It comes back as it was, for somebody who has nothing of it.
        let settings = registry.settings(work.path(), Some(("user", "pass")));
        let other = Host::with(settings, None);
        let request = warren_core::ports::images::PullRequest {
            reference: pushed.target.clone(),
            ..Default::default()
        };
        assert_eq!(other.pull(request).await.unwrap().digest, digest);
        // Its layers are mounted into another repository of the registry, once it is known to have them.
        let pulled = other.images.list().await.unwrap().remove(0).id;
        let elsewhere = PushRequest {
            id: pulled,
            ..to("team/other:1")
        };
        let mounted = other.images.push(elsewhere, quiet()).await.unwrap();
        assert!(mounted.sent_bytes < 2000, "{mounted:?}");
    }
}

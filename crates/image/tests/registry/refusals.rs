//! What must not be believed: nothing of it is published, the reason is said, and the next pull works.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use warren_core::ErrorClass;
use warren_core::ports::images::{PullRequest, Transport};

use crate::server::{Image, Server, Then, cut, endless, layer, refusal};
use crate::{Host, STALL, plain};

const SIZE: usize = 200_000;

async fn served(image: &Image) -> Server {
    let server = Server::plain().await;
    server.put_image("web", "1", image);
    server
}

fn image() -> Image {
    Image::of(&[layer("below", 1000), layer("a", SIZE)])
}

/// The pull is refused with `code` as long as the layer is answered like that, and works afterwards.
async fn refused_and_then_pulled(
    code: &str,
    answer: impl Fn(&Bytes) -> axum::response::Response + Send + Sync + 'static,
) -> warren_core::PortError {
    let image = image();
    let server = served(&image).await;
    let (digest, bytes) = image.layer(1);
    server.blob_rule(usize::MAX, &digest, move |_| answer(&bytes));
    let host = Host::new();
    let error = host.refused(plain(&server, "web:1"), code).await;
    server.no_rules();
    host.pull(plain(&server, "web:1")).await.unwrap();
    error
}

#[tokio::test]
async fn a_layer_of_another_digest_is_refused() {
    refused_and_then_pulled("image_damaged", |bytes| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes.into_response()
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_is_too_short_is_refused() {
    refused_and_then_pulled("image_damaged", |bytes| {
        bytes.slice(..SIZE / 2).into_response()
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_is_too_long_is_refused() {
    refused_and_then_pulled("image_damaged", |bytes| {
        [bytes, &b"more"[..]].concat().into_response()
    })
    .await;
}

#[tokio::test]
async fn a_layer_without_end_is_refused() {
    refused_and_then_pulled("image_damaged", |_| endless()).await;
}

#[tokio::test]
async fn a_layer_that_always_breaks_off_at_once_is_refused() {
    let error =
        refused_and_then_pulled("registry_unreachable", |bytes| cut(bytes, 0, Then::Break)).await;
    assert_eq!(error.class, ErrorClass::Retry);
}

#[tokio::test]
async fn a_layer_that_never_comes_is_refused() {
    let started = Instant::now();
    let error =
        refused_and_then_pulled("registry_stalled", |bytes| cut(bytes, 0, Then::Silence)).await;
    assert_eq!(error.class, ErrorClass::Retry);
    assert!(started.elapsed() < STALL * 5 + Duration::from_secs(8));
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_refused() {
    let image = image();
    let server = served(&image).await;
    let (digest, bytes) = image.layer(1);
    let start = bytes.clone();
    server.blob_rule(1, &digest, move |_| cut(&start, 1000, Then::Silence));
    server.blob_rule(1, &digest, move |_| {
        let range = [(
            header::CONTENT_RANGE,
            format!("bytes 0-{}/{}", bytes.len() - 1, bytes.len()),
        )];
        (StatusCode::PARTIAL_CONTENT, range, bytes.clone()).into_response()
    });
    let host = Host::new();
    host.refused(plain(&server, "web:1"), "image_damaged").await;
    host.pull(plain(&server, "web:1")).await.unwrap();
}

#[tokio::test]
async fn a_layer_of_another_size_than_its_manifest_says_is_refused() {
    let image = image();
    for difference in [-1, 1] {
        let server = served(&image).await;
        let mut wrong = image.manifest();
        let size = image.layers[1]
            .0
            .len()
            .checked_add_signed(difference)
            .unwrap();
        wrong["layers"][1]["size"] = size.into();
        server.put_manifest("web", "1", &wrong);
        let host = Host::new();
        host.refused(plain(&server, "web:1"), "image_damaged").await;
        server.put_manifest("web", "1", &image.manifest());
        host.pull(plain(&server, "web:1")).await.unwrap();
    }
}

#[tokio::test]
async fn a_layer_with_another_diff_id_is_refused() {
    let mut wrong = image();
    wrong.config["rootfs"]["diff_ids"][1] = warren_image::Digest::of(b"other").to_string().into();
    let server = served(&wrong).await;
    let host = Host::new();
    host.refused(plain(&server, "web:1"), "image_damaged").await;
    server.put_image("web", "1", &image());
    host.pull(plain(&server, "web:1")).await.unwrap();
}

#[tokio::test]
async fn documents_of_another_digest_are_refused() {
    let image = image();
    let server = served(&image).await;
    let host = Host::new();
    let other = warren_image::Digest::of(b"other");
    // A manifest by digest.
    server.rule(1, |seen| {
        seen.path
            .contains("/manifests/sha256:")
            .then(|| b"{}".into_response())
    });
    host.refused(plain(&server, &format!("web@{other}")), "image_damaged")
        .await;
    // The configuration.
    let config = image.manifest()["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let length = image.config.to_string().len();
    server.blob_rule(1, &config, move |_| vec![b' '; length].into_response());
    host.refused(plain(&server, "web:1"), "image_damaged").await;
    host.pull(plain(&server, "web:1")).await.unwrap();
}

#[tokio::test]
async fn a_manifest_without_end_is_refused() {
    let server = served(&image()).await;
    let host = Host::new();
    server.rule(1, |seen| seen.path.contains("/manifests/").then(endless));
    host.refused(plain(&server, "web:1"), "image_limit_exceeded")
        .await;
    server.rule(1, |seen| {
        let length = [(header::CONTENT_LENGTH, 5 << 20)];
        seen.path
            .contains("/manifests/")
            .then(|| (length, vec![b' '; 5 << 20]).into_response())
    });
    host.refused(plain(&server, "web:1"), "image_limit_exceeded")
        .await;
    host.pull(plain(&server, "web:1")).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_named_once_asked() {
    let server = served(&image()).await;
    let host = Host::new();
    let error = host
        .refused(plain(&server, "web:none"), "image_not_found")
        .await;
    assert!(
        error
            .message
            .contains(&format!("{}/web:none", server.host())),
        "{error}"
    );
    assert_eq!(server.asked(Method::GET, "/manifests/none").len(), 1);
}

#[tokio::test]
async fn a_registrys_own_words_are_told() {
    let server = served(&image()).await;
    server.rule(1, |_| {
        Some(
            (
                StatusCode::BAD_REQUEST,
                refusal("UNSUPPORTED", "no such luck"),
            )
                .into_response(),
        )
    });
    let error = Host::new()
        .refused(plain(&server, "web:1"), "registry_refused")
        .await;
    assert!(error.message.contains("no such luck"), "{error}");
}

#[tokio::test]
async fn a_registry_that_asks_for_time_gets_it() {
    let server = served(&image()).await;
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_millis(2500));
    server.rule(1, |_| {
        Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response())
    });
    server.rule(1, move |_| {
        let after = [("retry-after", date.clone())];
        Some((StatusCode::SERVICE_UNAVAILABLE, after).into_response())
    });
    let started = Instant::now();
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert!(
        started.elapsed() > Duration::from_millis(1400),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_registry_that_asks_for_more_time_than_a_user_has_is_told_at_once() {
    let server = served(&image()).await;
    server.rule(1, |_| {
        Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")]).into_response())
    });
    let host = Host::new();
    let error = host
        .refused(plain(&server, "web:1"), "registry_rate_limited")
        .await;
    assert!(error.sentence().contains("3600 s"), "{}", error.sentence());
    server.rule(1, |_| {
        Some((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")]).into_response())
    });
    let error = host
        .refused(plain(&server, "web:1"), "registry_failed")
        .await;
    assert!(error.sentence().contains("3600 s"), "{}", error.sentence());
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn nobody_at_the_registry_is_said_soon_with_the_step_that_may_help() {
    let gone = Server::plain().await.host();
    let host = Host::new();
    let request = |transport| PullRequest {
        reference: format!("{gone}/web:1"),
        transport,
        ..PullRequest::default()
    };
    let started = Instant::now();
    let error = host
        .refused(request(Transport::PlainHttp), "registry_unreachable")
        .await;
    assert!(error.message.contains("nobody listens"), "{error}");
    assert!(
        !error.sentence().contains("--plain-http"),
        "{}",
        error.sentence()
    );
    let error = host
        .refused(request(Transport::Https), "registry_unreachable")
        .await;
    assert!(
        error.sentence().contains("--plain-http"),
        "{}",
        error.sentence()
    );
    let unknown = PullRequest {
        reference: "registry.invalid/web:1".into(),
        ..PullRequest::default()
    };
    let error = host.refused(unknown, "registry_unreachable").await;
    assert!(error.message.contains("name is not known"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

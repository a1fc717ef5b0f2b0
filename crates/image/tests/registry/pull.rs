//! Layers that break off, stall and come again, and pulls that share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;

use crate::server::{Image, Server, Then, cut, layer, part};
use crate::{Host, plain};
use warren_core::ports::Images as _;

const SIZE: usize = 300_000;
const HALF: usize = 150_000;

/// A registry with one image of one layer; the layer's digest and bytes.
async fn one_layer() -> (Server, String, axum::body::Bytes) {
    let server = Server::plain().await;
    let image = Image::of(&[layer("a", SIZE)]);
    server.put_image("web", "1", &image);
    let (digest, bytes) = image.layer(0);
    (server, digest, bytes)
}

fn ranges(server: &Server, digest: &str) -> Vec<Option<String>> {
    server
        .asked(Method::GET, &format!("/blobs/{digest}"))
        .iter()
        .map(|seen| seen.header("range").map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn a_layer_goes_on_where_it_broke_off() {
    let (server, digest, bytes) = one_layer().await;
    server.blob_rule(1, &digest, move |_| cut(&bytes, HALF, Then::Break));
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    let ranges = ranges(&server, &digest);
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[0], None);
    let from: usize = ranges[1].as_ref().unwrap()["bytes=".len()..]
        .trim_end_matches('-')
        .parse()
        .unwrap();
    // What the last packets carried may be lost with the connection.
    assert!((1..=HALF).contains(&from), "{from}");
}

#[tokio::test]
async fn a_stalled_layer_is_asked_for_again() {
    let (server, digest, bytes) = one_layer().await;
    server.blob_rule(1, &digest, move |_| cut(&bytes, HALF, Then::Silence));
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(
        ranges(&server, &digest),
        [None, Some(format!("bytes={HALF}-"))]
    );
}

#[tokio::test]
async fn a_server_without_ranges_may_send_all_again() {
    let (server, digest, bytes) = one_layer().await;
    let whole = bytes.clone();
    server.blob_rule(1, &digest, move |_| cut(&bytes, HALF, Then::Silence));
    server.blob_rule(1, &digest, move |seen| {
        assert!(seen.header("range").is_some());
        whole.clone().into_response()
    });
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(ranges(&server, &digest).len(), 2);
}

#[tokio::test]
async fn a_server_that_refuses_the_rest_is_asked_for_all() {
    let (server, digest, bytes) = one_layer().await;
    server.blob_rule(1, &digest, move |_| cut(&bytes, HALF, Then::Silence));
    server.blob_rule(1, &digest, |_| {
        StatusCode::RANGE_NOT_SATISFIABLE.into_response()
    });
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(
        ranges(&server, &digest),
        [None, Some(format!("bytes={HALF}-")), None]
    );
}

#[tokio::test]
async fn errors_in_the_middle_of_a_layer_are_passed() {
    let (server, digest, bytes) = one_layer().await;
    server.blob_rule(1, &digest, move |_| cut(&bytes, HALF, Then::Silence));
    server.blob_rule(1, &digest, |_| {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    });
    server.blob_rule(1, &digest, |_| {
        (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response()
    });
    let started = Instant::now();
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    let rest = Some(format!("bytes={HALF}-"));
    assert_eq!(
        ranges(&server, &digest),
        [None, rest.clone(), rest.clone(), rest]
    );
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_layer_that_breaks_off_often_but_moves_on_arrives() {
    let (server, digest, bytes) = one_layer().await;
    // More often than a request is repeated that brings nothing.
    server.blob_rule(8, &digest, move |seen| {
        let rest = part(seen, &bytes);
        let start = seen.header("range").map_or(0, |range| {
            range["bytes=".len()..]
                .trim_end_matches('-')
                .parse()
                .unwrap()
        });
        let mut answer = cut(&bytes.slice(start..), 30_000, Then::Break);
        *answer.status_mut() = rest.status();
        if let Some(range) = rest.headers().get("content-range") {
            answer.headers_mut().insert("content-range", range.clone());
        }
        answer
    });
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(ranges(&server, &digest).len(), 9);
}

#[tokio::test]
async fn documents_are_asked_for_again_after_errors() {
    let (server, ..) = one_layer().await;
    let config = Image::of(&[layer("a", SIZE)]).config.to_string();
    let config = warren_image::Digest::of(config.as_bytes()).to_string();
    server.rule(2, |seen| {
        seen.path
            .contains("/manifests/")
            .then(|| StatusCode::BAD_GATEWAY.into_response())
    });
    server.blob_rule(1, &config, |_| {
        cut(&vec![b'x'; 100].into(), 10, Then::Break)
    });
    Host::new().pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(server.asked(Method::GET, "/manifests/").len(), 3);
    assert_eq!(server.asked(Method::GET, &config).len(), 2);
}

#[tokio::test]
async fn a_second_pull_with_one_changed_layer_fetches_only_that_layer() {
    let server = Server::plain().await;
    let (base, first, second) = (layer("base", SIZE), layer("one", 1000), layer("two", 1000));
    server.put_image("web", "1", &Image::of(&[base.clone(), first]));
    let changed = Image::of(&[base, second]);
    server.put_image("web", "2", &changed);
    let host = Host::new();
    host.pull(plain(&server, "web:1")).await.unwrap();
    server.forget();
    host.pull(plain(&server, "web:2")).await.unwrap();
    let config = changed.manifest()["config"]["digest"].clone();
    let mut expected = [config.as_str().unwrap().to_owned(), changed.layer(1).0];
    expected.sort();
    assert_eq!(blobs(&server), expected);
}

/// Each request for a blob, by digest.
fn blobs(server: &Server) -> Vec<String> {
    let mut digests: Vec<String> = server
        .asked(Method::GET, "/blobs/")
        .iter()
        .map(|seen| seen.path.rsplit('/').next().unwrap().to_owned())
        .collect();
    digests.sort();
    digests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_pulls_at_once_of_three_images_fetch_each_layer_once() {
    let server = Server::plain().await;
    let layers = [layer("a", SIZE), layer("b", 50_000), layer("c", 1000)];
    for count in 1..=3 {
        server.put_image("web", &count.to_string(), &Image::of(&layers[..count]));
    }
    let host = Arc::new(Host::new());
    let pulls = (0..50).map(|n| host.pull(plain(&server, &format!("web:{}", n % 3 + 1))));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    assert_eq!(host.images.list().await.unwrap().len(), 3);
    // Three layers and three configurations.
    assert_eq!(blobs(&server).len(), 6, "{:?}", blobs(&server));
    // Again: what is here is not asked for.
    server.forget();
    host.pull(plain(&server, "web:3")).await.unwrap();
    assert_eq!(server.seen().len(), 1);
    assert_eq!(server.asked(Method::GET, "/manifests/3").len(), 1);
}

#[tokio::test]
async fn a_pull_that_is_dropped_stops_its_download() {
    let (server, digest, bytes) = one_layer().await;
    server.blob_rule(9, &digest, move |_| cut(&bytes, HALF, Then::Silence));
    let host = Host::new();
    let pull = host.pull(plain(&server, "web:1"));
    // It waits for the rest of the layer when it is dropped.
    let dropped = tokio::time::timeout(Duration::from_millis(300), pull).await;
    assert!(dropped.is_err());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !host.temporaries().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", host.temporaries());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = ranges(&server, &digest).len();
    server.no_rules();
    host.pull(plain(&server, "web:1")).await.unwrap();
    assert_eq!(ranges(&server, &digest).len(), asked + 1);
}

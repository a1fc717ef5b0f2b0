//! Which image of an index is pulled.

use serde_json::{Value, json};
use warren_core::ports::images::PullRequest;

use crate::server::{INDEX, Image, MANIFEST, Server, layer};
use crate::{Host, plain};

/// A server with an index under `web:1`, and the digests of its images by platform.
async fn with_index(platforms: &[(&str, Option<&str>)]) -> (Server, Vec<String>) {
    let server = Server::plain().await;
    let mut entries: Vec<Value> = Vec::new();
    let mut digests = Vec::new();
    for (at, (architecture, variant)) in platforms.iter().enumerate() {
        let image = Image::for_platform(architecture, *variant, &[layer(&at.to_string(), 100)]);
        let digest = server.put_image("web", &format!("only-{at}"), &image);
        let mut platform = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = (*variant).into();
        }
        entries.push(json!({ "mediaType": MANIFEST, "digest": digest,
            "size": image.manifest().to_string().len(), "platform": platform }));
        digests.push(digest);
    }
    // What build tools put next to images: where they come from.
    entries.insert(
        0,
        json!({ "mediaType": MANIFEST, "digest": digests[0], "size": 1,
        "platform": { "os": "unknown", "architecture": "unknown" } }),
    );
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let digest = server.put_manifest("web", "1", &index);
    digests.push(digest);
    (server, digests)
}

fn for_platform(server: &Server, platform: &str) -> PullRequest {
    PullRequest {
        platform: Some(platform.into()),
        ..plain(server, "web:1")
    }
}

#[tokio::test]
async fn an_index_gives_the_image_of_the_platform() {
    let (server, digests) = with_index(&[
        ("arm", Some("v6")),
        ("arm", Some("v7")),
        ("arm64", Some("v8")),
        ("amd64", None),
        ("amd64", Some("v3")),
    ])
    .await;
    let host = Host::new();
    for (platform, expected) in [
        ("linux/arm/v6", 0),
        ("linux/arm/v7", 1),
        // docker's default for arm.
        ("linux/arm", 1),
        ("linux/arm64", 2),
        ("linux/arm64/v8", 2),
        ("linux/amd64", 3),
        ("linux/amd64/v3", 4),
        // What runs on less runs on more.
        ("linux/amd64/v2", 3),
        ("linux/arm/v8", 1),
    ] {
        let record = host.pull(for_platform(&server, platform)).await.unwrap();
        assert_eq!(record.digest, digests[expected], "{platform}");
    }
    if cfg!(target_arch = "x86_64") {
        let record = host.pull(plain(&server, "web:1")).await.unwrap();
        assert_eq!(record.digest, digests[3]);
        // By the digest of the index.
        let by_digest = plain(&server, &format!("web@{}", digests[5]));
        assert_eq!(host.pull(by_digest).await.unwrap().digest, digests[3]);
    }
}

#[tokio::test]
async fn an_index_without_the_platform_says_what_it_has() {
    let (server, _) = with_index(&[("arm", Some("v7")), ("s390x", None)]).await;
    let host = Host::new();
    let refused = host
        .refused(
            for_platform(&server, "linux/arm64"),
            "image_platform_missing",
        )
        .await;
    assert!(
        refused.message.contains("linux/arm/v7, linux/s390x")
            && !refused.message.contains("unknown"),
        "{refused}"
    );
    // More than this processor can.
    host.refused(
        for_platform(&server, "linux/arm/v6"),
        "image_platform_missing",
    )
    .await;
}

//! Who gets in: credentials, scopes, web pages.

use super::*;

#[tokio::test]
async fn credentials_and_scopes() {
    let world = world_with(
        Auth::from_secret(Some("s3cret")),
        Host::new(),
        Arc::new(MemoryStore::new()),
    )
    .await;
    assert_eq!(world.get("/health").await.status, 200);
    assert_eq!(world.get("/spec.json").await.status, 200);
    for path in ["/instances", "/metrics", "/docs", "/ready", "/nowhere"] {
        let refused = world.get(path).await;
        refused.problem(401, "unauthorized");
        assert!(refused.headers.contains_key("www-authenticate"));
    }
    let token = |claims: Value| {
        use base64::Engine;
        let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let head = format!(
            "{}.{}",
            b64(br#"{"alg":"HS256"}"#),
            b64(claims.to_string().as_bytes())
        );
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"s3cret");
        format!(
            "Bearer {head}.{}",
            b64(ring::hmac::sign(&key, head.as_bytes()).as_ref())
        )
    };
    let full = token(json!({"sub": "me"}));
    assert_eq!(
        world
            .with("GET", "/instances", None, &[("authorization", &full)])
            .await
            .status,
        200
    );
    let reader = token(json!({"permissions": ["instance:read"]}));
    assert_eq!(
        world
            .with("GET", "/instances", None, &[("authorization", &reader)])
            .await
            .status,
        200
    );
    let body = json!({"name": "x", "image": "busybox"});
    world
        .with(
            "POST",
            "/instances",
            Some(body),
            &[("authorization", &reader)],
        )
        .await
        .problem(403, "forbidden");
    world
        .with("GET", "/images", None, &[("authorization", &reader)])
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let world = world().await;
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost:1"),
    ] {
        world
            .with("GET", "/instances", None, &[(name, value)])
            .await
            .problem(403, "foreign_origin");
    }
    assert_eq!(
        world
            .with(
                "GET",
                "/instances",
                None,
                &[("origin", "http://localhost:8080")]
            )
            .await
            .status,
        200
    );
    let rebound = Request::get("/health")
        .header("host", "evil.example")
        .body(Body::empty())
        .unwrap();
    world.send(rebound).await.problem(403, "foreign_origin");
}

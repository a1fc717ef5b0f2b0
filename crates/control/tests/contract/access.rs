//! Who gets in: credentials, scopes, web pages.

use super::*;

#[tokio::test]
async fn credentials_and_scopes() {
    let world = world_with_a_secret().await;
    assert_eq!(world.get("/health").await.status, 200);
    assert_eq!(world.get("/spec.json").await.status, 200);
    for path in ["/instances", "/metrics", "/docs", "/ready", "/nowhere"] {
        let refused = world.get(path).await;
        refused.problem(401, "unauthorized");
        assert!(refused.headers.contains_key("www-authenticate"));
    }
    let bearer = |claims: Value| format!("Bearer {}", token(&claims));
    let full = bearer(json!({"sub": "me"}));
    assert_eq!(
        world
            .with("GET", "/instances", None, &[("authorization", &full)])
            .await
            .status,
        200
    );
    let reader = bearer(json!({"permissions": ["instance:read"]}));
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

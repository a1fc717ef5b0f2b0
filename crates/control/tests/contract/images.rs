//! Images: both generations' requests, loads, failed pulls.

use super::*;

#[tokio::test]
async fn images_of_both_generations() {
    let world = world().await;
    for path in [
        "/images/img-nginx",
        "/images/docker.io%2Flibrary%2Fnginx:1.27",
        "/images/docker.io/library/nginx:1.27",
    ] {
        let image = world.get(path).await.json();
        assert_eq!(
            (image["id"].as_str(), image["version"].as_str()),
            (Some("img-nginx"), Some("1.27")),
            "{path}"
        );
        assert_eq!(image["status"], "ready");
    }
    let here = world
        .call(
            "POST",
            "/images",
            Some(json!({"name": "docker.io/library/nginx:1.27"})),
        )
        .await;
    assert_eq!(here.status, 201);
    world.host.pulls_held.send_replace(true);
    let coming = world
        .call(
            "POST",
            "/images",
            Some(json!({"name": "localhost:5000/web:1", "id": "img-web"})),
        )
        .await;
    assert_eq!(coming.status, 202, "{}", coming.text);
    assert!(matches!(
        coming.json()["status"].as_str(),
        Some("pending" | "pulling")
    ));
    world.host.pulls_held.send_replace(false);
    let events = world
        .with(
            "POST",
            "/images",
            Some(json!({"name": "localhost:5000/web:1", "id": "img-web"})),
            &[("accept", "text/event-stream")],
        )
        .await;
    assert_eq!(events.status, 200);
    assert!(
        events.text.contains("event: images\n") && events.text.ends_with(": end\n\n"),
        "{}",
        events.text
    );
    assert_eq!(world.get("/images/img-web").await.json()["status"], "ready");
    let failed = world
        .with(
            "POST",
            "/images",
            Some(json!({"name": "registry.example/none:1"})),
            &[("accept", "text/event-stream")],
        )
        .await;
    assert!(failed.text.contains("event: problem\n"), "{}", failed.text);
    let failed = world.get("/images/registry.example/none:1").await.json();
    assert_eq!(failed["status"], "failed");
    assert!(
        failed["error"]
            .as_str()
            .unwrap()
            .contains("registry.example/none:1")
    );
    assert_eq!(
        world
            .call("DELETE", "/images/registry.example/none:1", None)
            .await
            .status,
        204
    );
    assert_eq!(
        world.call("DELETE", "/images/img-web", None).await.status,
        204
    );
}

#[tokio::test]
async fn a_deleted_image_is_gone_whatever_pulls_have_failed() {
    let world = world().await;
    let path = "/images/docker.io/library/nginx:1.27";
    let again = json!({"name": "docker.io/library/nginx:1.27", "id": "another"});
    let events = [("accept", "text/event-stream")];
    let failed = world.with("POST", "/images", Some(again), &events).await;
    assert!(failed.text.contains("event: problem"), "{}", failed.text);
    assert_eq!(world.get(path).await.json()["status"], "ready");
    assert_eq!(world.call("DELETE", path, None).await.status, 204);
    world.get(path).await.problem(404, "image_not_found");
}

#[tokio::test]
async fn archives_are_loaded() {
    let world = world().await;
    let load = |body: &'static str, path: &str| {
        Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/octet-stream")
            .body(Body::from(body))
            .unwrap()
    };
    let loaded = world
        .send(load("archive of web", "/images/load?name=web:1"))
        .await;
    assert_eq!(
        (loaded.status, loaded.json()[0]["name"].as_str()),
        (201, Some("web:1"))
    );
    world
        .send(load("junk", "/images/load?name=web:1"))
        .await
        .problem(400, "not_an_archive");
    world
        .send(load("", "/images/load"))
        .await
        .problem(400, "invalid_body");
    let html = Request::post("/images/load")
        .header("host", "localhost")
        .header("content-type", "text/html")
        .body(Body::from("x"))
        .unwrap();
    world
        .send(html)
        .await
        .problem(415, "unsupported_media_type");
    assert_eq!(
        std::fs::read_dir(world._spool.path()).unwrap().count(),
        0,
        "uploads are removed"
    );
}

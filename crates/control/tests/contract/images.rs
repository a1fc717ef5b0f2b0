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

#[tokio::test]
async fn a_failed_pull_is_forgotten_after_a_while() {
    let world = world().await;
    let path = "/images/registry.example/none:1";
    let wanted = json!({"name": "registry.example/none:1"});
    let events = [("accept", "text/event-stream")];
    world.with("POST", "/images", Some(wanted), &events).await;
    assert_eq!(world.get(path).await.json()["status"], "failed");
    *world.clock.passed.lock().unwrap() = Duration::from_secs(3500);
    assert_eq!(world.get(path).await.json()["status"], "failed");
    *world.clock.passed.lock().unwrap() = Duration::from_secs(3700);
    world.get(path).await.problem(404, "image_not_found");
    assert_eq!(
        world.get("/images").await.json().as_array().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn a_prune_forgets_what_has_failed() {
    let world = world().await;
    let path = "/images/registry.example/none:1";
    let wanted = json!({"name": "registry.example/none:1"});
    let events = [("accept", "text/event-stream")];
    world.with("POST", "/images", Some(wanted), &events).await;
    let prune = async |body: Value| {
        let pruned = world.call("POST", "/images/prune", Some(body)).await;
        assert_eq!(pruned.status, 200);
    };
    prune(json!({"dry_run": true})).await;
    assert_eq!(world.get(path).await.json()["status"], "failed");
    prune(json!({})).await;
    world.get(path).await.problem(404, "image_not_found");
    assert_eq!(
        world.get("/images").await.json().as_array().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn what_is_not_here_cannot_be_removed_and_is_not_offered() {
    let world = world().await;
    let refused = world.call("DELETE", "/images/nope", None).await;
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("warren images") && !detail.contains("pull"),
        "{detail}"
    );
    refused.problem(404, "image_not_found");
}

#[tokio::test]
async fn a_prune_takes_what_no_instance_uses() {
    let world = world().await;
    world
        .make(json!({"name": "web", "image": "docker.io/library/nginx:1.27"}))
        .await;
    let prune = async |body: Value| world.call("POST", "/images/prune", Some(body)).await;
    let nothing = prune(json!({})).await.json();
    assert_eq!(
        nothing,
        json!({"images": [], "disks": 0, "blobs": 0, "reclaimed_bytes": 0, "dry_run": false})
    );
    for (dry_run, left) in [(true, 2), (false, 1)] {
        let gone = prune(json!({"all": true, "dry_run": dry_run})).await.json();
        assert_eq!(gone["images"][0]["id"], "busybox");
        assert_eq!(gone["images"].as_array().unwrap().len(), 1);
        assert_eq!(gone["dry_run"], dry_run);
        assert_eq!(gone["reclaimed_bytes"], 60);
        let images = world.get("/images").await.json();
        assert_eq!(images.as_array().unwrap().len(), left);
    }
    prune(json!({"everything": true}))
        .await
        .problem(400, "invalid_body");
}

#[tokio::test]
async fn what_is_never_missed_goes_after_every_image_that_comes() {
    let world = world().await;
    let tidied = async |wanted: usize| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while *world.host.tidied.lock().unwrap() < wanted {
            assert!(tokio::time::Instant::now() < deadline, "never tidied");
            tokio::task::yield_now().await;
        }
    };
    // What a server that died left behind.
    tidied(1).await;
    let events = [("accept", "text/event-stream")];
    let wanted = json!({"name": "localhost:5000/web:1"});
    world.with("POST", "/images", Some(wanted), &events).await;
    tidied(2).await;
}

#[tokio::test]
async fn an_image_is_read_again() {
    let world = world().await;
    let verify = async |body: Value| world.call("POST", "/images/verify", Some(body)).await;
    let wanted = "localhost:5000/team/busybox:latest";
    let sound = verify(json!({"image": wanted})).await;
    assert_eq!(sound.status, 200, "{}", sound.text);
    assert_eq!(sound.json()["sound"], true);
    world.host.damaged.lock().unwrap().insert("busybox".into());
    let found = verify(json!({"image": "busybox"})).await.json();
    assert_eq!(
        (
            &found["sound"],
            &found["parts"][0]["state"],
            &found["advice"]
        ),
        (&json!(false), &json!("damaged"), &json!("repair it"))
    );
    let found = verify(json!({"image": "busybox", "repair": true})).await;
    assert_eq!(found.json()["parts"][0]["state"], "repaired");
    verify(json!({"image": "none"}))
        .await
        .problem(404, "image_not_found");
    verify(json!({})).await.problem(400, "invalid_body");
}

#[tokio::test]
async fn what_takes_room_is_told() {
    let world = world().await;
    world
        .make(json!({"name": "web", "image": "docker.io/library/nginx:1.27"}))
        .await;
    let usage = world.get("/system/df").await.json();
    let nginx = &usage["images"][0];
    assert_eq!(
        (
            &nginx["id"],
            &nginx["instances"],
            &nginx["reclaimable_bytes"]
        ),
        (&json!("img-nginx"), &json!(1), &json!(0))
    );
    assert_eq!(usage["instances"][0]["name"], "web");
    assert_eq!(usage["instances"][0]["disk_bytes"], 7);
    assert_eq!(usage["total_bytes"], 160 + 10 + 30);
}

#[tokio::test]
async fn a_pull_that_may_not_be_is_refused_at_once() {
    let world = world().await;
    let request = json!({"name": "forbidden.example/web:1"});
    let refused = world.call("POST", "/images", Some(request.clone())).await;
    refused.problem(403, "registry_not_allowed");
    let events = [("accept", "text/event-stream")];
    let refused = world.with("POST", "/images", Some(request), &events).await;
    refused.problem(403, "registry_not_allowed");
    // No failed job is left of it.
    let path = "/images/forbidden.example/web:1";
    world.get(path).await.problem(404, "image_not_found");
}

#[tokio::test]
async fn images_are_pushed() {
    let world = world().await;
    let push = |target: &str| json!({"image": "docker.io/library/nginx:1.27", "target": target});
    world.host.pulls_held.send_replace(true);
    let coming = world
        .call("POST", "/pushes", Some(push("localhost:5000/web:1")))
        .await;
    assert_eq!(coming.status, 202, "{}", coming.text);
    let id = coming.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(coming.json()["image"], "docker.io/library/nginx:1.27");
    // The same again is the same push.
    let again = world
        .call("POST", "/pushes", Some(push("localhost:5000/web:1")))
        .await;
    assert_eq!(again.json()["id"], id);
    world.host.pulls_held.send_replace(false);
    let events = [("accept", "text/event-stream")];
    let done = world
        .with(
            "POST",
            "/pushes",
            Some(push("localhost:5000/web:2")),
            &events,
        )
        .await;
    assert!(
        done.text.contains("event: push\n") && done.text.ends_with(": end\n\n"),
        "{}",
        done.text
    );
    let failed = world
        .with(
            "POST",
            "/pushes",
            Some(push("registry.example/web:1")),
            &events,
        )
        .await;
    assert!(failed.text.contains("event: problem\n"), "{}", failed.text);
    let all = world.get("/pushes").await.json();
    let of = |at: usize, field: &str| all[at][field].clone();
    assert_eq!(
        (of(1, "status"), of(1, "bytes")),
        (json!("pushed"), json!(10))
    );
    assert_eq!(of(2, "status"), "failed");
    assert!(of(2, "error").as_str().unwrap().contains("nobody listens"));
    let path = format!("/pushes/{id}");
    assert_eq!(
        world.get(&path).await.json()["target"],
        "localhost:5000/web:1"
    );
    world
        .get("/pushes/none")
        .await
        .problem(404, "push_not_found");
    let refused = push("forbidden.example/web:1");
    let refused = world.call("POST", "/pushes", Some(refused)).await;
    refused.problem(403, "registry_not_allowed");
    let missing = json!({"image": "none", "target": "localhost:5000/x"});
    let missing = world.call("POST", "/pushes", Some(missing)).await;
    missing.problem(404, "image_not_found");
}

#[tokio::test]
async fn images_are_saved() {
    let world = world().await;
    let save = |body: Value| world.call("POST", "/images/save", Some(body));
    let names = json!(["docker.io/library/nginx:1.27", "busybox", "img-nginx"]);
    let saved = save(json!({ "names": names, "format": "docker-archive" })).await;
    assert_eq!(
        (saved.status, saved.text.as_str()),
        (200, "Docker img-nginx busybox")
    );
    assert_eq!(saved.headers["content-type"], "application/x-tar");
    assert_eq!(
        saved.headers["content-length"],
        saved.text.len().to_string()
    );
    save(json!({ "names": ["nothing"] }))
        .await
        .problem(404, "image_not_found");
    save(json!({ "names": [] }))
        .await
        .problem(400, "invalid_field");
    save(json!({ "names": ["busybox"], "format": "zip" }))
        .await
        .problem(400, "invalid_body");
}

#[tokio::test]
async fn images_are_exported() {
    let world = world().await;
    let export = |body: Value| world.call("POST", "/images/export", Some(body));
    let name = "docker.io/library/nginx:1.27";
    let exported = export(json!({ "name": name, "format": "ext4", "size_bytes": 1 << 30 })).await;
    assert_eq!(
        (exported.status, exported.text.as_str()),
        (200, "FileSystem img-nginx Some(1073741824)")
    );
    assert_eq!(exported.headers["content-type"], "application/x-tar");
    let exported = export(json!({ "name": name })).await;
    assert_eq!(exported.text, "Partitioned img-nginx None");
    export(json!({ "name": "nothing" }))
        .await
        .problem(404, "image_not_found");
    export(json!({ "name": name, "size_bytes": 1 }))
        .await
        .problem(400, "export_too_small");
    for wrong in [
        json!({ "name": name, "format": "qcow2" }),
        json!({ "name": name, "size_bytes": -1 }),
        json!({}),
    ] {
        export(wrong).await.problem(400, "invalid_body");
    }
}

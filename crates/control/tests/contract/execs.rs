//! Detached commands over REST, and who may enter an instance at all.

use super::*;
use warren_control::auth::scope;

#[tokio::test]
async fn detached_commands_are_started_listed_and_removed() {
    let world = world_of_one("i-execs").await;
    let execs = "/instances/i-execs/execs";
    assert_eq!(world.get(execs).await.json(), json!([]));
    let start = async |body: Value| world.call("POST", execs, Some(body)).await;
    let started = start(json!({"id": "mine", "command": ["say", "hello"], "user": "nobody"})).await;
    assert_eq!(started.status, 201, "{}", started.text);
    let mut told = started.json();
    assert!(told["started_at"].take().is_string());
    let expected = json!({
        "id": "mine", "command": ["say", "hello"], "user": "nobody", "tty": false, "state": "running",
        "attached": 0, "started_at": null,
    });
    assert_eq!(told, expected);
    let over = start(json!({"id": "over", "command": ["cat"], "tty": true})).await;
    let over = over.json();
    assert_eq!(
        (&over["state"], &over["exit_code"], &over["tty"]),
        (&json!("exited"), &json!(3), &json!(true))
    );
    let unnamed = start(json!({"command": ["cat"]})).await.json();
    let id = unnamed["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 10);
    let listed = world.get(execs).await.json();
    let ids: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(ids, [&json!("mine"), &json!("over"), &json!(id)]);
    let one = format!("{execs}/{id}");
    assert_eq!(world.get(&one).await.json()["id"], json!(id));
    world
        .get(&format!("{one}/attach"))
        .await
        .problem(400, "upgrade_required");
    assert_eq!(world.call("DELETE", &one, None).await.status, 204);
    for (method, path) in [("GET", one.clone()), ("DELETE", one)] {
        world
            .call(method, &path, None)
            .await
            .problem(404, "exec_not_found");
    }

    start(json!({"id": "mine", "command": ["x"]}))
        .await
        .problem(409, "id_taken");
    start(json!({"id": "no id", "command": ["x"]}))
        .await
        .problem(400, "invalid_field");
    for body in [
        json!({"command": []}),
        json!({"command": ["a\u{0}b"]}),
        json!({"command": ["x"], "what": 1}),
        json!({}),
    ] {
        start(body).await.problem(400, "invalid_body");
    }
    world
        .get("/instances/nobody/execs")
        .await
        .problem(404, "instance_not_found");
    world.call("POST", "/instances/i-execs/stop", None).await;
    world.get(execs).await.problem(409, "wrong_state");
    start(json!({"command": ["x"]}))
        .await
        .problem(409, "wrong_state");
}

/// Whoever may only read gets into no instance: every route that is a WebSocket needs more, also one that comes later.
#[tokio::test]
async fn every_way_into_an_instance_needs_more_than_the_right_to_read() {
    let world = world_of_one("i-ways").await;
    let spec = world.get("/spec.json").await.json();
    let mut ways = Vec::new();
    for (path, methods) in spec["paths"].as_object().unwrap() {
        if methods["get"]["responses"].get("101").is_some() {
            let path = path.replace("{id}", "i-ways").replace("{exec}", "e");
            assert_eq!(
                scope(&axum::http::Method::GET, &path),
                Some(("instance", "write")),
                "{path}"
            );
            ways.push(path);
        }
    }
    assert!(ways.len() >= 5, "{ways:?}");
}

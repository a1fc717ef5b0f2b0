//! Many at once, what is exhausted, and clocks that are moved.

use super::*;
use std::collections::BTreeSet;
use warren_core::MemoryMib;
use warren_core::network::Subnet;
use warren_core::ports::Store;

/// Ids of all instances, through as many pages as it takes.
async fn all_ids(world: &World) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut path = "/instances?limit=1000".to_owned();
    loop {
        let page = world.get(&path).await;
        let page_ids = page.json();
        let listed = page_ids.as_array().unwrap().iter();
        ids.extend(listed.map(|one| one["id"].as_str().unwrap().to_owned()));
        match page.headers.get("x-next-page-token") {
            Some(token) => {
                path = format!(
                    "/instances?limit=1000&page_token={}",
                    token.to_str().unwrap()
                );
            }
            None => return ids,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_five_times_at_once_with_answers_lost_make_exactly_a_thousand_instances() {
    const KEYS: usize = 1000;
    const TIMES: usize = 5;
    let world = Arc::new(world().await);
    {
        let mut report = world.host.report.lock().unwrap();
        report.cpus = 10_000;
        report.memory = MemoryMib(1 << 30);
    }
    let body = |key: usize| {
        // Ids are the server's to choose.
        json!({"name": format!("n{key}"), "image": "busybox", "memory_mb": 64})
    };
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..KEYS * TIMES {
        let (world, key) = (Arc::clone(&world), number % KEYS);
        tasks.spawn(async move {
            let header = format!("key-{key}");
            let headers = [("idempotency-key", header.as_str())];
            // A client that goes away at some point of its first request, and asks again.
            let gone_after = number % 7;
            let first = world.with("POST", "/instances", Some(body(key)), &headers);
            let given_up = async {
                for _ in 0..gone_after {
                    tokio::task::yield_now().await;
                }
            };
            if number % 3 != 0 {
                tokio::select! {
                    _ = first => {}
                    () = given_up => {}
                }
            }
            // So many starts at a time, and no more: whoever is told so asks again.
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            let answer = loop {
                let answer = world
                    .with("POST", "/instances", Some(body(key)), &headers)
                    .await;
                if answer.status != 429 || tokio::time::Instant::now() > deadline {
                    break answer;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            assert_eq!(answer.status, 201, "{}", answer.text);
            (key, answer.json()["id"].as_str().unwrap().to_owned())
        });
    }
    let mut answered: Vec<BTreeSet<String>> = vec![BTreeSet::new(); KEYS];
    while let Some(done) = tasks.join_next().await {
        let (key, id) = done.unwrap();
        answered[key].insert(id);
    }
    for (key, ids) in answered.iter().enumerate() {
        assert_eq!(ids.len(), 1, "key {key} made several: {ids:?}");
    }
    assert_eq!(all_ids(&world).await.len(), KEYS);
    // Nor does the next server make another one.
    world.stop().await;
    let world = world.next_server().await;
    world.ready().await;
    for (key, ids) in answered.iter().enumerate() {
        let header = format!("key-{key}");
        let headers = [("idempotency-key", header.as_str())];
        let again = world
            .with("POST", "/instances", Some(body(key)), &headers)
            .await;
        assert_eq!(again.status, 201, "{}", again.text);
        assert!(ids.contains(again.json()["id"].as_str().unwrap()));
        let other = json!({"name": "other", "image": "busybox"});
        world
            .with("POST", "/instances", Some(other), &headers)
            .await
            .problem(409, "idempotency_mismatch");
    }
    assert_eq!(all_ids(&world).await.len(), KEYS);
}

#[tokio::test]
async fn an_exhausted_pool_and_a_taken_port_are_refused_leave_nothing_and_the_next_free_one_works()
{
    let world = world().await;
    world.ready().await;
    let subnet = Subnet::new("10.9.0.0/29", [10, 9, 0, 1].into()).unwrap();
    let capacity = subnet.capacity();
    world.host.report.lock().unwrap().network.subnet = Some(subnet);
    let body = |name: &str| json!({"id": name, "name": name, "image": "busybox", "memory_mb": 64});
    let keys = async || {
        let page = world.store.list("", None, usize::MAX).await.unwrap();
        let keys = page.records.into_iter().map(|record| record.key);
        // What a host says of an instance that was made before may be recorded at any time.
        let keys: BTreeSet<String> = keys.filter(|key| !key.starts_with("status/")).collect();
        keys
    };
    for number in 0..capacity {
        world.make(body(&format!("n{number}"))).await;
    }
    let before = keys().await;
    let refused = world
        .call("POST", "/instances", Some(body("late")))
        .await
        .problem(429, "no_capacity");
    let said = refused["detail"].as_str().unwrap();
    assert!(said.contains(&capacity.to_string()), "{said}");
    assert_eq!(keys().await, before, "a refusal leaves nothing");
    assert_eq!(
        world.call("DELETE", "/instances/n0", None).await.status,
        204
    );
    world.make(body("late")).await;

    // Ports: one that another instance publishes, one that somebody else on the host has, one that is free.
    assert_eq!(
        world.call("DELETE", "/instances/n1", None).await.status,
        204
    );
    assert_eq!(
        world.call("DELETE", "/instances/n2", None).await.status,
        204
    );
    let publishing = |name: &str, port: u16| {
        let mut body = body(name);
        body["port_mappings"] = json!([{"host_port": port, "guest_port": 80}]);
        body
    };
    world.make(publishing("web", 8080)).await;
    world.host.taken_ports.lock().unwrap().insert(8081);
    let before = keys().await;
    for port in [8080, 8081] {
        let problem = world
            .call("POST", "/instances", Some(publishing("second", port)))
            .await
            .problem(409, "port_taken");
        let said = problem["detail"].as_str().unwrap();
        assert!(said.contains(&port.to_string()), "{said}");
    }
    assert_eq!(keys().await, before, "a refusal leaves nothing");
    world.make(publishing("second", 8082)).await;
}

#[tokio::test]
async fn a_clock_moved_by_an_hour_or_ten_years_ends_no_lease_and_reaps_nothing() {
    let world = world().await;
    let body = json!({"name": "stays", "image": "busybox"});
    let key = [("idempotency-key", "lease")];
    let first = world
        .with("POST", "/instances", Some(body.clone()), &key)
        .await;
    assert_eq!(first.status, 201);
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let applied = *world.host.applied.lock().unwrap();
    for moved in [
        time::Duration::hours(1),
        time::Duration::hours(-1),
        time::Duration::days(3653),
        time::Duration::days(-3653),
    ] {
        *world.clock.moved.lock().unwrap() = moved;
        let again = world
            .with("POST", "/instances", Some(body.clone()), &key)
            .await;
        assert_eq!((again.status, &again.text), (201, &first.text), "{moved}");
        let shown = world.get(&format!("/instances/{id}")).await.json();
        assert_eq!(shown["state"], "Running", "{moved}: {shown}");
        // What is made under a moved clock lives under the right one, and the other way round.
        let other = world
            .make(json!({"name": format!("at {moved}"), "image": "busybox"}))
            .await;
        *world.clock.moved.lock().unwrap() = time::Duration::ZERO;
        let other = other["id"].as_str().unwrap();
        let shown = world.get(&format!("/instances/{other}")).await.json();
        assert_eq!(shown["state"], "Running", "{moved}: {shown}");
    }
    assert_eq!(
        *world.host.applied.lock().unwrap(),
        applied + 4,
        "nothing else was done"
    );
    // Time that really passes ends it.
    *world.clock.passed.lock().unwrap() = Duration::from_secs(24 * 3600 + 1);
    world
        .with("POST", "/instances", Some(body), &key)
        .await
        .problem(409, "name_taken");
}

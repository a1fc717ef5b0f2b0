//! `/system`: the check and its repair, a record that is in doubt, and its recovery.

use super::*;
use warren_core::Handle;
use warren_core::inventory::{Item, Kind, Part};
use warren_core::ports::Store;
use warren_core::ports::store::{Transaction, Write};

fn leak() -> Item {
    let handle: Handle = "zzzzzzzz".parse().unwrap();
    Item::new(Kind::Device, "wtabcdzzzzzzzz", Part::Network { handle })
}

/// Every key and value of a store but what moves by itself.
async fn dump(store: &MemoryStore) -> Vec<(String, String)> {
    let page = store.list("", None, usize::MAX).await.unwrap();
    page.records
        .into_iter()
        .filter(|record| !record.key.starts_with("event/") && !record.key.starts_with("status/"))
        .map(|record| {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            (record.key, value)
        })
        .collect()
}

async fn copy(store: &MemoryStore) -> Arc<MemoryStore> {
    let copy = MemoryStore::new();
    let records = store.list("", None, usize::MAX).await.unwrap().records;
    let writes = records
        .into_iter()
        .map(|record| Write::Put(record.key, record.value))
        .collect();
    let guards = Vec::new();
    copy.commit(Transaction { guards, writes }).await.unwrap();
    Arc::new(copy)
}

async fn until(world: &World, path: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let answer = world.get(path).await.json();
        if done(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_leak_is_named_in_every_look_and_put_right_when_asked() {
    let world = world().await;
    world.ready().await;
    let check = world.get("/system/check").await;
    assert_eq!(check.status, 200);
    assert_eq!(check.json()["clean"], true, "{}", check.text);

    *world.host.looks.lock().unwrap() = vec![vec![leak()]];
    let check = world.get("/system/check").await.json();
    assert_eq!(check["clean"], false);
    let difference = &check["differences"][0];
    assert_eq!(difference["kind"], "leaked");
    assert_eq!(difference["remedy"], "repair");
    assert_eq!(difference["item"]["name"], "wtabcdzzzzzzzz");
    assert!(
        difference["sentence"]
            .as_str()
            .unwrap()
            .contains("no recorded instance")
    );
    assert!(
        world.host.removed.lock().unwrap().is_empty(),
        "a check changes nothing"
    );

    let repair = world.call("POST", "/system/repair", None).await.json();
    assert_eq!(repair["clean"], true, "{repair}");
    assert_eq!(repair["repaired"].as_array().unwrap().len(), 1);
    assert_eq!(*world.host.removed.lock().unwrap(), [leak()]);
}

#[tokio::test]
async fn what_only_one_look_finds_is_in_the_making_and_no_difference() {
    let world = world().await;
    world.ready().await;
    *world.host.looks.lock().unwrap() = vec![vec![leak()], vec![]];
    assert_eq!(world.get("/system/check").await.json()["clean"], true);
}

#[tokio::test]
async fn a_record_that_does_not_agree_with_itself_is_named_and_completed() {
    let world = world().await;
    world
        .make(json!({"id": "web", "name": "web", "image": "busybox"}))
        .await;
    let whole = dump(&world.store).await;
    let writes = vec![
        Write::Delete("name/default/web".into()),
        Write::Put("slug/gone".into(), "\"gone\"".into()),
        Write::Put("port/tcp/80".into(), "torn".into()),
    ];
    let guards = Vec::new();
    world
        .store
        .commit(Transaction { guards, writes })
        .await
        .unwrap();
    // The double has nothing on its host: what is missing there is another matter.
    let check = world.get("/system/check").await.json();
    let keys: Vec<(&str, &str)> = check["differences"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|difference| difference["item"]["kind"] == "key")
        .map(|difference| {
            let text = |value: &'static str| difference[value].as_str().unwrap();
            (text("kind"), difference["item"]["name"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        keys,
        [
            ("damaged", "port/tcp/80"),
            ("missing", "name/default/web"),
            ("leaked", "slug/gone")
        ]
    );
    let repair = world.call("POST", "/system/repair", None).await.json();
    assert_eq!(repair["repaired"].as_array().unwrap().len(), 3, "{repair}");
    assert_eq!(dump(&world.store).await, whole);
}

#[tokio::test]
async fn a_damaged_record_of_an_instance_costs_it_nothing_and_is_written_anew_by_a_recovery() {
    let world = world().await;
    for name in ["one", "two"] {
        world
            .make(json!({"id": name, "name": name, "image": "busybox"}))
            .await;
    }
    let whole = dump(&world.store).await;
    world.stop().await;
    let torn = Transaction {
        guards: Vec::new(),
        writes: vec![Write::Put("instance/two".into(), "torn".into())],
    };
    world.store.commit(torn).await.unwrap();
    let held = dump(&world.store).await;

    let world = world.next_server().await;
    world.ready().await;
    for name in ["one", "two"] {
        until(&world, &format!("/instances/{name}"), |one| {
            one["state"] == "Running"
        })
        .await;
    }
    // The rest is served, and what is the damaged one's stays its own.
    world
        .make(json!({"name": "three", "image": "busybox"}))
        .await;
    world
        .call(
            "POST",
            "/instances",
            Some(json!({"name": "two", "image": "busybox"})),
        )
        .await
        .problem(409, "name_taken");
    assert_eq!(
        world.call("DELETE", "/instances/three", None).await.status,
        204
    );
    let named = |check: &Value| -> Vec<(String, String)> {
        let all = check["differences"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        all.filter(|difference| difference["item"]["kind"] == "key")
            .map(|difference| {
                (
                    text(&difference["item"]["name"]),
                    text(&difference["remedy"]),
                )
            })
            .collect()
    };
    let expected = [
        "instance/two",
        "address/10.9.",
        "name/default/two",
        "slug/two",
        "status/two",
    ];
    let check = world.get("/system/check").await.json();
    let found = named(&check);
    assert_eq!(found.len(), expected.len(), "{check}");
    for ((name, remedy), start) in found.iter().zip(expected) {
        assert!(name.starts_with(start), "{check}");
        assert_eq!(remedy, "recover", "{check}");
    }
    let repair = world.call("POST", "/system/repair", None).await.json();
    assert_eq!(repair["repaired"], json!([]), "{repair}");
    assert_eq!(dump(&world.store).await, held);

    let recovery = world.call("POST", "/system/recover", None).await.json();
    assert_eq!(recovery["recovered"], json!(["two"]), "{recovery}");
    assert_eq!(recovery["unchanged"], json!(["one"]), "{recovery}");
    assert_eq!(dump(&world.store).await, whole);
}

#[tokio::test]
async fn a_lost_record_shows_what_runs_touches_nothing_and_is_rebuilt_with_every_reservation() {
    let world = world().await;
    for name in ["one", "two", "doomed"] {
        let port = 8000 + name.len();
        world
            .make(json!({"id": name, "name": name, "image": "busybox",
                "port_mappings": [{"host_port": port + usize::from(name == "two"), "guest_port": 80}]}))
            .await;
    }
    let whole = dump(&world.store).await;
    world.stopping.cancel();
    let before = *world.host.synced.lock().unwrap();

    let store = Arc::new(MemoryStore::new());
    let lost = world_in_doubt(
        Auth::from_secret(None),
        world.host.clone(),
        store.clone(),
        Some("the store is new and instances are here"),
    )
    .await;
    until(&lost, "/instances/one", |one| one["state"] == "Running").await;
    assert_eq!(
        lost.get("/instances")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        *world.host.synced.lock().unwrap(),
        before,
        "a sync would sweep"
    );
    lost.get("/ready").await;
    let check = lost.get("/system/check").await.json();
    assert_eq!(check["differences"][0]["remedy"], "recover", "{check}");
    let asked = [
        (
            "POST",
            "/instances",
            Some(json!({"name": "new", "image": "busybox"})),
        ),
        ("POST", "/instances/one/stop", None),
        ("PATCH", "/instances/one", Some(json!({"env": {"A": "1"}}))),
    ];
    for (method, path, body) in asked {
        let problem = lost
            .call(method, path, body)
            .await
            .problem(503, "record_in_doubt");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("warren system recover"), "{detail}");
    }
    // Delete depends on nothing, and what is deleted stays deleted.
    assert_eq!(
        lost.call("DELETE", "/instances/doomed", None).await.status,
        204
    );

    let recovery = lost.call("POST", "/system/recover", None).await.json();
    assert_eq!(recovery["recovered"], json!(["one", "two"]), "{recovery}");
    assert_eq!(recovery["forgotten"], json!([]));
    let expected: Vec<_> = whole
        .into_iter()
        .filter(|(key, value)| !key.contains("doomed") && !value.contains("doomed"))
        .collect();
    assert_eq!(dump(&store).await, expected);
    lost.ready().await;
    lost.call(
        "POST",
        "/instances",
        Some(json!({"name": "one", "image": "busybox"})),
    )
    .await
    .problem(409, "name_taken");
    lost.make(json!({"name": "new", "image": "busybox"})).await;
    // Once more: nothing is left to do.
    let again = lost.call("POST", "/system/recover", None).await.json();
    assert_eq!(again["recovered"], json!([]), "{again}");
    assert_eq!(again["unchanged"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_older_record_is_brought_up_to_date_and_what_was_deleted_since_stays_deleted() {
    let world = world().await;
    for name in ["stays", "stopped-since", "deleted-since"] {
        world
            .make(json!({"id": name, "name": name, "image": "busybox"}))
            .await;
    }
    let older = copy(&world.store).await;
    world
        .call("POST", "/instances/stopped-since/stop", None)
        .await;
    world.call("DELETE", "/instances/deleted-since", None).await;
    world
        .make(json!({"id": "made-since", "name": "deleted-since", "image": "busybox"}))
        .await;
    world.stopping.cancel();
    let synced = *world.host.synced.lock().unwrap();

    // Nobody says that it is older: the host has instances that it does not know.
    let second = world_with(Auth::from_secret(None), world.host.clone(), older.clone()).await;
    until(&second, "/instances/made-since", |one| {
        one["state"] == "Running"
    })
    .await;
    let gone = second.get("/instances/deleted-since").await.json();
    assert_eq!(gone["state"], "Unknown", "nobody knows of it: {gone}");
    assert_eq!(*world.host.synced.lock().unwrap(), synced);
    let recovery = second.call("POST", "/system/recover", None).await.json();
    assert_eq!(
        recovery,
        json!({"recovered": ["made-since"], "updated": ["stopped-since"], "unchanged": ["stays"],
               "forgotten": ["deleted-since"], "unreadable": []})
    );
    let deleted = second.get("/instances/deleted-since").await.json();
    assert_eq!(
        deleted["id"], "made-since",
        "its name is another's now: {deleted}"
    );
    assert_eq!(dump(&older).await, dump(&world.store).await);
    second
        .get("/system/check?deep=1")
        .await
        .problem(400, "invalid_query");
    second
        .call("POST", "/system/recover?missing=guess", None)
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn a_record_in_memory_has_no_backup() {
    let world = world().await;
    world
        .call("POST", "/system/backup", None)
        .await
        .problem(501, "no_backup");
}

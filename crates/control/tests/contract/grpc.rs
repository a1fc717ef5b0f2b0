//! The gRPC API over a host without machines: what needs one that fails, pulls or has no network on demand. The suite
//! `tests/suites/grpc.sh` asks a whole server everything else.

use super::*;
use tonic::{Code, Status};
use warren_control::grpc::wire::container_service_client::ContainerServiceClient;
use warren_control::grpc::wire::{
    CreateVmRequest, ExecuteCommandRequest, GetLogsRequest, StartVmRequest, StopVmRequest,
};
use warren_control::grpc::{HEALTH_NAME, router};
use warren_core::host::NetworkMode;

async fn client(world: &World, auth: Auth) -> ContainerServiceClient<Router> {
    let router = router(world.app.clone(), auth, HEALTH_NAME).await;
    ContainerServiceClient::with_origin(router, "http://localhost:50064".parse().unwrap())
}

fn create(image: &str) -> CreateVmRequest {
    CreateVmRequest {
        user_id: "me".into(),
        image: image.into(),
        ..CreateVmRequest::default()
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> Status {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    status
}

#[tokio::test]
async fn an_image_that_is_not_here_is_pulled_or_refused() {
    let world = world().await;
    let mut client = client(&world, Auth::from_secret(None)).await;
    let made = client.create_vm(create("localhost:5000/new:1")).await;
    let made = made.unwrap().into_inner();
    assert_eq!(
        (made.status.as_str(), made.vm_name.as_str()),
        ("running", "me-env")
    );
    assert!(made.ip_address.starts_with("10.9."), "{made:?}");
    let gone = client.create_vm(create("elsewhere.example/new:1")).await;
    refused(gone, Code::NotFound);
    let forbidden = client.create_vm(create("forbidden.example/new:1")).await;
    refused(forbidden, Code::PermissionDenied);
}

#[tokio::test]
async fn a_start_that_fails_is_an_answer() {
    let world = world().await;
    let mut client = client(&world, Auth::from_secret(None)).await;
    world
        .make(json!({"name": "f", "image": "busybox", "cmd": ["fail"]}))
        .await;
    let started = client.start_vm(StartVmRequest { vm_id: "f".into() }).await;
    let started = started.unwrap().into_inner();
    assert_eq!(started.status, "error");
    assert_eq!(started.message, "the double was told to fail");
    let ran = client.execute_command(ExecuteCommandRequest {
        vm_id: "f".into(),
        command: vec!["true".into()],
        ..ExecuteCommandRequest::default()
    });
    refused(ran.await, Code::FailedPrecondition);
}

#[tokio::test]
async fn a_host_without_a_guest_network_makes_vms_without_one() {
    let world = world().await;
    let mut client = client(&world, Auth::from_secret(None)).await;
    {
        let mut report = world.host.report.lock().unwrap();
        report.network.mode = NetworkMode::None;
        report.network.subnet = None;
    }
    let made = client.create_vm(create("busybox")).await.unwrap();
    let made = made.into_inner();
    assert_eq!(
        (made.status.as_str(), made.ip_address.as_str()),
        ("running", "")
    );
    assert!(made.message.contains("without a network"), "{made:?}");
    let shown = world.get("/instances/me-env").await.json();
    assert_eq!(shown["network"]["enabled"], false);
    // Ports cannot be had, and are not dropped in silence.
    let published = client.create_vm(CreateVmRequest {
        vm_name: "published".into(),
        ports: vec!["8080:80".into()],
        ..create("busybox")
    });
    let status = refused(published.await, Code::Unimplemented);
    assert!(status.message().contains("no guest network"), "{status:?}");
}

#[tokio::test]
async fn a_stop_keeps_its_time() {
    let world = world().await;
    let mut client = client(&world, Auth::from_secret(None)).await;
    client.create_vm(create("busybox")).await.unwrap();
    let stopped = client.stop_vm(StopVmRequest {
        vm_id: "me-env".into(),
        timeout_seconds: 7,
    });
    assert_eq!(stopped.await.unwrap().into_inner().status, "stopped");
    let intents = world.host.intents.lock().unwrap();
    let seconds: Vec<u64> = intents.values().map(|it| it.stop_grace_seconds).collect();
    assert_eq!(seconds, [7]);
}

#[tokio::test]
async fn logs_of_three_sources_are_cut_to_the_last_lines() {
    let world = world().await;
    let mut client = client(&world, Auth::from_secret(None)).await;
    client.create_vm(create("busybox")).await.unwrap();
    // The double has the same ten lines in each of its logs.
    for (tail_lines, count) in [(0, 30), (4, 4), (30, 30), (100, 30)] {
        let logs = client.get_logs(GetLogsRequest {
            vm_id: "me-env".into(),
            tail_lines,
            ..GetLogsRequest::default()
        });
        let mut logs = logs.await.unwrap().into_inner();
        let mut seen = Vec::new();
        while let Some(entry) = logs.message().await.unwrap() {
            seen.push(entry);
        }
        assert_eq!(seen.len(), count, "{tail_lines}");
        assert!(seen.is_sorted_by_key(|entry| entry.timestamp));
        assert!(seen.iter().any(|entry| entry.message == "line 10"));
    }
}

#[tokio::test]
async fn web_pages_and_other_names_are_kept_out() {
    let world = world().await;
    let router = router(world.app.clone(), Auth::from_secret(None), HEALTH_NAME).await;
    let rebound = "http://evil.example:50064".parse().unwrap();
    let mut elsewhere = ContainerServiceClient::with_origin(router, rebound);
    refused(
        elsewhere.create_vm(create("busybox")).await,
        Code::PermissionDenied,
    );
}

#[tokio::test]
async fn unary_connect_is_served_beside_rest() {
    let world = world().await;
    let path = |method: &str| format!("/container.ContainerService/{method}");
    let made = json!({"userId": "me", "image": "busybox", "limits": {"memoryMb": "512"}});
    let made = world.call("POST", &path("CreateVM"), Some(made)).await;
    assert_eq!(made.status, 200, "{}", made.text);
    assert_eq!(made.headers["content-type"], "application/json");
    let made = made.json();
    assert_eq!(
        (&made["vmName"], &made["status"]),
        (&json!("me-env"), &json!("running"))
    );
    // The names of the proto file are taken too.
    let listed = world
        .call("POST", &path("ListVMs"), Some(json!({"user_id": "me"})))
        .await;
    assert_eq!(listed.json()["vms"][0]["vmId"], made["vmId"]);
    for (method, body, status, code) in [
        ("GetVMStatus", json!({"vmId": "none"}), 404, "not_found"),
        ("CreateVM", json!({"userId": "me"}), 400, "invalid_argument"),
        (
            "ListVMs",
            json!({"no_such_field": 1}),
            400,
            "invalid_argument",
        ),
        ("ListVMs", json!("text"), 400, "invalid_argument"),
        (
            "CreateVM",
            json!({"userId": "me", "image": "busybox"}),
            409,
            "already_exists",
        ),
        ("CreateSnapshot", json!({}), 501, "unimplemented"),
        ("GetLogs", json!({"vmId": "me-env"}), 501, "unimplemented"),
        ("Nothing", json!({}), 501, "unimplemented"),
    ] {
        let refused = world.call("POST", &path(method), Some(body)).await;
        assert_eq!(refused.status, status, "{method}: {}", refused.text);
        assert_eq!(refused.json()["code"], code, "{method}");
        assert!(refused.json()["message"].is_string());
    }
    // What REST does not know it still tells as REST does.
    world
        .get("/no-such-route")
        .await
        .problem(404, "route_not_found");
}

#[tokio::test]
async fn connect_is_held_to_the_same_credentials() {
    let world = world_with_a_secret().await;
    let refused = world
        .call(
            "POST",
            "/container.ContainerService/ListVMs",
            Some(json!({})),
        )
        .await;
    assert_eq!(refused.status, 401, "{}", refused.text);
    assert_eq!(refused.json()["code"], "unauthenticated");
}

#[tokio::test]
async fn nothing_is_beside_rest_when_it_is_switched_off() {
    let auth = Auth::from_secret(None);
    let world = world_set(
        auth,
        Host::new(),
        Arc::new(MemoryStore::new()),
        |settings| {
            settings.container_service = warren_control::ContainerService::Unserved;
        },
    );
    world
        .await
        .call(
            "POST",
            "/container.ContainerService/ListVMs",
            Some(json!({})),
        )
        .await
        .problem(404, "route_not_found");
}

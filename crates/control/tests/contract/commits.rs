//! Images made of what an instance has changed.

use super::*;
use warren_core::admission::{Admission, Operation, admit};
use warren_core::instance::Desired;

const ROUTE: &str = "/instances/i-commit/commit";

#[tokio::test]
async fn a_commit_gives_an_image_with_progress_or_without() {
    let world = world_of_one("i-commit").await;
    let body = json!({"name": "team/web:2", "id": "img-two", "changes": ["CMD [\"x\"]"], "message": "why"});
    let made = world.call("POST", ROUTE, Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(
        (made.json()["id"].as_str(), made.json()["status"].as_str()),
        (Some("img-two"), Some("ready"))
    );
    assert_eq!(world.get("/images/img-two").await.json()["status"], "ready");
    let events = [("accept", "text/event-stream")];
    let body = json!({"name": "team/web:3"});
    let followed = world.with("POST", ROUTE, Some(body), &events).await;
    assert_eq!(followed.status, 200);
    assert!(
        followed.text.contains("event: images\n") && followed.text.ends_with(": end\n\n"),
        "{}",
        followed.text
    );
}

#[tokio::test]
async fn a_commit_that_cannot_work_is_refused() {
    let world = world_of_one("i-commit").await;
    let long = "x".repeat(5000);
    for (body, status, code) in [
        (json!({}), 400, "invalid_body"),
        (json!({"name": "a b"}), 400, "invalid_field"),
        (json!({"name": "a", "id": "../a"}), 400, "invalid_field"),
        (json!({"name": "a", "message": long}), 400, "invalid_field"),
        (
            json!({"name": "a", "changes": vec!["USER a"; 300]}),
            400,
            "invalid_field",
        ),
        (json!({"name": "a", "pause": true}), 400, "invalid_body"),
        (
            json!({"name": "a", "changes": ["RUN x"]}),
            400,
            "image_malformed",
        ),
    ] {
        let answer = world.call("POST", ROUTE, Some(body.clone())).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        answer.problem(status, code);
    }
    world
        .call(
            "POST",
            "/instances/nobody/commit",
            Some(json!({"name": "a"})),
        )
        .await
        .problem(404, "instance_not_found");
    let events = [("accept", "text/event-stream")];
    let body = json!({"name": "a", "changes": ["RUN x"]});
    let failed = world.with("POST", ROUTE, Some(body), &events).await;
    assert!(failed.text.contains("event: problem\n"), "{}", failed.text);
}

#[tokio::test]
async fn only_what_runs_or_is_stopped_can_be_committed() {
    in_every_state("i-commit", async |world, state| {
        let answer = world
            .call("POST", ROUTE, Some(json!({"name": "team/web:2"})))
            .await;
        match admit(Operation::Commit, state, Desired::Running) {
            Admission::Accept | Admission::AlreadySo => {
                assert_eq!(answer.status, 201, "{state}: {}", answer.text);
            }
            Admission::Refuse(_) => {
                let problem = answer.problem(409, "wrong_state");
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.starts_with("cannot commit an instance"), "{detail}");
            }
        }
    })
    .await;
}

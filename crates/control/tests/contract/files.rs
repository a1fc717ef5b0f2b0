//! What a path inside an instance leads to, and who may copy at all.

use super::*;
use warren_core::admission::{Admission, Operation, admit};
use warren_core::instance::Desired;

#[tokio::test]
async fn a_path_is_told_of_and_one_that_is_not_there_is_no_error() {
    let world = world_of_one("i-files").await;
    let stat = async |query: &str| world.get(&format!("/instances/i-files/stat?{query}")).await;
    let file = stat("path=/etc/motd").await;
    assert_eq!(file.status, 200, "{}", file.text);
    let expected = json!({
        "exists": true, "is_dir": false, "is_file": true, "is_symlink": false, "mode": 0o640, "size": 5,
    });
    assert_eq!(file.json(), expected);
    let directory = stat("path=/etc&follow_links=true").await.json();
    assert_eq!(
        (&directory["is_dir"], &directory["mode"]),
        (&json!(true), &json!(0o755))
    );
    for missing in ["/nothing", "/etc/motd/below"] {
        let answer = stat(&format!("path={missing}")).await;
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"exists": false}))
        );
    }
    for bad in [
        "",
        "path=etc",
        "path=/a&path=/b",
        "path=/a&follow_links=maybe",
        "path=/a&x=1",
    ] {
        stat(bad).await.problem(400, "invalid_query");
    }
    let long = "x".repeat(5000);
    stat(&format!("path=/{long}"))
        .await
        .problem(400, "invalid_query");
    world
        .get("/instances/nobody/stat?path=/")
        .await
        .problem(404, "instance_not_found");
}

#[tokio::test]
async fn only_what_runs_has_files() {
    in_every_state("i-files", async |world, state| {
        let stat = world.get("/instances/i-files/stat?path=/etc").await;
        let copy = world.get("/instances/i-files/cp").await;
        match admit(Operation::Copy, state, Desired::Running) {
            Admission::Accept | Admission::AlreadySo => {
                assert_eq!(stat.status, 200, "{state}: {}", stat.text);
                copy.problem(400, "upgrade_required");
            }
            Admission::Refuse(_) => {
                stat.problem(409, "wrong_state");
                copy.problem(409, "wrong_state");
            }
        }
    })
    .await;
}

//! `warren commit` as people and scripts use it.

use super::*;

#[test]
fn commit_gives_the_images_name_and_what_scripts_ask_for() {
    let double = Double::start(None);
    let answer = ask(&double, &["commit", "web", "team/web:2"]);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    assert_eq!(out(&answer), "team/web:2\n");
    assert!(
        err(&answer).contains("committed team/web:2"),
        "{}",
        err(&answer)
    );
    assert_eq!(
        out(&ask(&double, &["commit", "-q", "web", "team/web:2"])),
        "img-1\n"
    );
    let words = [
        "commit",
        "-o",
        "json",
        "-c",
        "CMD [\"x\"]",
        "--change",
        "USER a",
        "-a",
        "me",
        "-m",
        "why",
        "--id",
        "two",
        "web",
        "team/web:2",
    ];
    let list: Value = serde_json::from_str(&out(&ask(&double, &words))).unwrap();
    assert_eq!(list[0]["name"], "team/web:2");
    let asked = json!({
        "name": "team/web:2", "id": "two", "author": "me", "message": "why", "changes": ["CMD [\"x\"]", "USER a"],
    });
    assert_eq!(double.bodies().last(), Some(&asked));
}

#[test]
fn a_commit_that_fails_says_why_and_what_to_do() {
    let double = Double::start(None);
    let refused = ask(&double, &["commit", "paused", "team/web:2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("resume it"), "{}", err(&refused));
    let usage = ask(&double, &["commit", "web"]);
    assert_eq!(usage.status.code(), Some(2), "{}", err(&usage));
}

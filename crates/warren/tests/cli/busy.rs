//! A server that is busy is asked again, as it says; one that has no room is not.

use super::*;

fn creates(double: &Double) -> usize {
    let requests = double.requests();
    let create = |line: &&String| line.starts_with("POST /instances");
    requests.iter().filter(create).count()
}

#[test]
fn a_busy_server_is_asked_again_after_as_long_as_it_says() {
    let double = Double::start(None);
    double.be_busy(2);
    let begun = Instant::now();
    let answer = ask(&double, &["run", "-d", "--name", "web", "busy"]);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(creates(&double), 3, "{:?}", double.requests());
    let said = err(&answer);
    assert_eq!(said.matches("2 are on their way up").count(), 1, "{said}");
    assert!(said.contains("trying for up to 60 s"), "{said}");
}

#[test]
fn a_host_without_room_is_not_asked_again() {
    let double = Double::start(None);
    let answer = ask(&double, &["run", "-d", "--name", "web", "huge"]);
    assert_eq!(answer.status.code(), Some(125));
    assert!(
        err(&answer).contains("there is no room"),
        "{}",
        err(&answer)
    );
    assert_eq!(creates(&double), 1);
}

//! How the command line finds its server: named, by context, on this machine, and not at all.

use crate::double::Double;
use crate::{ask, err, nobody, out, output, warren};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn without_a_server_the_error_names_it_and_how_to_start_one() {
    let url = nobody();
    for (words, code) in [
        (&["ps"][..], 1),
        (&["run", "alpine"], 125),
        (&["run", "-d", "alpine"], 125),
        (&["exec", "web", "true"], 125),
        (&["rm", "web"], 1),
    ] {
        let mut all = vec!["--server", url.as_str()];
        all.extend(words);
        let answer = output(&all);
        assert_eq!(answer.status.code(), Some(code), "{words:?}");
        let said = err(&answer);
        assert!(
            said.contains(&format!("error: no Warren server answers at {url}")),
            "{said}"
        );
        assert!(
            said.contains("hint:") && said.contains("warren server"),
            "{said}"
        );
        assert!(out(&answer).is_empty());
    }
}

#[test]
fn an_image_of_the_servers_own_registry_is_not_asked_of_it() {
    let double = Double::start(None);
    let port = double.url.rsplit(':').next().unwrap();
    let reference = format!("localhost:{port}/absent");
    for words in [&["run", &reference][..], &["pull", &reference]] {
        let answer = ask(&double, words);
        assert!(!answer.status.success());
        let said = err(&answer);
        assert!(said.contains("this server's own registry"), "{said}");
        assert!(
            said.contains("warren images") && !said.contains("plain-http"),
            "{said}"
        );
    }
    assert!(!double.requests().contains(&"POST /images".to_owned()));
}

#[test]
fn a_server_on_this_machine_is_asked_without_a_proxy_and_without_the_systems_certificates() {
    let double = Double::start(None);
    let home = tempfile::tempdir().unwrap();
    // Whoever opens it to read waits for somebody who writes.
    let certificates = home.path().join("certificates");
    let made = Command::new("mkfifo").arg(&certificates).status();
    assert!(made.unwrap().success());
    let mut listing = warren(home.path())
        .args(["--server", &double.url, "ps", "-q"])
        .env("SSL_CERT_FILE", &certificates)
        .env("HTTP_PROXY", nobody())
        .env("http_proxy", nobody())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while listing.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = listing.kill();
    let listed = listing.wait_with_output().unwrap();
    assert_eq!(listed.status.code(), Some(0));
    assert_eq!(out(&listed), "id-web\n");
}

#[test]
fn contexts_lead_to_their_server_with_their_token() {
    let double = Double::start(Some("secret"));
    let home = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| warren(home.path()).args(words).output().unwrap();
    let refused = run(&["--server", &double.url, "ps"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("WARREN_TOKEN"), "{}", err(&refused));
    let added = run(&[
        "--token",
        "secret",
        "context",
        "add",
        "lab",
        &double.url,
        "--use",
    ]);
    assert_eq!(added.status.code(), Some(0), "{}", err(&added));
    assert_eq!(out(&run(&["ps", "-q"])), "id-web\n");
    let listed = out(&run(&["context", "ls"]));
    assert!(
        listed.contains("lab") && !listed.contains("secret"),
        "{listed}"
    );
    let shown: Value =
        serde_json::from_str(&out(&run(&["context", "show", "-o", "json"]))).unwrap();
    assert_eq!(shown["server"], double.url.as_str());
    assert_eq!(shown["has_token"], true);
    // The token stays with its own server.
    let other = run(&["--server", &double.url, "ps"]);
    assert_eq!(other.status.code(), Some(1));
    assert_eq!(run(&["context", "use", "--none"]).status.code(), Some(0));
    assert_eq!(run(&["context", "rm", "lab"]).status.code(), Some(0));
    assert_eq!(run(&["context", "rm", "lab"]).status.code(), Some(1));
}

#[test]
fn version_tells_its_own_even_where_the_server_does_not_answer() {
    let url = nobody();
    let answer = output(&["--server", &url, "version"]);
    assert_eq!(answer.status.code(), Some(1));
    assert!(out(&answer).contains(env!("CARGO_PKG_VERSION")));
    assert!(err(&answer).contains(&url));
    let alone = output(&["version", "--client", "-o", "json"]);
    assert_eq!(alone.status.code(), Some(0));
    let version: Value = serde_json::from_str(&out(&alone)).unwrap();
    assert_eq!(version["client"]["version"], env!("CARGO_PKG_VERSION"));
    let double = Double::start(None);
    assert!(out(&ask(&double, &["version"])).contains(&double.url));
}

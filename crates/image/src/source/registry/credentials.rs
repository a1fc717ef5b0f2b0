//! Credentials of this host: docker's `config.json` and containers' `auth.json`, with their credential helpers.
//!
//! Sources: docker's "docker login" reference (`auths`, `credsStore`, `credHelpers`, the helpers' protocol);
//! containers-auth.json(5).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Nothing.
    Anonymous,
    /// User and password.
    Basic { username: String, password: String },
    /// A bearer token, ready to use.
    Token(String),
    /// An OAuth2 refresh token, to be exchanged for bearer tokens.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// How long a credential helper may take.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// Largest answer of a helper.
const HELPER_ANSWER: u64 = 1 << 20;

/// The user's own files: docker's, then containers'.
fn own_files() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(home.as_ref()?.join(".docker")))
        .map(|directory| directory.join("config.json"));
    let containers = match variable("REGISTRY_AUTH_FILE") {
        Some(file) => vec![PathBuf::from(file)],
        None => {
            let configured = variable("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(home?.join(".config")));
            variable("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .into_iter()
                .chain(configured)
                .map(|directory| directory.join("containers/auth.json"))
                .collect()
        }
    };
    docker.into_iter().chain(containers).collect()
}

/// The credentials that `file`, or else the user's own files, have for a repository; anonymous where there are none.
/// Blocking: helpers are programs. What is wrong with them in words otherwise.
pub(crate) fn credentials_for(
    registry: &str,
    repository: &str,
    file: Option<&Path>,
) -> Result<Credentials, String> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => own_files(),
    };
    for path in &files {
        let found = in_file(registry, repository, path)?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    Ok(Credentials::Anonymous)
}

fn in_file(registry: &str, repository: &str, path: &Path) -> Result<Credentials, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Credentials::Anonymous);
        }
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let file: ConfigFile = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{} is not valid: {error}", path.display()))?;
    let hosts = hosts_of(registry);
    let helper = hosts
        .iter()
        .find_map(|name| file.cred_helpers.get(name))
        .or(file.creds_store.as_ref())
        .filter(|helper| !helper.is_empty());
    if let Some(helper) = helper {
        // Docker Hub's name in helpers is the first of its names; others are asked for by host.
        for name in hosts.iter().take(2) {
            if let Some(credentials) = ask_helper(helper, name)? {
                return Ok(credentials);
            }
        }
    }
    match names_of(registry, repository)
        .iter()
        .find_map(|name| file.auths.get(name))
    {
        Some(entry) => entry
            .credentials()
            .map_err(|why| format!("{}, {registry}: {why}", path.display())),
        None => Ok(Credentials::Anonymous),
    }
}

/// The names under which docker keeps one registry.
fn hosts_of(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned(), format!("https://{registry}")];
    if registry == "docker.io" {
        names.insert(0, "https://index.docker.io/v1/".into());
        names.push("index.docker.io".into());
        names.push("registry-1.docker.io".into());
    }
    names.push(format!("http://{registry}"));
    names.push(format!("https://{registry}/v2/"));
    names.push(format!("https://{registry}/v1/"));
    names
}

/// The keys of `auths` for a repository: containers' for the repository and what it lies in, then those of the registry.
fn names_of(registry: &str, repository: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut part = Some(repository);
    while let Some(path) = part {
        names.push(format!("{registry}/{path}"));
        part = path.rsplit_once('/').map(|(parent, _)| parent);
    }
    names.extend(hosts_of(registry));
    names
}

impl AuthEntry {
    fn credentials(&self) -> Result<Credentials, &'static str> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Credentials::Identity(token));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Credentials::Token(token));
        }
        if let Some(auth) = given(&self.auth) {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(auth.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or("its auth field is not base64")?;
            let (username, password) = decoded
                .split_once(':')
                .ok_or("its auth field has no colon")?;
            return Ok(Credentials::Basic {
                username: username.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            });
        }
        match (&self.username, &self.password) {
            (Some(username), Some(password)) if !username.is_empty() => Ok(Credentials::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            // An empty entry says that a helper has them.
            _ => Ok(Credentials::Anonymous),
        }
    }
}

/// Runs `docker-credential-NAME get`. `None` when it has none for the registry.
fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !helper.bytes().all(safe) {
        return Err(format!("{helper:?} is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: &dyn std::fmt::Display| format!("{program} failed: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input has ended; its exit status says why.
        let _ = writeln!(stdin, "{registry}");
    }
    let answer = answer_in_time(&mut child);
    if answer.is_none() {
        // Its output has not ended, so it runs, or a child of its does; the pid is its own until it is reaped below.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    let answer = answer.ok_or_else(|| failed(&"it did not answer in time"))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&answer);
        return if text.contains("credentials not found") {
            Ok(None)
        } else {
            let line = text.lines().next().unwrap_or_default();
            let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(failed(&format!("{status} {line}").trim_end()))
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|error| failed(&error))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Basic {
            username: answer.username,
            password: answer.secret,
        },
    }))
}

/// What a helper writes until it closes its output; `None` when that takes too long.
fn answer_in_time(child: &mut Child) -> Option<Vec<u8>> {
    let stdout = child.stdout.take()?;
    let (done, wait) = mpsc::channel();
    // Ends when the last holder of the pipe does.
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.take(HELPER_ANSWER).read_to_end(&mut answer);
        // The receiver is gone when the time is over.
        let _ = done.send(read.map(|_| answer));
    });
    wait.recv_timeout(HELPER_TIME).ok()?.ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    #[test]
    fn docker_configuration_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let encode = |pair: &str| base64::engine::general_purpose::STANDARD.encode(pair);
        let text = serde_json::json!({ "auths": {
            "localhost:5000": { "auth": encode("user:pa:ss") },
            "https://index.docker.io/v1/": { "identitytoken": "t", "auth": encode("0000:") },
            "https://old.example/v1/": { "username": "u", "password": "p" },
            "r.example": { "auth": encode("all:1") },
            "r.example/team/app": { "auth": encode("one:2") },
            "empty.example": {},
            "bad.example": { "auth": "§" },
        }});
        std::fs::write(&path, text.to_string()).unwrap();
        let get = |registry, repository| credentials_for(registry, repository, Some(&path));
        for (registry, repository, expected) in [
            ("localhost:5000", "x", basic("user", "pa:ss")),
            ("docker.io", "library/x", Credentials::Identity("t".into())),
            ("old.example", "x", basic("u", "p")),
            ("r.example", "team/app", basic("one", "2")),
            ("r.example", "team/app/sub", basic("one", "2")),
            ("r.example", "team/apple", basic("all", "1")),
            ("empty.example", "x", Credentials::Anonymous),
            ("elsewhere:5000", "x", Credentials::Anonymous),
        ] {
            assert_eq!(
                get(registry, repository).unwrap(),
                expected,
                "{registry}/{repository}"
            );
        }
        let error = get("bad.example", "x").unwrap_err();
        assert!(
            error.contains("config.json") && error.contains("base64"),
            "{error}"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(
            get("localhost:5000", "x")
                .unwrap_err()
                .contains("not valid")
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(get("localhost:5000", "x").unwrap(), Credentials::Anonymous);
    }

    #[test]
    fn a_helpers_name_is_no_path() {
        assert!(
            ask_helper("../x", "r")
                .unwrap_err()
                .contains("not the name")
        );
        assert!(
            ask_helper("nobody-has-this", "r")
                .unwrap_err()
                .contains("docker-credential-nobody-has-this")
        );
    }
}

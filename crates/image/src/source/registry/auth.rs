//! Credentials: the request's own, `auths` and credential helpers of docker's `config.json`; and bearer tokens.
//!
//! Sources: docker's configuration file reference; distribution's "Token Authentication Specification".

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde::Deserialize;

use super::RegistryError;

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

/// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
pub(crate) fn default_config_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// The credentials a configuration file has for a registry; anonymous where it or the file has none. Blocking: helpers
/// are programs.
pub(crate) fn credentials_for(
    registry: &str,
    config: Option<&Path>,
) -> Result<Credentials, RegistryError> {
    let wrong = |why: String| RegistryError::Credentials {
        registry: registry.to_owned(),
        why,
    };
    let default = default_config_path();
    let Some(path) = config.or(default.as_deref()) else {
        return Ok(Credentials::Anonymous);
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Credentials::Anonymous);
        }
        Err(error) => return Err(wrong(format!("{} cannot be read: {error}", path.display()))),
    };
    let file: ConfigFile = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("{} is not valid: {error}", path.display())))?;
    let names = names_of(registry);
    let helper = names
        .iter()
        .find_map(|name| file.cred_helpers.get(name))
        .or(file.creds_store.as_ref());
    if let Some(helper) = helper {
        for name in &names {
            if let Some(credentials) = ask_helper(helper, name).map_err(&wrong)? {
                return Ok(credentials);
            }
        }
    }
    match names.iter().find_map(|name| file.auths.get(name)) {
        Some(entry) => entry.credentials().map_err(|why| wrong(why.to_owned())),
        None => Ok(Credentials::Anonymous),
    }
}

/// The names under which docker keeps one registry.
fn names_of(registry: &str) -> Vec<String> {
    let mut names = vec![
        registry.to_owned(),
        format!("https://{registry}"),
        format!("https://{registry}/v2/"),
        format!("https://{registry}/v1/"),
    ];
    if registry == "docker.io" {
        names.insert(0, "https://index.docker.io/v1/".into());
        names.push("index.docker.io".into());
        names.push("registry-1.docker.io".into());
    }
    names
}

impl AuthEntry {
    fn credentials(&self) -> Result<Credentials, &'static str> {
        if let Some(token) = self.identitytoken.as_ref().filter(|t| !t.is_empty()) {
            return Ok(Credentials::Identity(token.clone()));
        }
        if let Some(token) = self.registrytoken.as_ref().filter(|t| !t.is_empty()) {
            return Ok(Credentials::Token(token.clone()));
        }
        if let Some(auth) = self.auth.as_ref().filter(|a| !a.is_empty()) {
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
            (Some(username), Some(password)) => Ok(Credentials::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            _ => Ok(Credentials::Anonymous),
        }
    }
}

/// Runs `docker-credential-NAME get`. `None` when it has none for the registry.
fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    if helper.is_empty()
        || !helper
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
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
    let (done, wait) = std::sync::mpsc::channel();
    let id = child.id();
    let waiter = std::thread::spawn(move || {
        // The receiver is gone when the time is over.
        let _ = done.send(child.wait_with_output());
    });
    let output = match wait.recv_timeout(HELPER_TIME) {
        Ok(output) => output.map_err(|error| failed(&error))?,
        Err(_) => {
            if let Some(pid) = rustix::process::Pid::from_raw(id.cast_signed()) {
                // Not reaped yet, so the pid is still the helper's.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            drop(waiter.join());
            return Err(failed(&"it did not answer in time"));
        }
    };
    drop(waiter.join());
    if !output.status.success() {
        let answer = String::from_utf8_lossy(&output.stdout);
        return if answer.contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(&output.status))
        };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Basic {
            username: answer.username,
            password: answer.secret,
        },
    }))
}

/// What `WWW-Authenticate` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Parses one header value: a scheme, then `key="value"` or `key=value`, separated by commas.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = HashMap::new();
        while let Some((key, value)) = rest.split_once('=') {
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, later) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            parameters.insert(key, value.trim().to_owned());
            rest = later;
        }
        Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// A token with its end.
#[derive(Clone)]
pub(crate) struct Bearer {
    pub(super) token: String,
    pub(super) until: Instant,
}

/// The answer of a token server.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    pub(crate) fn bearer(self) -> Option<Bearer> {
        // The specification's default is 60 s; a little less, so that none is used at its very end.
        let seconds = self.expires_in.unwrap_or(60).clamp(10, 3600);
        let token = self.token.filter(|t| !t.is_empty()).or(self.access_token)?;
        Some(Bearer {
            token,
            until: Instant::now() + Duration::from_secs(seconds * 9 / 10),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("r.example".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer realm=\"x"), None);
    }

    #[test]
    fn docker_configuration_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let auth = base64::engine::general_purpose::STANDARD.encode("user:pa:ss");
        let text = format!(
            r#"{{"auths":{{"localhost:5000":{{"auth":"{auth}"}},"https://index.docker.io/v1/":{{"identitytoken":"t"}}}}}}"#
        );
        std::fs::write(&path, text).unwrap();
        let get = |registry| credentials_for(registry, Some(&path)).unwrap();
        assert_eq!(
            get("localhost:5000"),
            Credentials::Basic {
                username: "user".into(),
                password: "pa:ss".into()
            }
        );
        assert_eq!(get("docker.io"), Credentials::Identity("t".into()));
        assert_eq!(get("elsewhere:5000"), Credentials::Anonymous);
    }
}

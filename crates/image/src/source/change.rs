//! Changes to an image's configuration, written as the instructions of a Dockerfile.
//!
//! Source: docker's reference, "docker container commit", `--change`, and the Dockerfile reference. Variables and line
//! continuations are not replaced: an instruction is one string.

use serde_json::{Map, Value, json};

use super::SourceError;
use super::manifest::malformed;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// `CMD`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`, which makes the image's own command void.
    Entrypoint(Vec<String>),
    /// `ENV`: a name and its value.
    Env(String, String),
    /// `EXPOSE`: port and protocol.
    Expose(String),
    /// `LABEL`: a key and its value.
    Label(String, String),
    /// `STOPSIGNAL`.
    StopSignal(String),
    /// `USER`.
    User(String),
    /// `VOLUME`.
    Volumes(Vec<String>),
    /// `WORKDIR`.
    WorkingDir(String),
}

impl Change {
    /// Reads an instruction.
    pub(crate) fn parse(text: &str) -> Result<Self, SourceError> {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        let wrong = |why: &str| malformed(&format!("the change {shown:?}"), why);
        let (word, rest) = text
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(wrong(
                "it is an instruction and what it sets, such as CMD [\"/bin/app\"]",
            ));
        }
        if rest.contains('\0') {
            return Err(wrong("it has a NUL"));
        }
        let pair = || match rest.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_owned(), unquoted(value).to_owned()))
            }
            _ => Err(wrong("write it as NAME=value")),
        };
        Ok(match word.to_ascii_uppercase().as_str() {
            "CMD" => Change::Cmd(words(rest)),
            "ENTRYPOINT" => Change::Entrypoint(words(rest)),
            "ENV" => {
                let (name, value) = pair()?;
                Change::Env(name, value)
            }
            "LABEL" => {
                let (key, value) = pair()?;
                Change::Label(unquoted(&key).to_owned(), value)
            }
            "EXPOSE" => {
                let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
                let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
                if !is_port || !matches!(protocol, "tcp" | "udp" | "sctp") {
                    return Err(wrong("write it as PORT or PORT/udp"));
                }
                Change::Expose(format!("{port}/{protocol}"))
            }
            "STOPSIGNAL" => Change::StopSignal(rest.to_owned()),
            "USER" => Change::User(rest.to_owned()),
            "VOLUME" => Change::Volumes(match list(rest) {
                Some(volumes) => volumes,
                None => rest.split_whitespace().map(str::to_owned).collect(),
            }),
            "WORKDIR" if rest.starts_with('/') => Change::WorkingDir(rest.to_owned()),
            "WORKDIR" => return Err(wrong("give the whole path, from / on")),
            _ => {
                return Err(wrong(
                    "use CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
                ));
            }
        })
    }
}

/// `["a", "b"]`.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A list, or a line for a shell.
fn words(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| ["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

fn unquoted(text: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(text)
}

/// Applies instructions to the `config` of an image's configuration (image-spec v1.1, `config.md`), in order.
pub(crate) fn apply(changes: &[Change], config: &mut Map<String, Value>) {
    let keeps_command = changes
        .iter()
        .any(|change| matches!(change, Change::Cmd(_)));
    for change in changes {
        match change {
            Change::Cmd(words) => set(config, "Cmd", json!(words)),
            Change::Entrypoint(words) => {
                set(config, "Entrypoint", json!(words));
                if !keeps_command {
                    config.remove("Cmd");
                }
            }
            Change::Env(name, value) => set_variable(config, name, value),
            Change::Expose(port) => within(config, "ExposedPorts", port, json!({})),
            Change::Label(key, value) => within(config, "Labels", key, json!(value)),
            Change::StopSignal(signal) => set(config, "StopSignal", json!(signal)),
            Change::User(user) => set(config, "User", json!(user)),
            Change::Volumes(volumes) => {
                for volume in volumes {
                    within(config, "Volumes", volume, json!({}));
                }
            }
            Change::WorkingDir(directory) => set(config, "WorkingDir", json!(directory)),
        }
    }
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// Puts something into an object within, which images often have as `null`.
fn within(config: &mut Map<String, Value>, object: &str, key: &str, value: Value) {
    let known = config.entry(object).or_insert(Value::Null);
    if !known.is_object() {
        *known = json!({});
    }
    if let Some(object) = known.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

fn set_variable(config: &mut Map<String, Value>, name: &str, value: &str) {
    let known = config.entry("Env").or_insert(Value::Null);
    if !known.is_array() {
        *known = json!([]);
    }
    let Some(list) = known.as_array_mut() else {
        return;
    };
    let line = json!(format!("{name}={value}"));
    let is_it = |known: &&mut Value| {
        let known = known.as_str().and_then(|known| known.split_once('='));
        known.is_some_and(|(known, _)| known == name)
    };
    match list.iter_mut().find(is_it) {
        Some(known) => *known = line,
        None => list.push(line),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use super::*;

    fn changed(before: Value, changes: &[&str]) -> Value {
        let parsed: Vec<Change> = changes
            .iter()
            .map(|change| Change::parse(change).unwrap())
            .collect();
        let mut config = before.as_object().unwrap().clone();
        apply(&parsed, &mut config);
        Value::Object(config)
    }

    #[test]
    fn instructions_do_what_they_do_in_a_dockerfile() {
        let before =
            json!({ "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1", "B=2"], "Labels": null });
        let changes = [
            "cmd [\"/bin/app\", \"-v\"]",
            "ENV B=3 4",
            "ENV C=\"x\"",
            "EXPOSE 80",
            "EXPOSE 53/udp",
            "LABEL a.b=c",
            "USER web:web",
            "VOLUME /data",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ];
        assert_eq!(
            changed(before, &changes),
            json!({
                "Entrypoint": ["/e"], "Cmd": ["/bin/app", "-v"], "Env": ["A=1", "B=3 4", "C=x"],
                "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "Labels": { "a.b": "c" }, "User": "web:web",
                "Volumes": { "/data": {} }, "WorkingDir": "/srv", "StopSignal": "SIGINT",
            })
        );
    }

    #[test]
    fn an_entrypoint_makes_the_images_command_void_unless_there_is_a_new_one() {
        let before = || json!({ "Entrypoint": ["/e"], "Cmd": ["c"] });
        let shell = json!(["/bin/sh", "-c", "serve it"]);
        assert_eq!(
            changed(before(), &["ENTRYPOINT serve it"]),
            json!({ "Entrypoint": shell })
        );
        assert_eq!(
            changed(before(), &["CMD [\"d\"]", "ENTRYPOINT serve it"]),
            json!({ "Entrypoint": shell, "Cmd": ["d"] })
        );
    }

    #[test]
    fn what_is_no_instruction_is_refused_in_words() {
        for text in [
            "",
            "CMD",
            "RUN make",
            "ENV novalue",
            "ENV =x",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 80/icmp",
            "WORKDIR here",
            "USER a\0b",
        ] {
            let error = Change::parse(text).unwrap_err();
            assert!(matches!(error, SourceError::Malformed { .. }), "{text:?}");
        }
    }
}

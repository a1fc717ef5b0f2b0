//! What the API's objects look like as lines of a table. Pure but for the clock.

use super::output::{Detail, Field, Look, Row};
use super::text::{ago, bytes, shell_words, short_digest, shorten, span};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use warren_api::image::{Image, ImageStatus};
use warren_api::instance::{Instance, InstanceState, PortProtocol};

/// The longest reason of a failure in a short table.
const REASON: usize = 60;
/// The longest image reference in a short table.
const REFERENCE: usize = 48;

/// What an instance is doing, in words, with how it went where it is over.
pub(crate) fn status(instance: &Instance, now: OffsetDateTime, detail: Detail) -> (String, Look) {
    if instance.deleting {
        return ("Deleting".to_owned(), Look::Waiting);
    }
    let since = |then: Option<OffsetDateTime>| {
        then.filter(|then| now - *then >= time::Duration::SECOND)
            .map(|then| format!(" {}", span(now - then)))
            .unwrap_or_default()
    };
    match instance.state {
        InstanceState::Running => (format!("Running{}", since(instance.started_at)), Look::Good),
        InstanceState::Stopped => {
            let when = instance
                .stopped_at
                .map(|then| format!(" {}", ago(then, now)))
                .unwrap_or_default();
            let waits = instance
                .restart_status
                .as_ref()
                .is_some_and(|status| status.next_attempt_at.is_some());
            match (instance.exit_code, &instance.state_error) {
                (Some(code), _) if waits => (format!("Restarting (exit {code})"), Look::Waiting),
                (None, Some(reason)) => {
                    let reason = cut(reason, REASON, detail);
                    (format!("Failed: {reason}"), Look::Bad)
                }
                (Some(0), _) => (format!("Stopped (exit 0){when}"), Look::Plain),
                (Some(code), _) => (format!("Stopped (exit {code}){when}"), Look::Bad),
                (None, None) => (format!("Stopped{when}"), Look::Plain),
            }
        }
        InstanceState::Paused | InstanceState::Standby => match &instance.state_error {
            // It has not been asked to.
            Some(reason) => {
                let reason = cut(reason, REASON, detail);
                (format!("{}: {reason}", instance.state), Look::Bad)
            }
            None => (instance.state.to_string(), Look::Waiting),
        },
        InstanceState::Created | InstanceState::Initializing | InstanceState::Shutdown => {
            (instance.state.to_string(), Look::Waiting)
        }
        InstanceState::Unknown => (instance.state.to_string(), Look::Bad),
    }
}

/// Published ports as they are written on the command line, TCP unsaid.
fn ports(instance: &Instance) -> String {
    let ports: Vec<String> = instance
        .port_mappings
        .iter()
        .map(|port| match port.protocol {
            PortProtocol::Tcp => format!("{}:{}", port.host_port, port.guest_port),
            PortProtocol::Udp => format!("{}:{}/udp", port.host_port, port.guest_port),
        })
        .collect();
    ports.join(", ")
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

fn cut(text: &str, limit: usize, detail: Detail) -> String {
    match detail {
        Detail::Short => shorten(text, limit),
        Detail::Untruncated | Detail::Wide => text.to_owned(),
    }
}

/// Both spellings of labels, for servers of either generation.
pub(crate) fn labels(instance: &Instance) -> BTreeMap<String, String> {
    let mut labels = instance.tags.clone();
    labels.extend(instance.labels.clone());
    labels
}

impl Row for Instance {
    fn heads(detail: Detail) -> Vec<&'static str> {
        let mut heads = vec![
            "NAME", "ID", "IMAGE", "STATUS", "ADDRESS", "PORTS", "CREATED",
        ];
        if detail == Detail::Wide {
            heads.extend([
                "CPUS",
                "MEMORY",
                "DISK",
                "HYPERVISOR",
                "RESTARTS",
                "LABELS",
                "COMMAND",
            ]);
        }
        heads
    }

    fn cells(&self, detail: Detail) -> Vec<Field> {
        let now = OffsetDateTime::now_utc();
        let (text, look) = status(self, now, detail);
        let mut cells = vec![
            Field::new(&self.name),
            Field::new(&self.id),
            Field::new(cut(&self.image, REFERENCE, detail)),
            Field::new(text).looking(look),
            Field::new(
                self.private_ip
                    .as_deref()
                    .or(self.network.ip.as_deref())
                    .unwrap_or_default(),
            ),
            Field::new(ports(self)),
            Field::new(ago(self.created_at, now)),
        ];
        if detail == Detail::Wide {
            let hypervisor = self
                .hypervisor
                .and_then(|hypervisor| serde_json::to_value(hypervisor).ok())
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default();
            let command = [
                self.entrypoint.clone().unwrap_or_default(),
                self.cmd.clone().unwrap_or_default(),
            ]
            .concat();
            let restarts = self
                .restart_status
                .as_ref()
                .map_or(0, |status| status.attempts);
            cells.extend([
                Field::new(self.vcpus.to_string()),
                Field::new(&self.size),
                Field::new(&self.overlay_size),
                Field::new(hypervisor),
                Field::new(restarts.to_string()),
                Field::new(pairs(&labels(self))),
                Field::new(shell_words(&command)),
            ]);
        }
        cells
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}

impl Row for Image {
    fn heads(detail: Detail) -> Vec<&'static str> {
        let mut heads = vec!["NAME", "ID", "DIGEST", "SIZE", "STATUS", "CREATED"];
        if detail == Detail::Wide {
            heads.extend(["PLATFORM", "USER", "PORTS", "COMMAND"]);
        }
        heads
    }

    fn cells(&self, detail: Detail) -> Vec<Field> {
        let now = OffsetDateTime::now_utc();
        let (state, look) = match self.status {
            ImageStatus::Ready => ("ready".to_owned(), Look::Good),
            ImageStatus::Pending => ("pending".to_owned(), Look::Waiting),
            ImageStatus::Pulling => ("pulling".to_owned(), Look::Waiting),
            ImageStatus::Converting => ("converting".to_owned(), Look::Waiting),
            ImageStatus::Failed => {
                let reason = self.error.as_deref().unwrap_or("no reason given");
                (
                    format!("failed: {}", cut(reason, REASON, detail)),
                    Look::Bad,
                )
            }
        };
        let digest = match detail {
            Detail::Short => short_digest(&self.digest),
            Detail::Untruncated | Detail::Wide => self.digest.clone(),
        };
        let mut cells = vec![
            Field::new(&self.name),
            Field::new(cut(&self.id, 24, detail)),
            Field::new(digest),
            Field::new(self.size_bytes.map(bytes).unwrap_or_default()),
            Field::new(state).looking(look),
            Field::new(ago(self.created_at, now)),
        ];
        if detail == Detail::Wide {
            let command = [self.entrypoint.clone(), self.cmd.clone()].concat();
            cells.extend([
                Field::new(self.platform.as_deref().unwrap_or_default()),
                Field::new(self.user.as_deref().unwrap_or_default()),
                Field::new(self.exposed_ports.join(",")),
                Field::new(shell_words(&command)),
            ]);
        }
        cells
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use time::macros::datetime;

    /// An instance as a server would send it.
    pub(crate) fn instance(extra: &str) -> Instance {
        let mut object: serde_json::Value = serde_json::from_str(
            r#"{"id":"web-1","name":"web","image":"nginx:1.27","state":"Running",
                "created_at":"2026-01-01T00:00:00Z","started_at":"2026-01-01T00:00:01Z",
                "private_ip":"192.168.100.2","memory_mb":512,"memory_max_mb":4096,"size":"512MB",
                "hotplug_size":"3GB","overlay_size":"10GB","vcpus":2,
                "port_mappings":[{"host_port":8080,"guest_port":80},
                                 {"host_port":53,"guest_port":53,"protocol":"udp"}],
                "tags":{"tier":"web"}}"#,
        )
        .unwrap();
        let extra: serde_json::Value = serde_json::from_str(extra).unwrap();
        for (key, value) in extra.as_object().unwrap() {
            object[key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn said(extra: &str) -> String {
        let now = datetime!(2026-01-01 00:03:01 UTC);
        status(&instance(extra), now, Detail::Short).0
    }

    #[test]
    fn a_status_says_what_happened() {
        assert_eq!(said("{}"), "Running 3 minutes");
        assert_eq!(said(r#"{"state":"Paused"}"#), "Paused");
        assert_eq!(
            said(r#"{"state":"Paused","state_error":"the host's disk is full"}"#),
            "Paused: the host's disk is full"
        );
        assert_eq!(
            said(r#"{"state":"Stopped","exit_code":7,"stopped_at":"2026-01-01T00:02:01Z"}"#),
            "Stopped (exit 7) 1 minute ago"
        );
        assert_eq!(
            said(r#"{"state":"Stopped","state_error":"no kernel: run ./dev kernel"}"#),
            "Failed: no kernel: run ./dev kernel"
        );
        assert_eq!(
            said(
                r#"{"state":"Stopped","exit_code":1,
                    "restart_status":{"attempts":2,"next_attempt_at":"2026-01-01T00:04:00Z"}}"#
            ),
            "Restarting (exit 1)"
        );
        assert_eq!(said(r#"{"deleting":true}"#), "Deleting");
    }

    #[test]
    fn rows_have_a_cell_for_every_head() {
        for detail in [Detail::Short, Detail::Untruncated, Detail::Wide] {
            assert_eq!(
                instance("{}").cells(detail).len(),
                <Instance as Row>::heads(detail).len()
            );
        }
    }

    #[test]
    fn ports_are_shown_as_they_are_written() {
        assert_eq!(ports(&instance("{}")), "8080:80, 53:53/udp");
    }
}

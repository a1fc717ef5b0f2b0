//! A bundle: everything that is known of one instance, in one archive that can be sent to somebody who is asked for
//! help. It is put together from what other questions answer, too; what cannot be had is named in it and leaves out
//! nothing else: a bundle is made when something does not work.

mod masking;

use super::{App, AppError, View};
use crate::keys;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use masking::Secrets;
use serde::Serialize;
use serde_json::{Value, json};
use std::future::Future;
use std::io::Write;
use std::time::Duration;
use warren_core::PortError;
use warren_core::id::Prefixes;
use warren_core::ports::host_link::{LogQuery, LogSource};
use warren_core::ports::store::Change;

/// How long one part may take: a guest, a VMM or a disk that hangs is why bundles are made.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the store's history may be silent before it has said everything.
const SILENCE: Duration = Duration::from_millis(200);
/// Events that are looked through, the newest ones.
const EVENTS: usize = 1000;
/// Lines of each log, and their bytes: the last ones.
const LINES: u64 = 2000;
const LOG_BYTES: usize = 4 << 20;

/// The archive's files, by name, with their text.
struct Parts {
    secrets: Secrets,
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

impl Parts {
    fn text(&mut self, name: &str, text: &str) {
        let text = self.secrets.hidden_in(text);
        self.files.push((name.to_owned(), text));
    }

    fn json(&mut self, name: &str, document: &impl Serialize) {
        let document = serde_json::to_value(document).map(|mut document| {
            self.secrets.hide_in(&mut document);
            format!("{document:#}\n")
        });
        match document {
            Ok(text) => self.files.push((name.to_owned(), text)),
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    /// Whatever a question answers in time.
    async fn asked<T>(
        &mut self,
        name: &str,
        question: impl Future<Output = Result<T, AppError>>,
    ) -> Option<T> {
        let why = match tokio::time::timeout(PATIENCE, question).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let why = self.secrets.hidden_in(&why);
        self.missing.push(format!("{name}: {why}"));
        None
    }

    async fn asked_json<T: Serialize>(
        &mut self,
        name: &str,
        question: impl Future<Output = Result<T, AppError>>,
    ) {
        if let Some(answer) = self.asked(name, question).await {
            self.json(name, &answer);
        }
    }

    /// All files below one directory, compressed.
    fn packed(mut self, top: &str, made: time::OffsetDateTime) -> std::io::Result<Vec<u8>> {
        let missing = match self.missing.is_empty() {
            true => "nothing\n".to_owned(),
            false => self.missing.join("\n") + "\n",
        };
        self.files.push(("missing.txt".to_owned(), missing));
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(made.unix_timestamp()).unwrap_or_default());
            archive.append_data(&mut header, format!("{top}/{name}"), text.as_bytes())?;
        }
        let mut compressed = archive.into_inner()?;
        compressed.flush()?;
        compressed.finish()
    }
}

const README: &str = "\
Everything that Warren knows of one instance, for whoever looks for a fault.

instance.json      what the API shows of it            intent.json    what is recorded of it
status.json        what its host said last             events.jsonl   what happened to it, as far back as is remembered
stats.json         what it uses                        operations.json  what the server was busy with
doctor.json        what the host can do, what was chosen and why; whether the server can do its work; its resources
check.json         what is on the host of it, and in what that differs from the record
host/              the host's own record, its processes with their arguments, the files it keeps
logs/              the last lines of the workload, the guest's console and the VMM
versions.json      of server, client and hypervisors
missing.txt        what could not be had, and why

Values of environment variables, passwords and tokens are replaced by \"(hidden)\". What a workload writes into its log
may hold others: look through it before you give this away.
";

impl App {
    /// The archive of everything that is known of an instance: a gzipped tar. `client` is who asks, in its own words.
    ///
    /// # Errors
    /// Missing or ambiguous.
    pub async fn bundle(&self, wanted: &str, client: Option<&str>) -> Result<Vec<u8>, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        let made = self.0.clock.now();
        let mut parts = Parts {
            secrets: Secrets::new(view.intent.spec.env.values()),
            files: vec![("README.txt".to_owned(), README.to_owned())],
            missing: Vec::new(),
        };
        self.of_the_record(&view, &mut parts).await;
        self.of_the_host(&view, client, &mut parts).await;
        self.of_the_logs(&view, &mut parts).await;
        let top = format!("warren-debug-{}", view.intent.slug);
        let packed = tokio::task::spawn_blocking(move || parts.packed(&top, made));
        let failed = |error| PortError::io("packing the bundle", error);
        match packed.await {
            Ok(packed) => Ok(packed.map_err(failed)?),
            Err(error) => Err(failed(std::io::Error::other(error)).into()),
        }
    }

    async fn of_the_record(&self, view: &View, parts: &mut Parts) {
        let (intent, status) = (&view.intent, &view.status);
        parts.json(
            "instance.json",
            &warren_api::convert::instance(intent, status),
        );
        let intent = json!({"revision": view.revision, "intent": **intent, "doubt": self.doubt()});
        parts.json("intent.json", &intent);
        parts.json("status.json", &**status);
        parts.json("operations.json", &self.operations(&[]));
        if let Some(events) = parts.asked("events.jsonl", self.history(view)).await {
            let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
            parts.text("events.jsonl", &lines);
        }
    }

    /// The events of an instance, each with its id.
    async fn history(&self, view: &View) -> Result<Vec<Value>, AppError> {
        let now = self.0.store.revision().await?;
        let mut changes = self.0.store.watch(keys::EVENT, 1).await?;
        let mut events = Vec::new();
        // The history has no end, and the last event need not be its newest change.
        while let Ok(Some(change)) = tokio::time::timeout(SILENCE, changes.next()).await {
            match change {
                Change::Put(record) => {
                    let event = keys::decode::<warren_core::event::Event>(&record);
                    if let Ok(event) = event
                        && event.instance == view.intent.id
                    {
                        let event = warren_api::Event::from(event);
                        events.push(json!({"id": record.revision, "event": event}));
                    }
                    if record.revision >= now {
                        break;
                    }
                }
                Change::Delete { .. } => {}
                Change::Compacted { oldest } => {
                    changes = self.0.store.watch(keys::EVENT, oldest).await?;
                }
            }
            if events.len() > EVENTS {
                events.remove(0);
            }
        }
        Ok(events)
    }

    async fn of_the_host(&self, view: &View, client: Option<&str>, parts: &mut Parts) {
        let id = &view.intent.id;
        let doctor = async {
            let report = self.0.host.report().await?;
            let (readiness, resources) = (self.readiness().await, self.resources().await?);
            Ok(json!({"host": report, "readiness": readiness, "resources": resources}))
        };
        let doctor = parts.asked("doctor.json", doctor).await;
        let versions = json!({
            "server": env!("CARGO_PKG_VERSION"),
            "client": client,
            "installation": self.0.settings.installation,
            "hypervisors": doctor.as_ref().map(|doctor| &doctor["host"]["hypervisors"]),
        });
        parts.json("versions.json", &versions);
        if let Some(doctor) = doctor {
            parts.json("doctor.json", &doctor);
        }
        parts.asked_json("check.json", self.found_of(view)).await;
        parts
            .asked_json("stats.json", self.stats(id.as_str()))
            .await;
        let evidence = async { Ok(self.0.host.upkeep().evidence(id).await?) };
        for piece in parts.asked("host/", evidence).await.into_iter().flatten() {
            let name = format!("host/{}", piece.name);
            match serde_json::from_str::<Value>(&piece.text) {
                Ok(document) => parts.json(&name, &document),
                Err(_) => parts.text(&name, &piece.text),
            }
        }
    }

    /// What the check finds of one instance.
    async fn found_of(&self, view: &View) -> Result<Value, AppError> {
        let handle = &view.intent.handle;
        let check = self.look().await?;
        let found: Vec<_> = check
            .inventory
            .iter()
            .filter(|item| item.part.is_of(handle, view.intent.address))
            .collect();
        let differences: Vec<_> = check
            .differences
            .iter()
            .filter(|difference| {
                difference.instance.as_ref() == Some(&view.intent.id)
                    || difference.item.part.is_of(handle, view.intent.address)
            })
            .collect();
        Ok(json!({"found": found, "differences": differences}))
    }

    async fn of_the_logs(&self, view: &View, parts: &mut Parts) {
        for (name, source) in [
            ("logs/workload.log", LogSource::Workload),
            ("logs/console.log", LogSource::Console),
            ("logs/vmm.log", LogSource::Vmm),
        ] {
            let lines = async {
                let query = LogQuery {
                    source,
                    tail: Some(LINES),
                    ..LogQuery::default()
                };
                let mut lines = self.logs(view.intent.id.as_str(), query).await?;
                let mut text = String::new();
                while let Some(line) = lines.next().await {
                    text.push_str(&line.at.to_string());
                    text.push(' ');
                    text.push_str(&line.text);
                    text.push('\n');
                }
                Ok(text)
            };
            if let Some(text) = parts.asked(name, lines).await {
                parts.text(name, last(&text, LOG_BYTES));
            }
        }
    }
}

/// The last `most` bytes, from the beginning of a line on.
fn last(text: &str, most: usize) -> &str {
    let from = text.len().saturating_sub(most);
    if from == 0 {
        return text;
    }
    let line = text.as_bytes()[from..]
        .iter()
        .position(|byte| *byte == b'\n');
    line.and_then(|end| text.get(from + end + 1..))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_last_whole_lines() {
        assert_eq!(last("a\nb\n", 100), "a\nb\n");
        assert_eq!(last("aaaa\nbb\nc\n", 6), "bb\nc\n");
        assert_eq!(last("aaaa\nbb\nc\n", 4), "c\n");
        assert_eq!(last("ä\nö\n", 4), "ö\n");
        assert_eq!(last("endless", 3), "");
    }
}

//! What this host knows of one instance and nobody else can tell: its record, its processes with their arguments, its
//! files. For somebody who looks for a fault; looks only. The key of the guest's channel stays here.

use crate::context::Context;
use crate::inventory;
use serde_json::Value;
use std::fmt::Write;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use warren_core::PortError;
use warren_core::inventory::Item;
use warren_core::ports::InstanceHome;
use warren_core::ports::host_link::Evidence;

/// The most that is read of a record or of a process's arguments.
const LARGEST: u64 = 8 << 20;
/// The most files that are listed.
const FILES: usize = 1000;

/// All of it. What cannot be read says so in its place.
pub(crate) async fn of_instance(
    context: &Context,
    home: InstanceHome,
) -> Result<Vec<Evidence>, PortError> {
    let mut items = inventory::take_inventory(&context.config, &context.ports).await?;
    items.retain(|item| item.part.handle() == Some(&home.handle));
    let read = tokio::task::spawn_blocking(move || {
        let piece = |name: &str, text| Evidence {
            name: name.to_owned(),
            text,
        };
        vec![
            piece("record.json", record(&home.directory)),
            piece("vmm.json", file(&home.directory.join("vmm.json"))),
            piece("processes.txt", processes(&items)),
            piece("files.txt", files(&home.directory)),
        ]
    });
    read.await
        .map_err(|error| PortError::bug("evidence_failed", "internal error").with_source(error))
}

fn bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn file(path: &Path) -> String {
    match bounded(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("cannot be read: {error}\n"),
    }
}

fn record(directory: &Path) -> String {
    let text = file(&directory.join("record.json"));
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(mut fields)) => {
            // Who has it can speak to the guest as its host.
            fields.remove("attach_key");
            Value::Object(fields).to_string()
        }
        // What is damaged may hold the key anywhere.
        Ok(_) | Err(_) => format!("is no record; it has {} bytes\n", text.len()),
    }
}

/// Each process with one argument a line.
fn processes(items: &[Item]) -> String {
    let mut text = String::new();
    for (item, pid) in items.iter().filter_map(|item| Some((item, item.pid?))) {
        let arguments = match bounded(Path::new(&format!("/proc/{pid}/cmdline"))) {
            Ok(bytes) => String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .replace('\0', "\n    "),
            Err(error) => format!("cannot be read: {error}"),
        };
        writeln!(text, "{}: {}\n    {arguments}", item.kind, item.name)
            .expect("a String takes everything");
    }
    if text.is_empty() {
        text.push_str("none\n");
    }
    text
}

/// Mode, size in bytes, bytes that are allocated, name.
fn files(directory: &Path) -> String {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return format!("cannot be read: {error}\n"),
    };
    let mut lines: Vec<String> = entries
        .filter_map(Result::ok)
        .take(FILES)
        .map(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy().into_owned();
            match entry.metadata() {
                Ok(it) => format!(
                    "{name:<24} mode {:o}, {} bytes, {} allocated\n",
                    it.mode(),
                    it.len(),
                    it.blocks() * 512
                ),
                Err(error) => format!("{name:<24} {error}\n"),
            }
        })
        .collect();
    lines.sort();
    lines.concat()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use warren_core::inventory::{Kind, Part};

    #[test]
    fn a_record_comes_without_its_key_and_what_is_no_record_does_not_come() {
        let directory = tempfile::tempdir().unwrap();
        assert!(record(directory.path()).contains("is no record"));
        let path = directory.path().join("record.json");
        std::fs::write(&path, r#"{"format": 1, "attach_key": "k3y"}"#).unwrap();
        assert_eq!(record(directory.path()), r#"{"format":1}"#);
        std::fs::write(&path, r#"{"format": 1, "attach_key": "k3y""#).unwrap();
        assert!(!record(directory.path()).contains("k3y"));
        assert!(files(directory.path()).starts_with("record.json "));
    }

    #[test]
    fn a_process_comes_with_its_arguments_and_one_that_is_gone_is_named() {
        let handle = "aaaabbbb".parse().unwrap();
        let mut item = Item::new(Kind::Machine, "pid 1 (x)", Part::Machine { handle });
        item.pid = Some(std::process::id());
        let own = std::env::args().next().unwrap();
        assert!(processes(&[item.clone()]).contains(&own));
        item.pid = Some(u32::MAX);
        assert!(processes(&[item]).contains("cannot be read"));
        assert_eq!(processes(&[]), "none\n");
    }
}

//! What checks, recoveries and backups look like.

use crate::cli::{CliError, Detail, Field, Look, Output, OutputFormat, Row};
use serde::Serialize;
use std::path::Path;
use warren_api::upkeep::{Check, Difference, DifferenceKind, InventoryItem, Recovery, Remedy};

impl Row for Difference {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["", "WHAT", "WHAT TO DO"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        let (word, look) = match self.kind {
            DifferenceKind::Leaked => ("leaked", Look::Bad),
            DifferenceKind::Missing => ("missing", Look::Bad),
            DifferenceKind::Damaged => ("damaged", Look::Bad),
            DifferenceKind::Unknown => ("unknown", Look::Waiting),
        };
        vec![
            Field::new(word).looking(look),
            Field::new(&self.sentence),
            Field::new(&self.hint),
        ]
    }

    fn name(&self) -> String {
        self.item.name.clone()
    }
}

impl Row for InventoryItem {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["KIND", "NAME", "INSTANCE'S HANDLE"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        vec![
            Field::new(&self.kind),
            Field::new(&self.name),
            Field::new(self.handle.as_deref().unwrap_or("-")),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// A check, in the format that was asked for.
pub(super) fn check(out: &Output, check: &Check, all: bool) -> Result<(), CliError> {
    match out.format(OutputFormat::Table) {
        OutputFormat::Json => return out.json(check),
        OutputFormat::Yaml => return out.yaml(check),
        OutputFormat::Name => return out.list(&check.differences, Detail::Short),
        OutputFormat::Table | OutputFormat::Wide => {}
    }
    if all {
        out.list(&check.inventory, Detail::Untruncated)?;
        out.line("")?;
    }
    for difference in &check.repaired {
        out.line(format!("repaired: {}", difference.sentence))?;
    }
    for failed in &check.failed {
        out.line(format!(
            "not repaired: {}: {}",
            failed.difference.sentence, failed.error
        ))?;
    }
    if check.differences.is_empty() {
        return out.line(format!(
            "record and host agree: {} things are here and all of them belong here",
            check.inventory.len()
        ));
    }
    out.list(&check.differences, Detail::Untruncated)?;
    let repairable = check
        .differences
        .iter()
        .filter(|difference| difference.remedy == Remedy::Repair)
        .count();
    out.note(format!(
        "{} differences, {repairable} of them for --repair",
        check.differences.len()
    ));
    Ok(())
}

/// A recovery, in the format that was asked for.
pub(super) fn recovery(out: &Output, recovery: &Recovery) -> Result<(), CliError> {
    match out.format(OutputFormat::Table) {
        OutputFormat::Json => return out.json(recovery),
        OutputFormat::Yaml => return out.yaml(recovery),
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {}
    }
    for (ids, what) in [
        (&recovery.recovered, "recorded again"),
        (&recovery.updated, "brought up to date"),
        (&recovery.unchanged, "recorded as it is"),
        (&recovery.forgotten, "deleted since, and forgotten"),
    ] {
        for id in ids {
            out.line(format!("{id}: {what}"))?;
        }
    }
    for directory in &recovery.unreadable {
        out.warn(format!("the record in the directory {directory}"));
    }
    out.note("the record is that of this host now");
    Ok(())
}

#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    bytes: u64,
}

/// A file that was written or read.
pub(super) fn file(out: &Output, what: &str, file: &Path) -> Result<(), CliError> {
    let bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let written = Written { file, bytes };
    match out.format(OutputFormat::Table) {
        OutputFormat::Json => out.json(&written),
        OutputFormat::Yaml => out.yaml(&written),
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
            out.line(format!("{what} {} ({bytes} bytes)", file.display()))
        }
    }
}

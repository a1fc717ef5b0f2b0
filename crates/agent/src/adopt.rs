//! Taking over what an earlier process left: directories tell what exists here.

use crate::record::HostRecord;
use std::path::{Path, PathBuf};
use warren_core::ports::host_link::HostRecords;
use warren_core::{Handle, PortError};
use warren_crashpoint::reached;

/// What a look through the instances' directories found.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    /// Instances.
    pub(crate) records: Vec<HostRecord>,
    /// Directories whose record is there and cannot be read, and why.
    pub(crate) damaged: Vec<(PathBuf, String)>,
    /// Directories in which nothing is recorded: nothing outside of them can exist.
    pub(crate) unrecorded: Vec<PathBuf>,
    /// Halves of directories that were being removed.
    pub(crate) removed: Vec<PathBuf>,
}

/// Looks through the directory of all instances. Changes nothing.
///
/// # Errors
/// When the directory cannot be read; one that does not exist is empty.
pub(crate) fn look_through(instances: &Path) -> Result<Directories, PortError> {
    let list = |error| PortError::io("reading the instances' directory", error);
    let mut found = Directories::default();
    let entries = match std::fs::read_dir(instances) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(list)?,
    };
    for entry in entries {
        let directory = entry.map_err(list)?.path();
        if directory
            .extension()
            .is_some_and(|extension| extension == "deleted")
        {
            found.removed.push(directory);
            continue;
        }
        match HostRecord::read(&directory) {
            Ok(Some(record)) => found.records.push(record),
            Ok(None) => found.unrecorded.push(directory),
            Err(error) => found.damaged.push((directory, error.to_string())),
        }
    }
    Ok(found)
}

/// The instances that have a directory in `instances`, for a process that has the data directory to itself:
/// what an earlier one left half-done in there is removed. Damaged records are named in the log and left alone.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn take_over(instances: &Path) -> Result<Vec<HostRecord>, PortError> {
    let found = look_through(instances)?;
    reached("adopt.directories-read");
    for directory in &found.removed {
        if let Err(error) = std::fs::remove_dir_all(directory) {
            tracing::warn!(directory = %directory.display(), %error, "cannot remove a deleted instance's rest");
        }
    }
    for (directory, reason) in &found.damaged {
        tracing::error!(directory = %directory.display(), reason, "an instance's record is damaged; it is left alone");
    }
    let homes = found
        .records
        .iter()
        .map(|record| instances.join(record.intent.handle.as_str()));
    for directory in homes.chain(found.unrecorded.iter().cloned()) {
        remove_halves(&directory);
    }
    for directory in &found.unrecorded {
        // Not empty is fine: it is used again, or shown by `warren fsck`.
        drop(std::fs::remove_dir(directory));
    }
    Ok(found.records)
}

/// Removes files that were being written aside, whose names start with a dot.
fn remove_halves(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".")
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(file = %entry.path().display(), %error, "cannot remove half a file");
        }
    }
}

/// The records of all instances that have a directory in `instances`. Changes nothing.
///
/// # Errors
/// When the directory cannot be read.
pub fn recorded_instances(instances: &Path) -> Result<Vec<HostRecord>, PortError> {
    Ok(look_through(instances)?.records)
}

/// The same, as control wants it.
///
/// # Errors
/// When the directory cannot be read.
pub fn host_records(instances: &Path) -> Result<HostRecords, PortError> {
    let found = look_through(instances)?;
    let handle = |directory: &Path| directory.file_name()?.to_str()?.parse::<Handle>().ok();
    Ok(HostRecords {
        over: found
            .records
            .iter()
            .filter_map(|record| {
                let ended = record.ended.as_ref().map(|(run, _)| *run);
                let given_up = record.given_up.as_ref().map(|(run, _)| *run);
                Some((record.intent.id.clone(), ended.max(given_up)?))
            })
            .collect(),
        damaged: found
            .damaged
            .iter()
            .filter_map(|(directory, reason)| Some((handle(directory)?, reason.clone())))
            .collect(),
        intents: found
            .records
            .into_iter()
            .map(|record| record.intent)
            .collect(),
    })
}

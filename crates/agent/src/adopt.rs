//! Taking over what an earlier process left: directories tell what exists here.

use crate::record::HostRecord;
use std::path::Path;
use warren_core::PortError;

/// The records of all instances that have a directory in `instances`. Damaged ones are named in the log
/// and left alone; halves of removed directories are removed.
///
/// # Errors
/// When the directory cannot be read; one that does not exist is empty.
pub fn records(instances: &Path) -> Result<Vec<HostRecord>, PortError> {
    let list = |error| PortError::io("reading the instances' directory", error);
    let mut records = Vec::new();
    let entries = match std::fs::read_dir(instances) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(records),
        entries => entries.map_err(list)?,
    };
    for entry in entries {
        let directory = entry.map_err(list)?.path();
        if directory
            .extension()
            .is_some_and(|extension| extension == "deleted")
        {
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                tracing::warn!(directory = %directory.display(), %error, "cannot remove a deleted instance's rest");
            }
            continue;
        }
        match HostRecord::read(&directory) {
            Ok(Some(record)) => records.push(record),
            // Made, but nothing recorded in it: nothing outside of it can exist.
            Ok(None) => drop(std::fs::remove_dir(&directory)),
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "an instance's record is set aside")
            }
        }
    }
    Ok(records)
}

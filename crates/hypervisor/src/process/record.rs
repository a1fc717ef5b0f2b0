//! `vmm.json`: which VMM belongs to a home directory.
//!
//! Not synced to disk: a host that lost its memory has lost its VMMs as well, and the boot id says so.

use super::ProcessError;
use serde::{Deserialize, Serialize};
use std::path::Path;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{Accelerator, HypervisorKind, ProcessIdentity};

/// The file's name in the home directory.
pub(crate) const FILE: &str = "vmm.json";

/// A record longer than this is not ours.
const MAX_BYTES: u64 = 64 * 1024;

/// How far a start had come when the record was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// A VMM is about to be started, or was and nobody wrote down which.
    Starting,
    /// It was started.
    Started {
        /// Which process.
        process: ProcessIdentity,
    },
}

/// What is known about the VMM of a home directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose machine it is.
    pub home: InstanceHome,
    /// The driver.
    pub kind: HypervisorKind,
    /// How its guest's instructions are executed.
    pub accelerator: Accelerator,
    /// SHA-256, hexadecimal, of the machine's configuration as JSON.
    pub config_sha256: String,
    /// How far the start came.
    #[serde(flatten)]
    pub stage: Stage,
}

impl Record {
    /// Writes it in the place of the one that is there: whole or not at all.
    pub(crate) fn write(&self) -> Result<(), ProcessError> {
        let path = self.home.directory.join(FILE);
        let fail = ProcessError::file("write", &path);
        serde_json::to_vec(self)
            .map_err(std::io::Error::other)
            .and_then(|bytes| crate::cache::write_whole(&path, &bytes))
            .map_err(fail)
    }

    /// Reads the record of a home directory. A damaged one counts as none: the lock and `/proc` know better.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, ProcessError> {
        use std::io::Read;
        let path = directory.join(FILE);
        let mut bytes = Vec::new();
        match std::fs::File::open(&path) {
            Ok(file) => file
                .take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(ProcessError::file("read", &path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ProcessError::file("read", &path)(error)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "damaged VMM record");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn a_record_is_read_as_written_and_a_damaged_one_is_none() {
        let root = tempfile::tempdir().unwrap();
        let mut record = Record {
            home: InstanceHome {
                id: "web".parse().unwrap(),
                handle: "aaaabbbb".parse().unwrap(),
                installation: "wxyz".parse().unwrap(),
                directory: root.path().to_owned(),
            },
            kind: HypervisorKind::QemuMicrovm,
            accelerator: Accelerator::Tcg,
            config_sha256: "00".to_owned(),
            stage: Stage::Starting,
        };
        assert_eq!(Record::read(root.path()).unwrap(), None);
        record.write().unwrap();
        assert_eq!(Record::read(root.path()).unwrap(), Some(record.clone()));
        record.stage = Stage::Started {
            process: super::super::identify(std::process::id()).unwrap(),
        };
        record.write().unwrap();
        assert_eq!(Record::read(root.path()).unwrap(), Some(record));
        for damage in ["", "{", "[1]", &"x".repeat(1 << 20)] {
            std::fs::write(root.path().join(FILE), damage).unwrap();
            assert_eq!(Record::read(root.path()).unwrap(), None);
        }
    }
}

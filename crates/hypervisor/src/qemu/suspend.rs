//! Standby on QEMU: memory and devices as a migration to a file, and back from it.
//!
//! ```text
//! <directory>/machine    QEMU's migration stream with pages at fixed places (`mapped-ram`): sparse
//! <directory>/qemu.json  which QEMU wrote it, for which board
//! ```
//!
//! `microvm` has no versions, so that only the QEMU that wrote a stream is known to read it.

use super::Qemu;
use super::argv::{Beginning, Board};
use super::driver::{blocking, qmp_failed, room};
use super::qmp::{self, QmpError};
use crate::accelerator::Decision;
use crate::process::Record;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{
    Accelerator, HOST_DISK_FULL, Hypervisor, MachineConfig, ProcessIdentity, Room, Suspend,
};
use warren_core::{ErrorClass, PortError};
use warren_crashpoint::reached;

const STREAM: &str = "machine";
const WRITER: &str = "qemu.json";
/// No honest description is larger.
const LONGEST: u64 = 64 << 10;
/// For a machine's whole memory, on a slow disk.
const DEADLINE: Duration = Duration::from_secs(600);
/// How long a question may take.
const COMMAND: Duration = Duration::from_secs(5);

/// Who wrote a stream.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Writer {
    /// QEMU's `10.0.2`.
    version: String,
    accelerator: Accelerator,
    board: Board,
}

impl Writer {
    /// The QEMU that runs for `home`: not always the one that is installed by now.
    async fn running(home: &InstanceHome) -> Result<Self, PortError> {
        let (version, machine) = qmp::identify(&home.directory, COMMAND)
            .await
            .map_err(qmp_failed)?;
        let record = Record::read(&home.directory)?.ok_or_else(|| {
            PortError::conflict(
                "vmm_unknown",
                "nothing is recorded of the instance's VMM: stop and start the instance first",
            )
        })?;
        Ok(Writer {
            version,
            accelerator: record.accelerator,
            board: Board::of(&machine),
        })
    }

    fn read(directory: &Path) -> Result<Self, PortError> {
        use std::io::Read;
        let fail = |error| PortError::io("could not read what was saved of the machine", error);
        let mut bytes = Vec::new();
        let file = std::fs::File::open(directory.join(WRITER)).map_err(fail)?;
        file.take(LONGEST).read_to_end(&mut bytes).map_err(fail)?;
        serde_json::from_slice(&bytes).map_err(|error| fail(error.into()))
    }

    /// Whether the QEMU that is here reads it.
    fn check(&self, here: &Decision) -> Result<(), PortError> {
        let other = |what: String| {
            let words = format!("the saved machine cannot be restored here: {what}");
            Err(PortError::unsupported("saved_elsewhere", words))
        };
        if here.version != self.version {
            return other(format!(
                "QEMU {} wrote it, and this host has QEMU {}",
                self.version, here.version
            ));
        }
        if self.accelerator != here.accelerator {
            return other(format!(
                "it ran with {:?}, and guests run with {:?} now",
                self.accelerator, here.accelerator
            ));
        }
        Ok(())
    }
}

fn save_failed(error: QmpError, directory: &Path) -> PortError {
    let full = match &error {
        QmpError::Migration(words) => {
            words.contains("No space left") || room(directory) == Room::None
        }
        _ => false,
    };
    if full {
        return PortError::new(
            ErrorClass::NoSpace,
            HOST_DISK_FULL,
            "the host's disk has no room for the machine's memory",
        )
        .with_hint("make room on the data directory's file system and try again")
        .with_source(error);
    }
    qmp_failed(error)
}

#[async_trait]
impl Suspend for Qemu {
    async fn save(&self, home: &InstanceHome, directory: &Path) -> Result<(), PortError> {
        let process = self.running(home).await?;
        let writer = Writer::running(home).await?;
        reached("qemu.saving");
        qmp::save(&home.directory, &directory.join(STREAM), DEADLINE)
            .await
            .map_err(|error| save_failed(error, directory))?;
        reached("qemu.saved");
        tracing::debug!(handle = %home.handle, pid = process.pid, "saved");
        let path = directory.join(WRITER);
        blocking(move || {
            let bytes = serde_json::to_vec(&writer)
                .map_err(|error| PortError::io("could not describe the machine", error.into()))?;
            std::fs::write(path, bytes)
                .map_err(|error| PortError::io("could not describe the machine", error))
        })
        .await
    }

    async fn restore(
        &self,
        machine: &MachineConfig,
        directory: &Path,
    ) -> Result<ProcessIdentity, PortError> {
        let resolved = self.resolved().await?;
        let writer = Writer::read(directory)?;
        writer.check(&resolved.decision)?;
        let process = self
            .begin(machine, resolved, (writer.board, Beginning::Incoming))
            .await?;
        reached("qemu.waits-for-its-state");
        let home = &machine.home;
        if let Err(error) = qmp::load(&home.directory, &directory.join(STREAM), DEADLINE).await {
            self.destroy(home).await?;
            return Err(PortError::retry(
                "restore_failed",
                format!("the saved machine could not be restored: {error}"),
            )
            .with_hint("`warren logs --source vmm` has the hypervisor's words")
            .with_source(error));
        }
        reached("qemu.restored");
        Ok(process)
    }
}

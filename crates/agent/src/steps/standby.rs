//! The steps into standby and back.

use super::{Effect, StepScope};
use crate::context::disk_path;
use crate::record::waiting_for_the_disk;
use crate::saved::{Owner, Saved};
use std::path::Path;
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::Suspend;
use warren_core::{ErrorClass, PortError};
use warren_crashpoint::reached;

impl StepScope<'_> {
    pub(super) fn saved(&self) -> Saved<'_> {
        Saved::of(&self.home().directory)
    }

    fn suspend_object(&self) -> Result<&dyn Suspend, PortError> {
        self.hypervisor.suspend().ok_or_else(|| {
            PortError::new(
                ErrorClass::Unsupported,
                "standby_unsupported",
                format!("{} cannot save an instance", self.hypervisor.kind()),
            )
        })
    }

    fn owner<'a>(&'a self, disk: &'a Path) -> Owner<'a> {
        Owner {
            intent: self.intent,
            hypervisor: self.hypervisor.kind(),
            disk,
        }
    }

    /// By which name the log knows the guest's boot.
    pub(super) fn boot_name(&self) -> String {
        let of_process = || {
            self.process.map_or_else(
                || self.intent.run.to_string(),
                |process| format!("{}-{}-{}", process.boot_id, process.pid, process.start_time),
            )
        };
        self.record.boot.clone().unwrap_or_else(of_process)
    }

    pub(super) async fn save_machine(&self) -> Result<Effect, PortError> {
        let suspend = self.suspend_object()?;
        let saved = self.saved();
        let aside = waiting_for_the_disk(|| saved.begin())?;
        let (disk, key) = (disk_path(self.home()), &self.context.config.seal);
        let written = match suspend.save(self.home(), &aside).await {
            Ok(()) => {
                let owner = self.owner(&disk);
                waiting_for_the_disk(|| saved.finish(key, owner, self.boot_name()))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            // What it takes may be what others lack.
            if let Err(error) = waiting_for_the_disk(|| saved.remove()) {
                tracing::warn!(instance = %self.intent.id, %error, "cannot remove what was saved in part");
            }
            return Err(error);
        }
        Ok(Effect::Saved)
    }

    pub(super) async fn restore_vmm(&self) -> Result<Effect, PortError> {
        let suspend = self.suspend_object()?;
        let machine = self.machine()?;
        let (disk, key) = (disk_path(self.home()), &self.context.config.seal);
        waiting_for_the_disk(|| self.saved().verify(key, self.owner(&disk)))?;
        reached("saved.verified");
        self.note_use_of_image().await;
        let process = suspend.restore(&machine, &self.saved().directory()).await?;
        reached("machine.restored");
        self.log_console().await;
        Ok(Effect::Restored(process))
    }

    /// Before processors run again: what was saved is not of this moment from then on, and must never be restored. Gives the
    /// name of the guest's boot, which the record has by then.
    pub(super) fn give_up_saved(&self) -> Result<Option<String>, PortError> {
        let saved = self.saved();
        let boot = match saved.presence() {
            Presence::Absent => return Ok(None),
            Presence::Partial => None,
            // Unreadable, its restore would have been refused: then the machine is the one that was to be saved.
            Presence::Present => saved.manifest().ok().map(|manifest| manifest.boot),
        };
        waiting_for_the_disk(|| {
            if let Some(boot) = &boot {
                let mut record = self.record.clone();
                record.boot = Some(boot.clone());
                record
                    .put(&self.home().directory)
                    .map_err(|error| PortError::io("writing the instance's record", error))?;
            }
            saved.remove()
        })?;
        reached("saved.given-up");
        Ok(boot)
    }
}

//! The steps of the plan, carried out. Each is idempotent, has a deadline, and reports what it changed
//! as an [`Effect`]; none decides what comes next.

use crate::bootstrap::boot_config;
use crate::console;
use crate::context::{Context, InstanceShared, attachment_spec, disk_path};
use crate::guest_session::{GuestSession, GuestState, guest_error};
use crate::record::HostRecord;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use warren_core::instance::{Desired, Exit, InstanceIntent, NetworkChoice};
use warren_core::planner::Step;
use warren_core::ports::hypervisor::{
    Disk, DiskAccess, MachineConfig, ProcessIdentity, VMM_NOT_RUNNING,
};
use warren_core::ports::network::Attachment;
use warren_core::ports::{Hypervisor, InstanceHome};
use warren_core::{ErrorClass, PortError, Timestamp};
use warren_crashpoint::{Times, reached, times};

/// Between the VMM's start and the agent's first word: an emulated guest on a busy host is slow.
const ATTACH_DEADLINE: Duration = Duration::from_secs(120);
/// Between the boot configuration and "ready".
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// For the last output of a workload that has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// For a guest to write back its file systems and power off.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(10);
/// Beyond the workload's own grace.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(5);

/// What a step changed.
pub(crate) enum Effect {
    /// The directory and the record are there.
    Recorded,
    /// The image's disk is here.
    Image(PathBuf),
    /// The writable disk is there.
    Disk,
    /// The attachment is there.
    Network(Box<Attachment>),
    /// The VMM runs.
    Started(ProcessIdentity),
    /// A session with the guest.
    Attached(Arc<GuestSession>),
    /// The workload runs.
    Ready(Timestamp),
    /// The processors are stopped.
    Paused,
    /// The machine's memory and devices are saved.
    Saved,
    /// The VMM has what was saved; its processors are stopped.
    Restored(ProcessIdentity),
    /// They go on; with the name of the guest's boot where they were restored.
    Resumed(Option<String>),
    /// Nothing saved is left.
    SavedRemoved,
    /// The workload has ended, or was not to be reached.
    ShutDown,
    /// How the run ended is recorded.
    Ended(Exit),
    /// No VMM is left.
    Destroyed,
    /// No attachment is left.
    Released,
    /// No writable disk is left.
    DiskRemoved,
    /// No directory is left.
    DirectoryRemoved,
}

/// Everything steps of one plan may read. They run together, so none may change it.
pub(crate) struct StepScope<'a> {
    pub(crate) context: &'a Context,
    pub(crate) shared: &'a InstanceShared,
    pub(crate) intent: &'a InstanceIntent,
    pub(crate) wishes: watch::Receiver<InstanceIntent>,
    pub(crate) record: &'a HostRecord,
    pub(crate) hypervisor: &'a Arc<dyn Hypervisor>,
    pub(crate) session: Option<&'a Arc<GuestSession>>,
    pub(crate) attachment: Option<&'a Attachment>,
    pub(crate) image_disk: Option<&'a PathBuf>,
    pub(crate) process: Option<&'a ProcessIdentity>,
}

impl StepScope<'_> {
    fn home(&self) -> &InstanceHome {
        &self.shared.home
    }

    /// Carries out one step.
    pub(crate) async fn carry_out(&self, step: Step) -> Result<Effect, PortError> {
        at(step, "begun");
        let effect = self.effect_of(step).await?;
        at(step, "done");
        match times() {
            Times::Once => Ok(effect),
            Times::Twice => self.carry_out_again(step, effect).await,
        }
    }

    /// As after a death right behind the step, for tests: what was done is found, and nothing is done a second time.
    async fn carry_out_again(&self, step: Step, first: Effect) -> Result<Effect, PortError> {
        let again = match step {
            Step::StartVmm | Step::RestoreVmm => match self.effect_of(step).await {
                Err(error) if error.code == "vmm_running" => Ok(first),
                Ok(_) => Err(PortError::bug("vmm_twice", "a machine was started twice")),
                Err(error) => Err(error),
            },
            // The second time there is nothing left to tell.
            Step::Resume => self.effect_of(step).await.map(|_| first),
            Step::RecordIntent
            | Step::EnsureImage
            | Step::EnsureDisk
            | Step::EnsureNetwork
            | Step::AttachGuest
            | Step::BootGuest
            | Step::Pause
            | Step::SaveMachine
            | Step::ShutDownGuest
            | Step::RecordExit
            | Step::DestroyVmm
            | Step::ReleaseNetwork
            | Step::RemoveSaved
            | Step::RemoveDisk
            | Step::RemoveDirectory => {
                // A guest has one host at a time: whoever attaches again has lost the session before.
                drop(first);
                self.effect_of(step).await
            }
        };
        let outcome = again.as_ref().map_or_else(|error| error.code, |_| "done");
        tracing::info!(instance = %self.intent.id, ?step, outcome, "carried out twice");
        again
    }

    async fn effect_of(&self, step: Step) -> Result<Effect, PortError> {
        match step {
            Step::RecordIntent => self.record_intent(),
            Step::EnsureImage => Ok(Effect::Image(
                self.context
                    .ports
                    .images
                    .disk(&self.intent.image_digest)
                    .await?,
            )),
            Step::EnsureDisk => {
                let path = disk_path(self.home());
                self.context
                    .ports
                    .volumes
                    .ensure_empty(&path, self.intent.spec.disk)
                    .await?;
                Ok(Effect::Disk)
            }
            Step::EnsureNetwork => {
                let spec = attachment_spec(self.home(), self.intent);
                Ok(Effect::Network(Box::new(
                    self.context.ports.network.ensure(&spec).await?,
                )))
            }
            Step::StartVmm => self.start_vmm().await,
            Step::AttachGuest => self.interruptible(self.attach_guest()).await,
            Step::BootGuest => self.interruptible(self.boot_guest()).await,
            Step::Pause => {
                let pause = self.pause_object()?;
                pause.pause(self.home()).await?;
                Ok(Effect::Paused)
            }
            Step::SaveMachine => self.save_machine().await,
            Step::RestoreVmm => self.restore_vmm().await,
            Step::Resume => {
                let pause = self.pause_object()?;
                let boot = self.give_up_saved()?;
                pause.resume(self.home()).await?;
                Ok(Effect::Resumed(boot))
            }
            Step::RemoveSaved => {
                self.saved().remove()?;
                Ok(Effect::SavedRemoved)
            }
            Step::ShutDownGuest => match self.interruptible(self.shut_down_guest()).await {
                Err(error) if error.code == INTERRUPTED => Err(error),
                Ok(_) | Err(_) => Ok(Effect::ShutDown),
            },
            Step::RecordExit => self.record_exit().await,
            Step::DestroyVmm => {
                self.hypervisor.destroy(self.home()).await?;
                Ok(Effect::Destroyed)
            }
            Step::ReleaseNetwork => {
                self.context.ports.network.release(self.home()).await?;
                Ok(Effect::Released)
            }
            Step::RemoveDisk => {
                self.context
                    .ports
                    .volumes
                    .remove(&disk_path(self.home()))
                    .await?;
                Ok(Effect::DiskRemoved)
            }
            Step::RemoveDirectory => self.remove_directory(),
        }
    }

    /// Ends a wait when the user wants something else, or the machine is gone.
    async fn interruptible(
        &self,
        step: impl Future<Output = Result<Effect, PortError>> + Send,
    ) -> Result<Effect, PortError> {
        let mut wishes = self.wishes.clone();
        let (desired, run) = (self.intent.desired, self.intent.run);
        let other_wish = async move {
            let fixed = wishes
                .wait_for(|intent| intent.desired != desired || intent.run != run)
                .await
                .is_err();
            if fixed {
                // The wish can no longer change: never interrupt.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            // Gone before the step had begun: the same as gone while it is carried out.
            result = step => result.map_err(|error| match error.code {
                VMM_NOT_RUNNING => machine_ended(),
                _ => error,
            }),
            () = other_wish => Err(PortError::retry(INTERRUPTED, "the user wants something else now")),
            _ = self.hypervisor.wait_exit(self.home()) => Err(machine_ended()),
        }
    }

    fn record_intent(&self) -> Result<Effect, PortError> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = &self.home().directory;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| PortError::io("making the instance's directory", error))?;
        reached("record.directory-made");
        // Its name becomes durable with the disk's, which is the first thing that a power failure leaves.
        self.record
            .put(directory)
            .map_err(|error| PortError::io("writing the instance's record", error))?;
        Ok(Effect::Recorded)
    }

    /// The machine as it is started, and restored.
    fn machine(&self) -> Result<MachineConfig, PortError> {
        let image = self.image_disk.ok_or_else(|| {
            PortError::bug(
                "no_image_disk",
                "the image's disk was not looked up before the start",
            )
        })?;
        let nic = match (self.intent.spec.network, self.attachment) {
            (NetworkChoice::Disabled, _) => None,
            (NetworkChoice::Default, Some(attachment)) => Some(attachment.nic.clone()),
            (NetworkChoice::Default, None) => {
                return Err(PortError::bug(
                    "no_attachment",
                    "the network was not attached before the start",
                ));
            }
        };
        Ok(MachineConfig {
            home: self.home().clone(),
            vcpus: self.intent.spec.vcpus,
            memory: self.intent.spec.memory,
            disks: vec![
                Disk {
                    path: image.clone(),
                    access: DiskAccess::ReadOnly,
                },
                Disk {
                    path: disk_path(self.home()),
                    access: DiskAccess::ReadWrite,
                },
            ],
            nic,
            boot_args: vec![format!("warren.attach={}", self.record.attach_key)],
        })
    }

    async fn start_vmm(&self) -> Result<Effect, PortError> {
        let machine = self.machine()?;
        self.note_use_of_image().await;
        let process = self.hypervisor.start(&machine).await?;
        reached("machine.started");
        self.log_console().await;
        Ok(Effect::Started(process))
    }

    async fn note_use_of_image(&self) {
        let images = self.context.ports.images.upkeep();
        if let Err(error) = images.mark_used(&self.intent.image_digest).await {
            tracing::debug!(%error, "the image's last use is not noted");
        }
    }

    async fn log_console(&self) {
        match self.hypervisor.open_console(self.home()).await {
            Ok(console) => {
                let log = self.shared.console_log.clone();
                if let Err(error) =
                    console::drain(console, log, Arc::clone(&self.context.ports.clock))
                {
                    tracing::warn!(%error, "the console is not being logged");
                }
            }
            Err(error) => tracing::warn!(%error, "the console is not being logged"),
        }
    }

    async fn attach_guest(&self) -> Result<Effect, PortError> {
        let channel = self.hypervisor.open_channel(self.home()).await?;
        let boot = self.boot_name();
        let session = GuestSession::attach(
            channel,
            &self.record.attach_key,
            &boot,
            self.shared.workload_log.clone(),
            Arc::clone(&self.context.ports.clock),
            self.attach_deadline(),
        )
        .await?;
        reached("guest.attached");
        if self.record.boot.is_some() {
            // Its clock stood still while it was saved.
            session.client.set_time().await.map_err(guest_error)?;
            reached("guest.clock-set");
        }
        if session.state() == GuestState::Booting {
            // Booted by an earlier host process: it says at once how far it is.
            let said = session.wait_for(|state| *state != GuestState::Booting);
            if tokio::time::timeout(READY_DEADLINE, said).await.is_err() {
                return Err(PortError::retry(
                    "guest_not_ready",
                    "the guest did not get ready in time",
                ));
            }
        }
        Ok(Effect::Attached(Arc::new(session)))
    }

    /// Who is to be stopped need not be waited for longer than for its end.
    fn attach_deadline(&self) -> Duration {
        let grace = Duration::from_secs(self.intent.stop_grace_seconds) + SHUTDOWN_MARGIN;
        match self.intent.desired {
            Desired::Stopped => ATTACH_DEADLINE.min(grace),
            _ => ATTACH_DEADLINE,
        }
    }

    async fn boot_guest(&self) -> Result<Effect, PortError> {
        let Some(session) = self.session else {
            return Err(PortError::retry(
                "guest_unreachable",
                "there is no session with the guest",
            ));
        };
        let now = self.context.ports.clock.now();
        let nanos = u64::try_from(now.unix_timestamp_nanos()).unwrap_or(0);
        session
            .client
            .boot(boot_config(self.intent, self.attachment, nanos))
            .await
            .map_err(guest_error)?;
        reached("guest.told");
        let told =
            session.wait_for(|state| !matches!(state, GuestState::Waiting | GuestState::Booting));
        match tokio::time::timeout(READY_DEADLINE, told).await {
            Ok(GuestState::Ready | GuestState::Exited(_)) => {
                Ok(Effect::Ready(self.context.ports.clock.now()))
            }
            Ok(GuestState::Failed { stage, message }) => Err(PortError::invalid(
                "guest_failed",
                format!(
                    "the guest could not get ready ({stage}): {}",
                    printable(&message)
                ),
            )),
            Ok(GuestState::Closed(reason)) => Err(PortError::retry("guest_unreachable", reason)),
            Ok(GuestState::Waiting | GuestState::Booting) | Err(_) => Err(PortError::retry(
                "guest_not_ready",
                format!(
                    "the guest did not get ready within {} s",
                    READY_DEADLINE.as_secs()
                ),
            )
            .with_hint("see its console: warren logs --source console")),
        }
    }

    async fn shut_down_guest(&self) -> Result<Effect, PortError> {
        let Some(session) = self.session else {
            return Err(PortError::retry(
                "guest_unreachable",
                "there is no session with the guest",
            ));
        };
        let grace = Duration::from_secs(self.intent.stop_grace_seconds);
        session
            .client
            .shutdown(None, grace)
            .await
            .map_err(guest_error)?;
        reached("guest.asked-to-end");
        let ended = session.wait_for(|state| matches!(state, GuestState::Exited(_)));
        match tokio::time::timeout(grace + SHUTDOWN_MARGIN, ended).await {
            Ok(GuestState::Exited(_)) => Ok(Effect::ShutDown),
            Ok(_) | Err(_) => Err(PortError::retry(
                "guest_unreachable",
                "the guest did not end its workload",
            )),
        }
    }

    async fn record_exit(&self) -> Result<Effect, PortError> {
        let at = self.context.ports.clock.now();
        let reported = self.session.map(|session| (session, session.state()));
        let exit = match &reported {
            Some((session, GuestState::Exited(report))) => {
                if tokio::time::timeout(DRAIN_DEADLINE, session.logs_complete())
                    .await
                    .is_err()
                {
                    tracing::warn!(instance = %self.intent.id, "the last output did not arrive in time");
                }
                Exit {
                    code: Some(report.status.shell_code()),
                    message: report.message.as_deref().map(printable),
                    at,
                }
            }
            _ if self.record.started_at.is_some() => Exit {
                code: None,
                message: Some("the machine ended without telling how its workload did".to_owned()),
                at,
            },
            _ => Exit {
                code: None,
                message: Some("the machine ended before it was ready".to_owned()),
                at,
            },
        };
        let mut record = self.record.clone();
        record.ended = Some((self.intent.run, exit.clone()));
        record
            .write(&self.home().directory)
            .map_err(|error| PortError::io("writing the instance's record", error))?;
        reached("exit.recorded");
        if let Some((session, GuestState::Exited(_))) = reported
            && session.client.ack_exit().await.is_ok()
            && self.intent.desired != Desired::Deleted
        {
            reached("exit.acknowledged");
            let off = self.hypervisor.wait_exit(self.home());
            if !matches!(
                tokio::time::timeout(POWER_OFF_DEADLINE, off).await,
                Ok(Ok(()))
            ) {
                tracing::warn!(instance = %self.intent.id, "the guest did not power off in time");
            }
        }
        Ok(Effect::Ended(exit))
    }

    fn remove_directory(&self) -> Result<Effect, PortError> {
        let directory = &self.home().directory;
        let doomed = directory.with_extension("deleted");
        let gone = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PortError::io("removing the instance's directory", error))
            }
            Ok(()) | Err(_) => Ok(()),
        };
        // One rename makes it gone for good; what a crash leaves is swept by its name.
        gone(std::fs::remove_dir_all(&doomed))?;
        gone(std::fs::rename(directory, &doomed))?;
        reached("directory.renamed");
        gone(std::fs::remove_dir_all(&doomed))?;
        Ok(Effect::DirectoryRemoved)
    }

    fn pause_object(&self) -> Result<&dyn warren_core::ports::hypervisor::Pause, PortError> {
        self.hypervisor.pause().ok_or_else(|| {
            PortError::new(
                ErrorClass::Unsupported,
                "pause_unsupported",
                format!("{} cannot pause an instance", self.hypervisor.kind()),
            )
        })
    }
}

/// The places at a step's beginning and end are named after it.
fn at(step: Step, place: &str) {
    if cfg!(debug_assertions) {
        reached(&format!("step.{}.{place}", step.name()));
    }
}

/// The code of a step that ended because the user wants something else: not a failure.
pub(crate) const INTERRUPTED: &str = "interrupted";

/// The code of a step that ended because its machine did.
pub(crate) const MACHINE_ENDED: &str = "machine_ended";

fn machine_ended() -> PortError {
    PortError::retry(MACHINE_ENDED, "the machine ended unexpectedly")
        .with_hint("see its console: warren logs --source console")
}

/// Text from a guest as it may be shown: bounded, one line, no control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(500)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

mod standby;

#[cfg(test)]
mod tests;

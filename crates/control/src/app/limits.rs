//! Changing what an instance may use: all of what was asked for, or nothing.

use super::{App, AppError, View};
use warren_api::Code;
use warren_core::id::Prefixes;
use warren_core::instance::InstanceSpec;
use warren_core::state::StateName;
use warren_core::{ByteSize, MemoryMib};

/// What may be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Virtual processors.
    Processors,
    /// Memory at boot.
    Memory,
    /// The writable layer.
    Disk,
}

/// Limits to be; what is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewLimits {
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory at boot.
    pub memory: Option<MemoryMib>,
    /// The writable layer.
    pub disk: Option<ByteSize>,
}

/// Why limits stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// These cannot be changed, each for its reason.
    #[error("limits that cannot be changed: {0:?}")]
    Fixed(Vec<(Limit, &'static str)>),
    /// Anything else.
    #[error(transparent)]
    App(#[from] AppError),
}

/// The disk is made once, with its file system, and nothing can make either larger or smaller yet.
const DISK_STAYS: &str = "a disk keeps the size that it was made with";
/// No driver can add or take processors or memory while a guest runs.
const RUNS: &str = "its hypervisor cannot do it while the instance runs, so stop it first";

impl NewLimits {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == NewLimits::default()
    }

    /// Those that an instance with this spec cannot get, with the reason.
    fn fixed(&self, spec: &InstanceSpec, state: StateName) -> Vec<(Limit, &'static str)> {
        let mut fixed = Vec::new();
        if state != StateName::Stopped {
            if self.vcpus.is_some_and(|count| count != spec.vcpus) {
                fixed.push((Limit::Processors, RUNS));
            }
            if self.memory.is_some_and(|size| size != spec.memory) {
                fixed.push((Limit::Memory, RUNS));
            }
        }
        if self.disk.is_some_and(|size| size != spec.disk) {
            fixed.push((Limit::Disk, DISK_STAYS));
        }
        fixed
    }

    /// The spec with them.
    fn applied(&self, mut spec: InstanceSpec) -> InstanceSpec {
        spec.vcpus = self.vcpus.unwrap_or(spec.vcpus);
        if let Some(memory) = self.memory {
            // What was not to grow is not to grow now.
            spec.memory_max = match spec.memory_max == spec.memory {
                true => memory,
                false => spec.memory_max.max(memory),
            };
            spec.memory = memory;
        }
        spec
    }
}

/// What an instance's limits are judged by: between two runs that follow each other it is as good as running.
fn state(view: &View) -> StateName {
    match view.status.state.name() {
        StateName::Stopped if !view.has_ended() => StateName::Created,
        state => state,
    }
}

impl App {
    /// Changes limits; the next run has them.
    ///
    /// # Errors
    /// [`LimitsError::Fixed`] when one of them cannot be changed: then none is.
    pub async fn change_limits(
        &self,
        wanted: &str,
        limits: NewLimits,
    ) -> Result<View, LimitsError> {
        let found = self.find(wanted, Prefixes::Refused)?;
        let fixed = limits.fixed(&found.intent.spec, state(&found));
        if !fixed.is_empty() {
            return Err(LimitsError::Fixed(fixed));
        }
        let changed = self.change(&found.intent.id, move |view| {
            if !limits.fixed(&view.intent.spec, state(view)).is_empty() {
                let sentence = "it was started or changed meanwhile: look at it and try once more";
                return Err(AppError::coded(Code::Contention, sentence));
            }
            let spec = limits.applied(view.intent.spec.clone());
            spec.check()
                .map_err(|e| AppError::field("limits", e.to_string()))?;
            if spec == view.intent.spec {
                return Ok(None);
            }
            let mut intent = (*view.intent).clone();
            intent.spec = spec;
            Ok(Some(intent))
        });
        Ok(changed.await?)
    }
}

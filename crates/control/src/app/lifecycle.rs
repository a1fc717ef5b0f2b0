//! Start, stop, pause, resume, change and delete: what the admission table says, one commit, one wait.

use super::board::demand;
use super::{App, AppError, View, Waiting};
use std::time::Duration;
use warren_api::convert::{ConvertError, restart_policy};
use warren_api::policy::HealthCheckType;
use warren_api::{StandbyInstanceRequest, StartInstanceRequest, UpdateInstanceRequest};
use warren_core::admission::{Admission, Operation, admit};
use warren_core::id::Prefixes;
use warren_core::instance::{Desired, InstanceIntent};
use warren_core::state::StateName;

/// Beyond the grace period: the guest's own end and the machine's.
const STOP_MARGIN: Duration = Duration::from_secs(20);
/// How long a pause or resume may take to show.
const PAUSE_WAIT: Duration = Duration::from_secs(15);
/// How long a standby or a restore may take to show: gigabytes are written or read.
const STANDBY_WAIT: Duration = Duration::from_secs(300);

fn admitted(operation: Operation, view: &View) -> Result<Admission, AppError> {
    match admit(operation, view.status.state.name(), view.intent.desired) {
        Admission::Refuse(refusal) => Err(refusal.into()),
        go => Ok(go),
    }
}

impl App {
    /// Starts it, with another command if one is given, and waits until it has started or failed.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table.
    pub async fn start_instance(
        &self,
        wanted: &str,
        request: StartInstanceRequest,
    ) -> Result<View, AppError> {
        let found = self.find(wanted, Prefixes::Accepted)?;
        if admitted(Operation::Start, &found)? == Admission::AlreadySo && !found.has_ended() {
            return Ok(found);
        }
        let place = self.place_on_the_way_up()?;
        let report = self.known_host().await?;
        let placing = self.0.placing.write().await;
        let asked = demand(&found.intent.spec);
        (self.0.board).ask(|held| self.check_room(held, &report, asked, Some(&found.intent.id)))?;
        let id = found.intent.id.clone();
        let view = self
            .change(&id, move |view| {
                if admitted(Operation::Start, view)? == Admission::AlreadySo && !view.has_ended() {
                    return Ok(None);
                }
                let mut intent = (*view.intent).clone();
                intent.desired = Desired::Running;
                intent.run += 1;
                if request.entrypoint.is_some() || request.cmd.is_some() {
                    intent.spec.entrypoint.clone_from(&request.entrypoint);
                    intent.spec.cmd.clone_from(&request.cmd);
                }
                check_spec(&intent)?;
                Ok(Some(intent))
            })
            .await?;
        drop(placing);
        self.hold_until_up(place, &view);
        self.wait_started(view).await
    }

    /// Stops it, and waits until its host has seen it stopped, as long as its grace period allows.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table.
    pub async fn stop_instance(&self, wanted: &str) -> Result<View, AppError> {
        let view = self.wish(wanted, Operation::Stop, Desired::Stopped).await?;
        self.until_stopped(view).await
    }

    /// The same, with another grace period, which it keeps.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table.
    pub async fn stop_instance_within(
        &self,
        wanted: &str,
        grace_seconds: u64,
    ) -> Result<View, AppError> {
        let keep = move |intent: &mut InstanceIntent| intent.stop_grace_seconds = grace_seconds;
        let view = self
            .wish_with(wanted, Operation::Stop, Desired::Stopped, keep)
            .await?;
        self.until_stopped(view).await
    }

    async fn until_stopped(&self, view: View) -> Result<View, AppError> {
        let limit = Duration::from_secs(view.intent.stop_grace_seconds) + STOP_MARGIN;
        self.until_state(view, limit, StateName::Stopped).await
    }

    /// Stops its processors.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table.
    pub async fn pause_instance(&self, wanted: &str) -> Result<View, AppError> {
        let view = self.wish(wanted, Operation::Pause, Desired::Paused).await?;
        self.until_state(view, PAUSE_WAIT, StateName::Paused).await
    }

    /// Lets its processors go on.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table.
    pub async fn resume_instance(&self, wanted: &str) -> Result<View, AppError> {
        let view = self
            .wish(wanted, Operation::Resume, Desired::Running)
            .await?;
        self.until_state(view, PAUSE_WAIT, StateName::Running).await
    }

    /// Saves its memory and devices and ends its machine, which frees what it took of the host.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table; why it cannot be saved, and then it runs on.
    pub async fn standby_instance(
        &self,
        wanted: &str,
        request: StandbyInstanceRequest,
    ) -> Result<View, AppError> {
        if (request.compression.as_ref()).is_some_and(|compression| compression.enabled) {
            return Err(ConvertError::NotYet {
                field: "compression",
            }
            .into());
        }
        let view = self
            .wish(wanted, Operation::Standby, Desired::Standby)
            .await?;
        let view = self
            .until_state(view, STANDBY_WAIT, StateName::Standby)
            .await?;
        granted(view)
    }

    /// Brings it back from standby, to where it was.
    ///
    /// # Errors
    /// [`AppError`]; `wrong_state` from the admission table; why it cannot be restored, and then what was saved is kept.
    pub async fn restore_instance(&self, wanted: &str) -> Result<View, AppError> {
        let found = self.find(wanted, Prefixes::Accepted)?;
        admitted(Operation::Restore, &found)?;
        let place = self.place_on_the_way_up()?;
        let report = self.known_host().await?;
        let placing = self.0.placing.write().await;
        let asked = demand(&found.intent.spec);
        (self.0.board).ask(|held| self.check_room(held, &report, asked, Some(&found.intent.id)))?;
        let view = self
            .wish(wanted, Operation::Restore, Desired::Running)
            .await?;
        drop(placing);
        self.hold_until_up(place, &view);
        let view = self
            .until_state(view, STANDBY_WAIT, StateName::Running)
            .await?;
        granted(view)
    }

    async fn wish(
        &self,
        wanted: &str,
        operation: Operation,
        desired: Desired,
    ) -> Result<View, AppError> {
        self.wish_with(wanted, operation, desired, |_| {}).await
    }

    /// With one more change, which is made only together with the wish.
    async fn wish_with(
        &self,
        wanted: &str,
        operation: Operation,
        desired: Desired,
        also: impl Fn(&mut InstanceIntent) + Send + Sync + 'static,
    ) -> Result<View, AppError> {
        let id = self.find(wanted, Prefixes::Accepted)?.intent.id.clone();
        self.change(&id, move |view| {
            if admitted(operation, view)? == Admission::AlreadySo && view.intent.desired == desired
            {
                return Ok(None);
            }
            let mut intent = (*view.intent).clone();
            intent.desired = desired;
            also(&mut intent);
            Ok(Some(intent))
        })
        .await
    }

    async fn until_state(
        &self,
        view: View,
        limit: Duration,
        state: StateName,
    ) -> Result<View, AppError> {
        let id = view.intent.id.clone();
        let waited = self
            .wait_until(&id, limit, |view| {
                let there = view.status.state.name() == state || view.has_ended();
                view.is_current() && (there || view.status.refused.is_some())
            })
            .await;
        match waited {
            Waiting::Done(view) | Waiting::TimedOut(view) => Ok(view),
            Waiting::Gone => Err(AppError::no_instance(id.as_str())),
        }
    }

    /// Deletes it and waits a while until nothing is left. Depends on nothing: the wish is durable, and
    /// deleting again is fine.
    ///
    /// # Errors
    /// [`AppError::Missing`] when there is none; the store's errors.
    pub async fn delete_instance(&self, wanted: &str) -> Result<(), AppError> {
        let id = self.find(wanted, Prefixes::Refused)?.intent.id.clone();
        let changed = self
            .change(&id, move |view| {
                Ok(match admitted(Operation::Delete, view)? {
                    Admission::AlreadySo => None,
                    _ => Some(InstanceIntent {
                        desired: Desired::Deleted,
                        ..(*view.intent).clone()
                    }),
                })
            })
            .await;
        match changed {
            Ok(_) => {}
            // Somebody else's delete was faster, from found to gone.
            Err(AppError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.wait_until(&id, self.0.settings.delete_wait, |_| false)
            .await;
        Ok(())
    }

    /// Changes environment and restart policy: the next run has them.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn update_instance(
        &self,
        wanted: &str,
        request: UpdateInstanceRequest,
    ) -> Result<View, AppError> {
        if request
            .auto_standby
            .as_ref()
            .is_some_and(|policy| policy.enabled)
        {
            return Err(ConvertError::NotYet {
                field: "auto_standby",
            }
            .into());
        }
        if request
            .health_check
            .as_ref()
            .is_some_and(|check| check.kind != HealthCheckType::None)
        {
            return Err(ConvertError::NotYet {
                field: "health_check",
            }
            .into());
        }
        let restart = request
            .restart_policy
            .clone()
            .map(|policy| restart_policy(Some(policy)))
            .transpose()?;
        let id = self.find(wanted, Prefixes::Accepted)?.intent.id.clone();
        self.change(&id, move |view| {
            let mut intent = (*view.intent).clone();
            if let Some(env) = &request.env {
                intent.spec.env.clone_from(env);
            }
            if let Some(restart) = restart {
                intent.spec.restart = restart;
            }
            check_spec(&intent)?;
            Ok((intent.spec != view.intent.spec).then_some(intent))
        })
        .await
    }
}

/// Unless its host has found that the wish cannot be granted.
fn granted(view: View) -> Result<View, AppError> {
    match &view.status.refused {
        Some(failure) => Err(AppError::Refused(failure.clone())),
        None => Ok(view),
    }
}

fn check_spec(intent: &InstanceIntent) -> Result<(), AppError> {
    intent
        .spec
        .check()
        .map_err(|e| AppError::field("request", e.to_string()))
}

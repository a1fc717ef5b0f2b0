//! Looking after the installation while it is served: the check, the repair, the recovery, the backup; and
//! what may be done while the record is in doubt.
//!
//! *In doubt* is a record that may not be that of this host: lost, restored, older, another installation's.
//! Until somebody has said so (`warren system recover`), the host is told nothing: it sweeps nothing, makes
//! nothing anew and stops nothing. What runs is shown as the host knows it; it can be used, and deleted.

use super::{App, AppError};
use crate::records::{self, Missing, Records};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;
use warren_api::Code;
use warren_api::upkeep::{Check, FailedRepair, Recovery};
use warren_core::inventory::{
    Difference, DifferenceKind, Expectation, Item, Kind, Part, Remedy, compare,
};
use warren_core::state::InstanceState;
use warren_core::{InstanceId, PortError};

/// Between two looks: what is in the making is there in one of them and not in the other.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// One look at everything.
pub(super) struct Look {
    pub(super) inventory: Vec<Item>,
    pub(super) differences: Vec<Difference>,
}

impl App {
    /// Why the record may not be that of this host, while it is in doubt.
    pub(super) fn doubt(&self) -> Option<String> {
        self.0
            .doubt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From now on the record is in doubt.
    pub(super) fn begin_to_doubt(&self, reason: String) {
        tracing::error!(
            reason,
            "the record of intent is in doubt: nothing on the host is touched before `warren system recover`"
        );
        *self.0.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Refuses what needs a record that is right.
    pub(super) fn must_not_doubt(&self) -> Result<(), AppError> {
        match self.doubt() {
            None => Ok(()),
            Some(reason) => Err(AppError::coded(
                Code::RecordInDoubt,
                format!("{reason}: run `warren system recover`"),
            )),
        }
    }

    /// Shows instances as the host knows them, and says of those that it does not know that nobody knows.
    pub(super) async fn show_the_hosts_view(&self) -> Result<(), PortError> {
        let host = self.0.host.upkeep().records().await?;
        let here: BTreeSet<InstanceId> = host
            .intents
            .iter()
            .map(|intent| intent.id.clone())
            .collect();
        for intent in host.intents {
            self.0.board.put_unrecorded(intent);
        }
        for view in self.0.board.all() {
            if !here.contains(&view.intent.id) {
                let mut status = (*view.status).clone();
                status.state = InstanceState::Unknown {
                    reason: "the record is in doubt: run `warren system recover`".to_owned(),
                };
                self.0.board.put_status(status);
            }
        }
        Ok(())
    }

    /// Shows instances whose record is damaged as the host knows them: what they are and hold stays theirs.
    pub(super) async fn show_what_only_the_host_knows(&self) -> Result<(), PortError> {
        for intent in self.0.host.upkeep().records().await?.intents {
            if self.0.board.get(&intent.id).is_none() {
                self.0.board.put_unrecorded(intent);
            }
        }
        Ok(())
    }

    pub(super) async fn look(&self) -> Result<Look, AppError> {
        let mode = self.known_host().await?.network.mode;
        let inventory = self.0.host.upkeep().inventory().await?;
        let host = self.0.host.upkeep().records().await?;
        let records = Records::read(&*self.0.store).await?;
        // After the host was looked at: whatever began meanwhile is known.
        let expected: Vec<Expectation> = self
            .0
            .board
            .all()
            .iter()
            .map(|view| Expectation::of_settled(&view.intent, &view.status, mode))
            .collect();
        // First what explains the rest.
        let mut differences: Vec<Difference> = Vec::new();
        differences.extend(self.doubt().map(|reason| Difference {
            kind: DifferenceKind::Damaged,
            item: Item::new(Kind::Key, "the record of intent", Part::Unknown),
            instance: None,
            sentence: reason,
            remedy: Remedy::Recover,
        }));
        differences.extend(records.differences());
        differences.extend(compare(&expected, &inventory));
        differences.extend(records::unreadable(&host));
        Ok(Look {
            inventory,
            differences,
        })
    }

    /// What is on the host, and in what it differs from the record: only what two looks agree on, because
    /// between the one and the other somebody may be at work.
    async fn look_twice(&self) -> Result<Look, AppError> {
        let first = self.look().await?;
        if first.differences.is_empty() {
            return Ok(first);
        }
        self.0.clock.sleep(SECOND_LOOK).await;
        let mut second = self.look().await?;
        second
            .differences
            .retain(|difference| first.differences.contains(difference));
        Ok(second)
    }

    /// What is on the host, and in what it differs from the record. Changes nothing.
    ///
    /// # Errors
    /// The host's or the store's, when they cannot be looked at.
    pub async fn check(&self) -> Result<Check, AppError> {
        let look = self.look_twice().await?;
        Ok(Check::of(&look.inventory, &look.differences))
    }

    /// Puts right what a program can, and checks again.
    ///
    /// # Errors
    /// As [`App::check`]; a repair that fails is part of the answer.
    pub async fn repair(&self) -> Result<Check, AppError> {
        let found = self.look_twice().await?;
        let mut repaired = Vec::new();
        let mut failed = Vec::new();
        for difference in &found.differences {
            if difference.remedy != Remedy::Repair {
                continue;
            }
            let outcome = if difference.item.kind == Kind::Key {
                records::repair(&*self.0.store, difference).await
            } else {
                self.0.host.upkeep().remove(&difference.item).await
            };
            match outcome {
                Ok(()) => {
                    tracing::warn!("repaired: {}", difference.sentence);
                    repaired.push(difference.into());
                }
                Err(error) => failed.push(FailedRepair {
                    difference: difference.into(),
                    error: error.sentence(),
                }),
            }
        }
        let after = self.look_twice().await?;
        Ok(Check {
            repaired,
            failed,
            ..Check::of(&after.inventory, &after.differences)
        })
    }

    /// Rebuilds the record from what the host remembers, and trusts it from then on.
    ///
    /// # Errors
    /// The store's and the host's; repeating it goes on where it ended.
    pub async fn recover(&self, missing: Missing) -> Result<Recovery, AppError> {
        let app = self.clone();
        self.detached(async move {
            let _placing = app.0.placing.write().await;
            // Alone: no change may be committed between the look and its end.
            let _alone = app.0.link.write().await;
            let host = app.0.host.upkeep().records().await?;
            let recovery = records::recover(&*app.0.store, &host, missing).await?;
            let known = Records::read(&*app.0.store).await?;
            for view in app.0.board.all() {
                if !known.intents.contains_key(&view.intent.id) {
                    app.0.board.remove(&view.intent.id);
                }
            }
            let mut intents = Vec::new();
            for (intent, revision) in known.intents.into_values() {
                intents.push(intent.clone());
                app.0.board.put_intent(intent, revision);
            }
            app.0.host.sync(intents).await?;
            *app.0.doubt.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!(
                recovered = recovery.recovered.len(),
                updated = recovery.updated.len(),
                unchanged = recovery.unchanged.len(),
                forgotten = recovery.forgotten.len(),
                "the record was rebuilt from the host"
            );
            Ok(recovery)
        })
        .await
    }

    /// A copy of the record, taken while it is in use: a file of its own that goes when it is dropped.
    ///
    /// # Errors
    /// Unsupported where the record is not in a file; the disk's.
    pub async fn backup(&self) -> Result<tempfile::TempPath, AppError> {
        let Some(upkeep) = self.0.store.upkeep() else {
            return Err(PortError::unsupported(
                "no_backup",
                "the record is not kept in a file that could be copied",
            )
            .into());
        };
        let place = tempfile::Builder::new()
            .prefix("backup-")
            .tempfile_in(&self.0.settings.spool)
            .map_err(|error| PortError::io("making the backup's file", error))?
            .into_temp_path();
        // The copy is made under a name that is free, and never half.
        std::fs::remove_file(&place)
            .map_err(|error| PortError::io("making the backup's file", error))?;
        upkeep.backup_to(&place).await?;
        Ok(place)
    }
}

//! Following the host: load what is recorded, hand it over, persist what comes back, remove what is gone.

use super::board::UNRECORDED;
use super::{App, Board, View};
use crate::keys;
use futures::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use warren_core::event::EventKind;
use warren_core::instance::{Desired, Gone, InstanceIntent, InstanceStatus, Removal};
use warren_core::ports::host_link::RECORD_IN_DOUBT;
use warren_core::ports::store::{Commit, Guard, Transaction, Write};
use warren_core::state::StateName;
use warren_core::{InstanceId, PortError};
use warren_crashpoint::reached;

/// Records read at a time.
const PAGE: usize = 500;
/// The longest pause between tries to reach the host or the store.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whether everything recorded could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complete {
    Yes,
    /// Something is missing: what the host has beyond the rest must not be called a leak.
    No,
}

impl App {
    pub(super) async fn read_records(&self) -> Result<Complete, PortError> {
        let mut complete = Complete::Yes;
        for damaged in self.0.store.damaged().await? {
            tracing::error!(
                key = damaged.key,
                reason = damaged.reason,
                "a record is damaged and set aside"
            );
            if damaged.key.starts_with(keys::INSTANCES) || damaged.key.is_empty() {
                complete = Complete::No;
            }
        }
        if self
            .load_kind(keys::INSTANCES, |board, record| {
                let intent: InstanceIntent = keys::decode(record)?;
                if keys::instance(&intent.id) != record.key {
                    return Err(PortError::bug(
                        "damaged_record",
                        "its id is not that of its key",
                    ));
                }
                board.put_intent(intent, record.revision);
                Ok(())
            })
            .await?
            == Complete::No
        {
            complete = Complete::No;
        }
        self.load_kind(keys::STATUSES, |board, record| {
            board.put_status(keys::decode::<InstanceStatus>(record)?);
            Ok(())
        })
        .await?;
        Ok(complete)
    }

    async fn load_kind(
        &self,
        prefix: &str,
        take: impl Fn(&Board, &warren_core::ports::store::Record) -> Result<(), PortError>,
    ) -> Result<Complete, PortError> {
        let mut complete = Complete::Yes;
        let mut after: Option<String> = None;
        loop {
            let page = self.0.store.list(prefix, after.as_deref(), PAGE).await?;
            for record in &page.records {
                if let Err(error) = take(&self.0.board, record) {
                    tracing::error!(key = record.key, %error, cause = ?error.source, "a record is damaged and skipped");
                    complete = Complete::No;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(complete),
            }
        }
    }

    /// Connects to the host, again and again, until the server stops.
    pub(super) async fn follow(&self, complete: Complete) {
        let mut pause = Duration::from_millis(50);
        while !self.0.stopping.is_cancelled() {
            let ended = tokio::select! {
                ended = self.follow_once(complete) => ended,
                () = self.0.stopping.cancelled() => return,
            };
            match ended {
                Ok(()) => {
                    tracing::warn!("the host's statuses ended; connecting again");
                    pause = Duration::from_millis(50);
                }
                Err(error) => {
                    tracing::warn!(code = error.code, %error, cause = ?error.source, "the host cannot be followed; trying again");
                    let _ = self.0.connected.send_replace(Err(error.sentence()));
                }
            }
            tokio::select! {
                () = self.0.clock.sleep(pause) => {}
                () = self.0.stopping.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells the host everything that is wanted; nothing while that is in doubt.
    async fn hand_over_all(&self, complete: Complete) -> Result<(), PortError> {
        {
            let _alone = self.0.link.write().await;
            let intents: Vec<InstanceIntent> = self
                .0
                .board
                .all()
                .iter()
                .map(|view| (*view.intent).clone())
                .collect();
            if self.doubt().is_some() {
                return self.show_the_hosts_view().await;
            }
            match complete {
                Complete::Yes => match self.0.host.sync(intents).await {
                    Err(error) if error.code == RECORD_IN_DOUBT => {
                        self.begin_to_doubt(error.message);
                        return self.show_the_hosts_view().await;
                    }
                    synced => synced?,
                },
                Complete::No => {
                    tracing::error!(
                        "records are damaged: nothing on the host is swept before they are repaired"
                    );
                    for intent in intents {
                        self.0.host.apply(intent).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn follow_once(&self, complete: Complete) -> Result<(), PortError> {
        self.hand_over_all(complete).await?;
        reached("follow.synced");
        let mut statuses = self.0.host.statuses().await?;
        let _ = self.0.connected.send_replace(Ok(()));
        while let Some(status) = statuses.next().await {
            self.observe(status).await;
        }
        Ok(())
    }

    async fn observe(&self, status: InstanceStatus) {
        let Some(view) = self.0.board.get(&status.id) else {
            tracing::debug!(instance = %status.id, "a status of an instance that is not recorded");
            return;
        };
        // What is not persisted yet is tried again: a later status depends on it being in order.
        let mut pause = Duration::from_millis(20);
        while let Err(error) = self.record(&view, &status).await {
            tracing::error!(instance = %status.id, code = error.code, %error, "a status could not be recorded; trying again");
            tokio::select! {
                () = self.0.clock.sleep(pause) => {}
                () = self.0.stopping.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn record(&self, view: &View, status: &InstanceStatus) -> Result<(), PortError> {
        let gone = status.gone == Gone::Yes
            && view.intent.desired == Desired::Deleted
            && status.generation >= view.intent.generation;
        if gone {
            return self.forget(&status.id).await;
        }
        if view.revision == UNRECORDED {
            self.0.board.put_status(status.clone());
            return Ok(());
        }
        if *view.status != *status {
            let mut writes = vec![Write::Put(keys::status(&status.id), keys::encode(status))];
            let (from, to) = (view.status.state.name(), status.state.name());
            if from != to {
                writes.push(self.event(
                    &view.intent,
                    EventKind::StateChanged {
                        from,
                        to,
                        error: warren_api::convert::state_error(status),
                        exit_code: match to {
                            StateName::Stopped => status.exit.as_ref().and_then(|exit| exit.code),
                            _ => None,
                        },
                    },
                ));
            }
            let commit = self
                .0
                .store
                .commit(Transaction {
                    guards: vec![Guard::Present(keys::instance(&status.id))],
                    writes,
                })
                .await?;
            if let Commit::Refused { .. } = commit {
                self.0.board.remove(&status.id);
                return Ok(());
            }
            reached("follow.status-recorded");
            self.0.board.put_status(status.clone());
        }
        if let Some(view) = self.0.board.get(&status.id) {
            self.remove_if_ended(&view);
        }
        Ok(())
    }

    /// Nothing is left on the host: nothing is left of the record.
    async fn forget(&self, id: &InstanceId) -> Result<(), PortError> {
        let _shared = self.0.link.read().await;
        let Some(view) = self.0.board.get(id) else {
            return Ok(());
        };
        let intent = &view.intent;
        let mut writes = vec![
            Write::Delete(keys::instance(id)),
            Write::Delete(keys::status(id)),
        ];
        let held: BTreeSet<String> = keys::reservations(intent).into_iter().collect();
        writes.extend(held.into_iter().map(Write::Delete));
        writes.push(self.event(intent, EventKind::Deleted));
        let commit = self
            .0
            .store
            .commit(Transaction {
                guards: vec![Guard::At(keys::instance(id), view.revision)],
                writes,
            })
            .await?;
        match commit {
            Commit::Done(_) => {
                reached("delete.record-forgotten");
                self.0.board.remove(id);
                Ok(())
            }
            Commit::Refused { .. } => {
                self.reload(id).await.map_err(|_| {
                    PortError::retry("record_changed", "the record changed while it was removed")
                })?;
                Err(PortError::retry(
                    "record_changed",
                    "the record changed while it was removed",
                ))
            }
        }
    }

    /// `run --rm`: its creator has a moment to read the exit code, then it goes by itself.
    fn remove_if_ended(&self, view: &View) {
        if view.intent.spec.removal != Removal::WhenExited
            || view.intent.desired == Desired::Deleted
            || !view.has_ended()
        {
            return;
        }
        let app = self.clone();
        let intent = Arc::clone(&view.intent);
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = app.0.clock.sleep(app.0.settings.removal_delay) => {}
                () = app.0.stopping.cancelled() => return,
            }
            let run = intent.run;
            let removed = app
                .change(&intent.id, move |view| {
                    let still = view.intent.run == run
                        && view.intent.desired != Desired::Deleted
                        && view.has_ended();
                    Ok(still.then(|| InstanceIntent {
                        desired: Desired::Deleted,
                        ..(*view.intent).clone()
                    }))
                })
                .await;
            if let Err(error) = removed {
                tracing::debug!(instance = %intent.id, %error, "not removed after its end");
            }
        });
    }
}

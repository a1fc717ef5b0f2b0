//! Following the host: load what is recorded, hand it over, persist what comes back, remove what is gone.

use super::board::UNRECORDED;
use super::{App, Board, View};
use crate::keys;
use crate::records::may_be_an_instances;
use futures::StreamExt;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use warren_core::event::EventKind;
use warren_core::instance::{Desired, Gone, InstanceIntent, InstanceStatus, Removal};
use warren_core::ports::BoxStream;
use warren_core::ports::host_link::RECORD_IN_DOUBT;
use warren_core::ports::store::{Commit, Guard, Transaction, Write};
use warren_core::state::StateName;
use warren_core::{InstanceId, PortError};
use warren_crashpoint::reached;

/// Records read at a time.
const PAGE: usize = 500;
/// Statuses recorded together.
const LARGEST_BATCH: usize = 512;
/// How long a status waits for the next ones, to be recorded with them: a start has several within a moment, of which
/// the last is enough. Whoever waits has heard of it already; the end of an instance does not wait.
const LINGER: Duration = Duration::from_millis(10);
/// The longest pause between tries to reach the host or the store.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Statuses that may wait to be recorded before the host has to wait.
const BACKLOG: usize = 16_384;

/// Something to be recorded.
enum Entry {
    /// A status, and the event that it is.
    Seen(Box<InstanceStatus>, Option<Write>),
    /// Nothing is left of it.
    Gone(InstanceId),
}

impl Entry {
    fn id(&self) -> &InstanceId {
        match self {
            Entry::Seen(status, _) => &status.id,
            Entry::Gone(id) => id,
        }
    }
}

/// Every change of state as an event, each in a transaction of its own; of what lies between, only the last.
fn transactions(entries: Vec<Entry>) -> Vec<Transaction> {
    let mut transactions: Vec<Transaction> = Vec::new();
    let mut replaceable = false;
    for entry in entries {
        let Entry::Seen(status, event) = entry else {
            continue;
        };
        if replaceable {
            transactions.pop();
        }
        replaceable = event.is_none();
        let put = Write::Put(keys::status(&status.id), keys::encode(&*status));
        transactions.push(Transaction {
            guards: vec![Guard::Present(keys::instance(&status.id))],
            writes: std::iter::once(put).chain(event).collect(),
        });
    }
    transactions
}

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
            if may_be_an_instances(&damaged.key) {
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
            let connected = tokio::select! {
                connected = self.connect(complete) => connected,
                () = self.0.stopping.cancelled() => return,
            };
            match connected {
                Ok(statuses) => {
                    self.take_in(statuses).await;
                    if !self.0.stopping.is_cancelled() {
                        tracing::warn!("the host's statuses ended; connecting again");
                    }
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
                        "records are damaged: nothing on the host is swept before `warren system recover`"
                    );
                    self.show_what_only_the_host_knows().await?;
                    for intent in intents {
                        self.0.host.apply(intent).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn connect(&self, complete: Complete) -> Result<BoxStream<InstanceStatus>, PortError> {
        // Before the host is told anything: what it finishes at once, it says once.
        let statuses = self.0.host.statuses().await?;
        self.hand_over_all(complete).await?;
        reached("follow.synced");
        let _ = self.0.connected.send_replace(Ok(()));
        Ok(statuses)
    }

    /// Until they end or the server stops; what was seen by then is recorded.
    async fn take_in(&self, statuses: BoxStream<InstanceStatus>) {
        let (seen, to_record) = mpsc::channel(BACKLOG);
        // Two things at once: a store that has no room, or is slow, must not keep what is seen from whoever asks.
        tokio::join!(self.see(statuses, seen), self.record(to_record));
    }

    /// Takes what the host says, in order: whoever waits hears it at once, and it is to be recorded.
    async fn see(&self, mut statuses: BoxStream<InstanceStatus>, seen: mpsc::Sender<Entry>) {
        loop {
            let said = tokio::select! {
                said = statuses.next() => said,
                () = self.0.stopping.cancelled() => None,
            };
            let Some(status) = said else { return };
            let Some(view) = self.0.board.get(&status.id) else {
                tracing::debug!(instance = %status.id, "a status of an instance that is not recorded");
                continue;
            };
            let gone = status.gone == Gone::Yes
                && view.intent.desired == Desired::Deleted
                && status.generation >= view.intent.generation;
            let entry = if gone {
                Entry::Gone(status.id)
            } else if *view.status != status {
                let event = self.change_of_state(&view, &status);
                self.0.board.put_status(status.clone());
                Entry::Seen(Box::new(status), event)
            } else {
                continue;
            };
            // What only the host knows of is not recorded yet.
            if view.revision != UNRECORDED || gone {
                // The other end is read for as long as this one is written.
                drop(seen.send(entry).await);
            }
            if let Some(view) = self.0.board.get(&view.intent.id) {
                self.remove_if_ended(&view);
            }
        }
    }

    fn change_of_state(&self, view: &View, status: &InstanceStatus) -> Option<Write> {
        let (from, to) = (view.status.state.name(), status.state.name());
        let changed = EventKind::StateChanged {
            from,
            to,
            error: warren_api::convert::state_error(status),
            exit_code: match to {
                StateName::Stopped => status.exit.as_ref().and_then(|exit| exit.code),
                _ => None,
            },
        };
        (from != to).then(|| self.event(&view.intent, changed))
    }

    /// Records what was seen, in batches: the store puts each in one write.
    async fn record(&self, mut to_record: mpsc::Receiver<Entry>) {
        while let Some(batch) = self.batch(&mut to_record).await {
            let mut by_instance: Vec<(InstanceId, Vec<Entry>)> = Vec::new();
            let mut places: HashMap<InstanceId, usize> = HashMap::new();
            for entry in batch {
                let id = entry.id().clone();
                let place = *places.entry(id.clone()).or_insert_with(|| {
                    by_instance.push((id, Vec::new()));
                    by_instance.len() - 1
                });
                by_instance[place].1.push(entry);
            }
            let all = by_instance.into_iter();
            futures::future::join_all(all.map(|(id, entries)| self.record_of_one(id, entries)))
                .await;
        }
    }

    /// What came while the last batch was being recorded, and a little longer.
    async fn batch(&self, to_record: &mut mpsc::Receiver<Entry>) -> Option<Vec<Entry>> {
        let mut batch = vec![to_record.recv().await?];
        let linger = self.0.clock.sleep(LINGER);
        tokio::pin!(linger);
        loop {
            while batch.len() < LARGEST_BATCH
                && let Ok(entry) = to_record.try_recv()
            {
                batch.push(entry);
            }
            let is_over = batch.iter().any(|entry| matches!(entry, Entry::Gone(_)));
            if is_over || batch.len() >= LARGEST_BATCH {
                return Some(batch);
            }
            tokio::select! {
                entry = to_record.recv() => match entry {
                    Some(entry) => batch.push(entry),
                    None => return Some(batch),
                },
                () = &mut linger => return Some(batch),
            }
        }
    }

    async fn record_of_one(&self, id: InstanceId, entries: Vec<Entry>) {
        let gone = matches!(entries.last(), Some(Entry::Gone(_)));
        self.persist(&id, transactions(entries)).await;
        if gone {
            self.until_it_works(&id, || self.forget(&id)).await;
        }
    }

    /// Commits in order. All are handed to the store before the first is waited for, so that they share a write.
    async fn persist(&self, id: &InstanceId, transactions: Vec<Transaction>) {
        let commits = transactions
            .iter()
            .map(|one| self.0.store.commit(one.clone()));
        let first = futures::future::join_all(commits).await;
        for (transaction, result) in transactions.into_iter().zip(first) {
            let mut result = Some(result);
            self.until_it_works(id, || {
                let first = result.take();
                let transaction = transaction.clone();
                async move {
                    let commit = match first {
                        Some(Ok(commit)) => commit,
                        Some(Err(error)) => return Err(error),
                        None => self.0.store.commit(transaction).await?,
                    };
                    match commit {
                        Commit::Done(_) => reached("follow.status-recorded"),
                        Commit::Refused { .. } => self.take_recorded(id).await?,
                    }
                    Ok(())
                }
            })
            .await;
        }
    }

    /// What is not recorded yet is tried again: what comes later depends on it being in order.
    async fn until_it_works<F>(&self, id: &InstanceId, mut attempt: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), PortError>>,
    {
        let mut pause = Duration::from_millis(20);
        while let Err(error) = attempt().await {
            tracing::error!(instance = %id, code = error.code, %error, "a status could not be recorded; trying again");
            tokio::select! {
                () = self.0.clock.sleep(pause) => {}
                () = self.0.stopping.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
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
                guards: vec![view.as_recorded()],
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
                self.take_recorded(id).await?;
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

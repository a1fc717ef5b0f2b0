//! Idempotency keys: the same key with the same request is carried out once and answered alike.
//! A duplicate in flight waits for the first; only successes are kept, so that what was refused can
//! be corrected and sent again.

use super::{App, AppError};
use crate::keys;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use warren_api::{Code, Problem};
use warren_core::ports::store::{Guard, Transaction, Write};
use warren_core::{InstanceId, PortError, Timestamp};
use warren_crashpoint::reached;

/// How often expired keys are looked for.
const SWEEP: Duration = Duration::from_secs(1800);
/// Keys looked at together.
const PAGE: usize = 200;

/// What a request was, so that another one with the same key is told apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a request: method, path, query and body.
    pub fn of(method: &str, path_and_query: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [method.as_bytes(), path_and_query.as_bytes(), body] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Fingerprint(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// A request with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed {
    /// Whose key.
    pub tenant: String,
    /// The key.
    pub key: String,
    /// The request.
    pub fingerprint: Fingerprint,
}

impl Keyed {
    pub(super) fn store_key(&self) -> String {
        keys::idempotency(&self.tenant, &self.key)
    }
}

/// An answer as it is kept and given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body.
    pub body: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    fingerprint: Fingerprint,
    #[serde(with = "time::serde::rfc3339")]
    at: Timestamp,
    /// Seconds on the monotonic clock: a wall clock that is moved makes no key older. Absent in records of versions
    /// that went by the wall clock.
    #[serde(default)]
    since: Option<u64>,
    /// The instance that was created with it.
    instance: Option<InstanceId>,
    /// Absent while the request is in flight, and when the server stopped meanwhile.
    answer: Option<Outcome>,
}

type Answer = Result<Outcome, Box<Problem>>;

/// A request that is being carried out, and where its answer will be.
type Pending = (Fingerprint, watch::Receiver<Option<Answer>>);

#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<String, Pending>>);

enum Turn {
    First(watch::Sender<Option<Answer>>),
    Wait(watch::Receiver<Option<Answer>>),
    Mismatch,
}

impl InFlight {
    fn enter(&self, key: &str, fingerprint: &Fingerprint) -> Turn {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get(key) {
            Some((held, _)) if held != fingerprint => Turn::Mismatch,
            Some((_, answer)) => Turn::Wait(answer.clone()),
            None => {
                let (sender, receiver) = watch::channel(None);
                map.insert(key.to_owned(), (fingerprint.clone(), receiver));
                Turn::First(sender)
            }
        }
    }

    fn leave(&self, key: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.remove(key);
    }
}

fn mismatch() -> AppError {
    AppError::coded(
        Code::IdempotencyMismatch,
        "this idempotency key was used for another request: choose a new one",
    )
}

impl App {
    pub(super) fn key_record(&self, keyed: &Keyed, instance: Option<InstanceId>) -> KeyRecord {
        KeyRecord {
            fingerprint: keyed.fingerprint.clone(),
            at: self.0.clock.now(),
            since: Some(self.0.clock.monotonic().as_secs()),
            instance,
            answer: None,
        }
    }

    /// Carries `work` out once per key. It is told the instance that an interrupted attempt had created already.
    ///
    /// # Errors
    /// What `work` says, to everybody who waited for it; a mismatch where the key was another request's.
    pub async fn once<F>(
        &self,
        keyed: Keyed,
        work: impl FnOnce(Option<InstanceId>) -> F + Send + 'static,
    ) -> Result<Outcome, AppError>
    where
        F: Future<Output = Result<Outcome, AppError>> + Send + 'static,
    {
        let key = keyed.store_key();
        let sender = match self.0.in_flight.enter(&key, &keyed.fingerprint) {
            Turn::Mismatch => return Err(mismatch()),
            Turn::Wait(mut answer) => {
                let answered = answer
                    .wait_for(Option::is_some)
                    .await
                    .ok()
                    .and_then(|a| a.clone());
                return match answered {
                    Some(Ok(outcome)) => Ok(outcome),
                    Some(Err(problem)) => Err(AppError::Recorded(problem)),
                    None => Err(AppError::coded(
                        Code::Internal,
                        "the first request with this key ended without an answer: try once more",
                    )),
                };
            }
            Turn::First(sender) => sender,
        };
        let app = self.clone();
        let leaving = LeaveOnDrop {
            app: self.clone(),
            key: key.clone(),
        };
        self.detached(async move {
            // Also when the work panics: nobody may wait for ever.
            let _leaving = leaving;
            let answer = app.carry_out(&keyed, &key, work).await;
            let told: Answer = match &answer {
                Ok(outcome) => Ok(outcome.clone()),
                Err(error) => Err(Box::new(Problem::from(error))),
            };
            sender.send_replace(Some(told));
            answer
        })
        .await
    }

    async fn carry_out<F>(
        &self,
        keyed: &Keyed,
        key: &str,
        work: impl FnOnce(Option<InstanceId>) -> F,
    ) -> Result<Outcome, AppError>
    where
        F: Future<Output = Result<Outcome, AppError>>,
    {
        let mut instance = None;
        if let Some(record) = self.0.store.get(key).await? {
            let known: KeyRecord = keys::decode(&record)?;
            if self.is_expired(&known) {
                self.drop_key(key, record.revision).await?;
            } else if known.fingerprint != keyed.fingerprint {
                return Err(mismatch());
            } else if let Some(answer) = known.answer {
                return Ok(answer);
            } else {
                instance = known.instance;
            }
        }
        let outcome = work(instance).await?;
        let record = KeyRecord {
            answer: Some(outcome.clone()),
            ..self.key_record(keyed, None)
        };
        self.0
            .store
            .commit(Transaction {
                guards: Vec::new(),
                writes: vec![Write::Put(key.to_owned(), keys::encode(&record))],
            })
            .await?;
        reached("create.answer-kept");
        Ok(outcome)
    }

    /// `None` where it cannot be told: its beginning was not recorded, or by a clock that had gone on further than this one.
    fn age(&self, record: &KeyRecord) -> Option<Duration> {
        let since = Duration::from_secs(record.since?);
        self.0.clock.monotonic().checked_sub(since)
    }

    fn is_expired(&self, record: &KeyRecord) -> bool {
        self.age(record)
            .is_some_and(|age| age >= self.0.settings.idempotency_age)
    }

    /// A key whose age cannot be told begins now.
    async fn date_key(&self, key: &str, revision: u64, record: KeyRecord) -> Result<(), PortError> {
        let dated = KeyRecord {
            since: Some(self.0.clock.monotonic().as_secs()),
            ..record
        };
        self.0
            .store
            .commit(Transaction {
                guards: vec![Guard::At(key.to_owned(), revision)],
                writes: vec![Write::Put(key.to_owned(), keys::encode(&dated))],
            })
            .await
            .map(drop)
    }

    async fn drop_key(&self, key: &str, revision: u64) -> Result<(), PortError> {
        self.0
            .store
            .commit(Transaction {
                guards: vec![Guard::At(key.to_owned(), revision)],
                writes: vec![Write::Delete(key.to_owned())],
            })
            .await
            .map(drop)
    }

    /// Removes keys that are too old, now and then.
    pub(super) async fn expire_keys(&self) {
        loop {
            tokio::select! {
                () = self.0.clock.sleep(SWEEP) => {}
                () = self.0.stopping.cancelled() => return,
            }
            if let Err(error) = self.expire_keys_once().await {
                tracing::warn!(code = error.code, %error, "old idempotency keys could not be removed");
            }
        }
    }

    async fn expire_keys_once(&self) -> Result<(), PortError> {
        let mut after: Option<String> = None;
        loop {
            let page = self
                .0
                .store
                .list(keys::IDEMPOTENCY, after.as_deref(), PAGE)
                .await?;
            for record in &page.records {
                match keys::decode::<KeyRecord>(record) {
                    Ok(known) if self.age(&known).is_none() => {
                        self.date_key(&record.key, record.revision, known).await?;
                    }
                    Ok(known) if self.is_expired(&known) => {
                        self.drop_key(&record.key, record.revision).await?;
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

struct LeaveOnDrop {
    app: App,
    key: String,
}

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.app.0.in_flight.leave(&self.key);
    }
}

//! What control knows of every instance, in memory: the committed intent and the last status. Only
//! this process writes intents, so the board is as true as the store: an intent is put here after its commit, never
//! before. A status is the host's word and is put here at once; the store has it a moment later, and after a crash in
//! between the host says it again. Whoever waits for an instance is woken by its changes, and by no other's.
//!
//! What is spoken for (names, addresses, ports, room) is counted as it changes, so that a create costs as much beside
//! ten thousand instances as beside none. It includes what is being recorded: a [`Reservation`].

use crate::keys;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;
use warren_core::InstanceId;
use warren_core::instance::{InstanceIntent, InstanceSpec, InstanceStatus};
use warren_core::placement::Demand;
use warren_core::ports::store::Revision;

/// The revision of what is not in the record: before the first commit.
pub(crate) const UNRECORDED: Revision = 0;

/// One instance. It never changes: what has changed is another view.
#[derive(Debug, Clone)]
pub struct View {
    /// What is wanted.
    pub intent: Arc<InstanceIntent>,
    /// The commit that wrote it.
    pub revision: Revision,
    /// What its host said last.
    pub status: Arc<InstanceStatus>,
    /// How it looks on the wire, made when it is first asked for.
    encoded: Arc<OnceLock<Bytes>>,
}

impl View {
    pub(crate) fn new(intent: InstanceIntent, revision: Revision) -> Self {
        let status = Arc::new(InstanceStatus::unreported(&intent));
        View::of(Arc::new(intent), revision, status)
    }

    fn of(intent: Arc<InstanceIntent>, revision: Revision, status: Arc<InstanceStatus>) -> Self {
        View {
            intent,
            revision,
            status,
            encoded: Arc::default(),
        }
    }

    /// What `encode` makes of it, kept: reads are many and changes few. There is one encoding.
    pub(crate) fn encoded(&self, encode: impl FnOnce(&View) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }
}

pub(crate) fn demand(spec: &InstanceSpec) -> Demand {
    Demand {
        vcpus: spec.vcpus,
        memory_mib: spec.memory.0,
    }
}

struct Entry {
    view: View,
    changed: watch::Sender<()>,
}

/// What is spoken for.
#[derive(Default)]
pub(crate) struct Taken {
    /// Holders, by the keys of [`keys::reservations`]. Usually one; a record in doubt may have several.
    holders: BTreeMap<String, Vec<InstanceId>>,
    vcpus: u64,
    memory_mib: u64,
}

impl Taken {
    fn hold(&mut self, intent: &InstanceIntent) {
        for key in keys::reservations(intent) {
            let holders = self.holders.entry(key).or_default();
            holders.push(intent.id.clone());
        }
    }

    fn let_go(&mut self, intent: &InstanceIntent) {
        for key in keys::reservations(intent) {
            if let Some(holders) = self.holders.get_mut(&key) {
                if let Some(at) = holders.iter().position(|id| *id == intent.id) {
                    holders.swap_remove(at);
                }
                if holders.is_empty() {
                    self.holders.remove(&key);
                }
            }
        }
    }

    fn add(&mut self, demand: Demand) {
        self.vcpus += u64::from(demand.vcpus);
        self.memory_mib += demand.memory_mib;
    }

    fn subtract(&mut self, demand: Demand) {
        self.vcpus = self.vcpus.saturating_sub(u64::from(demand.vcpus));
        self.memory_mib = self.memory_mib.saturating_sub(demand.memory_mib);
    }

    fn holder(&self, key: &str) -> Option<&InstanceId> {
        self.holders.get(key)?.first()
    }
}

#[derive(Default)]
pub(crate) struct Held {
    entries: BTreeMap<InstanceId, Entry>,
    /// Instances that are being recorded.
    making: BTreeMap<InstanceId, Arc<InstanceIntent>>,
    taken: Taken,
}

impl Held {
    /// Whether the id is spoken for.
    pub(crate) fn has(&self, id: &InstanceId) -> bool {
        self.entries.contains_key(id) || self.making.contains_key(id)
    }

    /// The name of the instance that holds this key of the store, if one does.
    pub(crate) fn holder(&self, key: &str) -> Option<&str> {
        let id = self.taken.holder(key)?;
        let recorded = self.entries.get(id).map(|entry| &entry.view.intent);
        let intent = recorded.or_else(|| self.making.get(id));
        Some(intent.map_or("", |intent| intent.spec.name.as_str()))
    }

    pub(crate) fn has_address(&self, address: Ipv4Addr) -> bool {
        self.taken.holder(&keys::address(address)).is_some()
    }

    /// What is promised to everybody but `except`.
    pub(crate) fn promised(&self, except: Option<&InstanceId>) -> Demand {
        let own = except
            .and_then(|id| self.entries.get(id))
            .filter(|entry| entry.view.takes_room())
            .map_or_else(Demand::default, |entry| demand(&entry.view.intent.spec));
        let vcpus = self.taken.vcpus.saturating_sub(u64::from(own.vcpus));
        Demand {
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
            memory_mib: self.taken.memory_mib.saturating_sub(own.memory_mib),
        }
    }

    fn put(&mut self, id: &InstanceId, view: View) {
        if let Some(before) = self.entries.get(id) {
            if before.view.takes_room() {
                self.taken.subtract(demand(&before.view.intent.spec));
            }
            if !Arc::ptr_eq(&before.view.intent, &view.intent) {
                self.taken.let_go(&before.view.intent);
                self.taken.hold(&view.intent);
            }
        } else {
            self.taken.hold(&view.intent);
        }
        if view.takes_room() {
            self.taken.add(demand(&view.intent.spec));
        }
        match self.entries.get_mut(id) {
            Some(entry) => {
                entry.view = view;
                entry.changed.send_replace(());
            }
            None => {
                let changed = watch::Sender::new(());
                self.entries.insert(id.clone(), Entry { view, changed });
            }
        }
    }

    fn take(&mut self, id: &InstanceId) {
        // Whoever waits for it hears that the sender is gone.
        if let Some(entry) = self.entries.remove(id) {
            self.taken.let_go(&entry.view.intent);
            if entry.view.takes_room() {
                self.taken.subtract(demand(&entry.view.intent.spec));
            }
        }
    }

    fn forget_making(&mut self, id: &InstanceId) {
        if let Some(intent) = self.making.remove(id) {
            self.taken.let_go(&intent);
            self.taken.subtract(demand(&intent.spec));
        }
    }

    fn put_intent(&mut self, intent: InstanceIntent, revision: Revision) -> View {
        let id = intent.id.clone();
        let view = match self.entries.get(&id).map(|entry| &entry.view) {
            Some(known) if known.revision >= revision => return known.clone(),
            Some(known) => View::of(Arc::new(intent), revision, Arc::clone(&known.status)),
            None => View::new(intent, revision),
        };
        self.put(&id, view.clone());
        view
    }
}

#[derive(Default)]
pub(crate) struct Board {
    held: Mutex<Held>,
}

/// Everything that an instance will hold, kept for it until its intent is durable; given back when it is dropped.
pub(crate) struct Reservation<'a> {
    board: &'a Board,
    pub(crate) intent: Arc<InstanceIntent>,
}

impl Reservation<'_> {
    /// Its intent is durable: the reservation becomes the instance.
    pub(crate) fn recorded(self, revision: Revision) -> View {
        let mut held = self.board.lock();
        held.forget_making(&self.intent.id);
        held.put_intent((*self.intent).clone(), revision)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.board.lock().forget_making(&self.intent.id);
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing that changes it can panic half-way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks about what is spoken for.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Held) -> T) -> T {
        question(&self.lock())
    }

    /// Keeps what the intent holds that `choose` makes of what is spoken for: nobody else gets it meanwhile.
    pub(crate) fn reserve<E>(
        &self,
        choose: impl FnOnce(&Held) -> Result<InstanceIntent, E>,
    ) -> Result<Reservation<'_>, E> {
        let mut held = self.lock();
        let intent = Arc::new(choose(&held)?);
        held.taken.hold(&intent);
        held.taken.add(demand(&intent.spec));
        held.making.insert(intent.id.clone(), Arc::clone(&intent));
        Ok(Reservation {
            board: self,
            intent,
        })
    }

    pub(crate) fn get(&self, id: &InstanceId) -> Option<View> {
        self.lock().entries.get(id).map(|entry| entry.view.clone())
    }

    /// With a receiver that hears of every change after this view, and of its end.
    pub(crate) fn watch(&self, id: &InstanceId) -> Option<(View, watch::Receiver<()>)> {
        let held = self.lock();
        let entry = held.entries.get(id)?;
        Some((entry.view.clone(), entry.changed.subscribe()))
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> Vec<View> {
        let held = self.lock();
        held.entries.values().map(|it| it.view.clone()).collect()
    }

    /// The first `most` of those behind `after` that are wanted, by id.
    pub(crate) fn page(
        &self,
        after: Option<&InstanceId>,
        most: usize,
        wanted: impl Fn(&View) -> bool,
    ) -> Vec<View> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.lock()
            .entries
            .range((first, Bound::Unbounded))
            .map(|(_, entry)| &entry.view)
            .filter(|view| wanted(view))
            .take(most)
            .cloned()
            .collect()
    }

    pub(crate) fn put_intent(&self, intent: InstanceIntent, revision: Revision) -> View {
        self.lock().put_intent(intent, revision)
    }

    /// An intent that the host knows and the record does not, or knows older. Its revision stays what the
    /// record's is: 0 where there is none.
    pub(crate) fn put_unrecorded(&self, intent: InstanceIntent) {
        let mut held = self.lock();
        let id = intent.id.clone();
        let view = match held.entries.get(&id).map(|entry| &entry.view) {
            Some(known) if known.intent.generation >= intent.generation => return,
            Some(known) => {
                let status = Arc::clone(&known.status);
                View::of(Arc::new(intent), known.revision, status)
            }
            None => View::new(intent, UNRECORDED),
        };
        held.put(&id, view);
    }

    /// Its record is damaged and set aside: what is known of it stays, and is recorded by nothing.
    pub(crate) fn lose_record(&self, id: &InstanceId) {
        let mut held = self.lock();
        if let Some(entry) = held.entries.get(id) {
            let view = View {
                revision: UNRECORDED,
                ..entry.view.clone()
            };
            held.put(id, view);
        }
    }

    pub(crate) fn put_status(&self, status: InstanceStatus) {
        let mut held = self.lock();
        let id = status.id.clone();
        if let Some(entry) = held.entries.get(&id) {
            let (intent, revision) = (Arc::clone(&entry.view.intent), entry.view.revision);
            held.put(&id, View::of(intent, revision, Arc::new(status)));
        }
    }

    pub(crate) fn remove(&self, id: &InstanceId) {
        self.lock().take(id);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use warren_core::image::ImageConfig;
    use warren_core::instance::Desired;
    use warren_core::{Handle, Timestamp};

    fn intent(name: &str, desired: Desired) -> InstanceIntent {
        let spec = serde_json::json!({
            "name": name, "image": "i", "vcpus": 1, "memory": 64, "memory_max": 64, "disk": 16 << 20,
        });
        InstanceIntent {
            id: name.parse().unwrap(),
            handle: Handle::from_entropy([1; 5]),
            tenant: "default".to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
            slug: name.to_owned(),
            image_digest: "sha256:0".to_owned(),
            image_config: ImageConfig::default(),
            generation: 1,
            desired,
            run: 1,
            address: None,
            stop_grace_seconds: 10,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn memory(board: &Board) -> u64 {
        board.ask(|held| held.promised(None).memory_mib)
    }

    #[test]
    fn what_is_spoken_for_is_what_all_instances_hold_whatever_happened_before() {
        let board = Board::default();
        let each = intent("a", Desired::Running).spec.memory.0;
        board.put_intent(intent("a", Desired::Running), 1);
        board.put_intent(intent("b", Desired::Running), 2);
        assert_eq!(memory(&board), 2 * each);
        // The same again, an older one, one that stops: counted once.
        board.put_intent(intent("a", Desired::Running), 1);
        board.put_intent(intent("b", Desired::Stopped), 3);
        board.put_intent(intent("b", Desired::Running), 2);
        assert_eq!(memory(&board), each);
        let a = "a".parse().unwrap();
        assert_eq!(board.ask(|held| held.promised(Some(&a)).memory_mib), 0);
        let mut renamed = intent("a", Desired::Running);
        renamed.slug = "other".to_owned();
        board.put_intent(renamed, 4);
        let held = |key: &str| board.ask(|held| held.holder(key).map(str::to_owned));
        assert_eq!(held("slug/a"), None);
        assert_eq!(held("slug/other"), Some("a".to_owned()));
        board.remove(&a);
        board.remove(&"b".parse().unwrap());
        assert_eq!((memory(&board), held("slug/other")), (0, None));
        assert!(board.ask(|held| held.taken.holders.is_empty()));
    }

    #[test]
    fn a_view_is_encoded_once_and_another_one_anew() {
        let board = Board::default();
        let id: InstanceId = "a".parse().unwrap();
        board.put_intent(intent("a", Desired::Running), 1);
        let told = |text: &'static str| {
            let view = board.get(&id).unwrap();
            view.encoded(|_| Bytes::from_static(text.as_bytes()))
        };
        assert_eq!(told("first"), "first");
        assert_eq!(told("not asked for"), "first");
        let changed = board.put_intent(intent("a", Desired::Stopped), 2);
        assert_eq!(changed.encoded(|_| Bytes::from_static(b"second")), "second");
        assert_eq!(told("not asked for"), "second");
        let status = InstanceStatus::unreported(&intent("a", Desired::Stopped));
        board.put_status(status);
        assert_eq!(told("third"), "third");
        let mut newer = intent("a", Desired::Running);
        newer.generation = 2;
        board.put_unrecorded(newer);
        assert_eq!(told("fourth"), "fourth");
    }

    #[test]
    fn a_reservation_holds_until_it_is_recorded_or_dropped() {
        let board = Board::default();
        let each = intent("a", Desired::Running).spec.memory.0;
        let chosen = |_: &Held| Ok::<_, ()>(intent("a", Desired::Running));
        let reservation = board.reserve(chosen).ok().unwrap();
        let id = "a".parse().unwrap();
        assert!(board.ask(|held| held.has(&id)) && board.get(&id).is_none());
        assert_eq!(memory(&board), each);
        drop(reservation);
        assert!(!board.ask(|held| held.has(&id)));
        assert_eq!(memory(&board), 0);
        board.reserve(chosen).ok().unwrap().recorded(7);
        assert_eq!(board.get(&id).unwrap().revision, 7);
        assert_eq!(memory(&board), each);
        assert_eq!(
            board.ask(|held| held.holder("slug/a").map(str::to_owned)),
            Some("a".to_owned())
        );
    }
}

//! Who is about to need which digests, so that no collection takes them away in between.
//!
//! A lease is taken before looking whether a blob or a disk is there, and given back after the record that reaches it
//! was written. A collection that began before the record was written has not read it: what was leased at any moment
//! of a collection is therefore spared by it, even when the lease has ended since.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::digest::Digest;

/// All leases of a store.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Leases(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    held: HashMap<Digest, usize>,
    /// Kept for a while without a holder.
    kept: HashMap<Digest, Instant>,
    /// During a collection: what was leased at some moment of it.
    spared: Option<HashSet<Digest>>,
}

impl State {
    fn note(&mut self, digest: &Digest) {
        if let Some(spared) = &mut self.spared {
            spared.insert(digest.clone());
        }
    }
}

/// Digests that are not collected while this lives.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    digests: Vec<Digest>,
}

impl Lease {
    /// Adds to it.
    pub(in crate::store) fn extend<'a>(&mut self, digests: impl IntoIterator<Item = &'a Digest>) {
        let mut state = self.leases.lock();
        for digest in digests {
            *state.held.entry(digest.clone()).or_default() += 1;
            state.note(digest);
            self.digests.push(digest.clone());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.lock();
        for digest in self.digests.drain(..) {
            if let Some(count) = state.held.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(&digest);
                }
            }
        }
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::store) fn take<'a>(
        &self,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Lease {
        let mut lease = Lease {
            leases: self.clone(),
            digests: Vec::new(),
        };
        lease.extend(digests);
        lease
    }

    /// Spares a digest for a while after whoever brought it has gone.
    pub(in crate::store) fn keep_for(&self, digest: &Digest, time: Duration) {
        let mut state = self.lock();
        let until = Instant::now() + time;
        let kept = state.kept.entry(digest.clone()).or_insert(until);
        *kept = until.max(*kept);
        state.note(digest);
    }

    /// What a collection would spare at this moment.
    pub(in crate::store) fn leased(&self) -> HashSet<Digest> {
        let state = self.lock();
        let now = Instant::now();
        let kept = state.kept.iter().filter(|(_, until)| **until > now);
        let kept = kept.map(|(digest, _)| digest);
        state.held.keys().chain(kept).cloned().collect()
    }

    /// Begins a collection; only one may be under way.
    pub(in crate::store) fn collect(&self) -> Collection {
        let mut state = self.lock();
        let now = Instant::now();
        state.kept.retain(|_, until| *until > now);
        let spared = state.held.keys().chain(state.kept.keys()).cloned();
        state.spared = Some(spared.collect());
        Collection(self.clone())
    }
}

/// A collection under way.
#[derive(Debug)]
pub(in crate::store) struct Collection(Leases);

impl Collection {
    /// Takes something away unless somebody needs its digest; nobody can begin to need it meanwhile. `take` must be quick.
    /// `None` when it is spared.
    pub(in crate::store) fn unless_leased<T>(
        &self,
        digest: &Digest,
        take: impl FnOnce() -> T,
    ) -> Option<T> {
        let state = self.0.lock();
        let spared = state.spared.as_ref().is_some_and(|s| s.contains(digest));
        (!spared).then(take)
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.0.lock().spared = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn what_is_leased_at_any_moment_of_a_collection_is_spared_by_it() {
        let leases = Leases::default();
        let (before, during, after, never) = (
            digest("before"),
            digest("during"),
            digest("after"),
            digest("never"),
        );
        let held = leases.take([&before]);
        drop(leases.take([&never]));
        let collection = leases.collect();
        drop(held);
        drop(leases.take([&during]));
        for spared in [&before, &during] {
            assert_eq!(collection.unless_leased(spared, || ()), None);
        }
        for taken in [&after, &never] {
            assert_eq!(collection.unless_leased(taken, || ()), Some(()));
        }
        drop(collection);
        assert_eq!(leases.collect().unless_leased(&before, || ()), Some(()));
    }

    #[test]
    fn two_leases_of_one_digest_end_apart() {
        let leases = Leases::default();
        let twice = digest("twice");
        let (first, second) = (leases.take([&twice]), leases.take([&twice, &twice]));
        drop(second);
        assert_eq!(leases.collect().unless_leased(&twice, || ()), None);
        drop(first);
        assert_eq!(leases.collect().unless_leased(&twice, || ()), Some(()));
    }

    #[test]
    fn what_is_kept_for_a_while_is_spared_so_long() {
        let leases = Leases::default();
        let (short, long) = (digest("short"), digest("long"));
        leases.keep_for(&long, Duration::from_secs(3600));
        leases.keep_for(&long, Duration::ZERO);
        leases.keep_for(&short, Duration::ZERO);
        let collection = leases.collect();
        assert_eq!(collection.unless_leased(&long, || ()), None);
        assert_eq!(collection.unless_leased(&short, || ()), Some(()));
    }
}

//! What may go: mark what records and instances need, sweep the rest.
//!
//! A blob or a disk goes when no record needs it, no instance runs from it, and no operation has a lease on it. One that
//! goes is first given the name of a temporary file, while nobody can begin to need it; then it is removed. Must never:
//! sweep while a record cannot be read, because nobody knows what that one needs.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, SystemTime};

use tokio::sync::MutexGuard;
use warren_core::ports::images::PruneRequest;
use warren_core::storage::{PruneMode, PruneScope, Pruned, PrunedImage};
use warren_crashpoint::reached;

use super::budget::{self, Candidate};
use super::content::Collection;
use super::disks::Disks;
use super::inventory::{Inventory, Item, Key, Kind, needed_by, roots};
use super::records::Stored;
use super::{ImageStore, StoreError, publish, records};

/// Blobs of an interrupted pull wait so long for the next one.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// What a collection removed, or would.
#[derive(Debug, Default)]
struct Swept {
    disks: usize,
    blobs: usize,
    bytes: u64,
}

impl Swept {
    fn add(&mut self, (kind, _): &Key, item: &Item) {
        match kind {
            Kind::Blob => self.blobs += 1,
            Kind::Disk => self.disks += 1,
        }
        self.bytes += item.bytes;
    }
}

/// The only collection under way. What anybody had a lease on since it began is spared.
struct Sweeper<'a> {
    store: &'a ImageStore,
    leases: Collection,
    _only: MutexGuard<'a, ()>,
}

impl Sweeper<'_> {
    /// To be begun before the records are read: what is recorded later is leased now, or will be.
    async fn begin(store: &ImageStore) -> Sweeper<'_> {
        let only = store.collecting.lock().await;
        Sweeper {
            store,
            leases: store.content.collect(),
            _only: only,
        }
    }

    /// All records. Fails when one cannot be read.
    fn records(&self) -> Result<Vec<Stored>, StoreError> {
        let listing = self.store.records.list()?;
        let damaged = listing.damaged.into_iter();
        match damaged.chain(self.store.serving.damaged()).next() {
            Some(path) => Err(StoreError::RecordDamaged(path)),
            None => Ok(listing.readable),
        }
    }

    /// Goes over what `roots` do not need, as far as it is `wanted`. What repositories need is added where it is removed.
    async fn sweep(
        self,
        mut roots: HashSet<Key>,
        mode: PruneMode,
        wanted: impl Fn(&Key, &Item) -> bool + Send + 'static,
    ) -> Result<Swept, StoreError> {
        if mode == PruneMode::Remove {
            self.store.serving.settle(&self.store.records).await?;
            roots.extend(self.store.serving.needed());
        }
        let (content, disks) = (self.store.content.clone(), self.store.disks.clone());
        let leases = self.leases;
        records::blocking("collecting what no image needs", move || {
            let inventory = Inventory::read(&content, &disks)?;
            let mut swept = Swept::default();
            for (key, item) in inventory.unreferenced(&roots) {
                if !wanted(key, item) {
                    continue;
                }
                let gone = match mode {
                    PruneMode::DryRun => leases.unless_leased(&key.1, || ()).is_some(),
                    PruneMode::Remove => remove(key, item, &leases, &disks)?,
                };
                if gone {
                    swept.add(key, item);
                }
            }
            Ok(swept)
        })
        .await
    }
}

/// Removes something unless it is needed after all; whether it did.
fn remove(key: &Key, item: &Item, leases: &Collection, disks: &Disks) -> io::Result<bool> {
    let set_aside = leases.unless_leased(&key.1, || publish::set_aside(&item.path));
    let Some(doomed) = set_aside.transpose()?.flatten() else {
        return Ok(false);
    };
    reached("collect.set-aside");
    publish::remove(&doomed)?;
    if key.0 == Kind::Disk {
        disks.unseal(&key.1)?;
    }
    reached("collect.removed");
    Ok(true)
}

impl ImageStore {
    pub(super) async fn prune_images(&self, request: PruneRequest) -> Result<Pruned, StoreError> {
        let sweeper = Sweeper::begin(self).await;
        let all = sweeper.records()?;
        let used = |stored: &Stored| request.in_use.contains(&stored.record.digest);
        let (doomed, pressed): (Vec<&Stored>, bool) = match request.scope {
            PruneScope::Unreferenced => (Vec::new(), false),
            PruneScope::Unused => (all.iter().filter(|stored| !used(stored)).collect(), false),
            PruneScope::Routine => self.over_budget(&all, &request.in_use).await?,
        };
        let mut gone: Vec<&Stored> = Vec::new();
        for stored in doomed {
            let removed = match request.mode {
                PruneMode::DryRun => true,
                PruneMode::Remove => self.records.remove_unchanged(stored).await?,
            };
            if removed {
                reached("prune.record-removed");
                gone.push(stored);
            }
        }
        let roots = match request.mode {
            PruneMode::DryRun => {
                let goes =
                    |stored: &&Stored| gone.iter().any(|other| other.record.id == stored.record.id);
                let left: Vec<Stored> = all.iter().filter(|it| !goes(it)).cloned().collect();
                self.needed(&left, &request.in_use)
            }
            // Others may have come meanwhile.
            PruneMode::Remove => roots(&sweeper.records()?, &request.in_use, &self.content),
        };
        let scope = request.scope;
        let now = SystemTime::now();
        let wanted = move |(kind, _): &Key, item: &Item| match (scope, kind) {
            (PruneScope::Unreferenced | PruneScope::Unused, _) | (_, Kind::Disk) => true,
            (PruneScope::Routine, Kind::Blob) => {
                pressed
                    || now
                        .duration_since(item.changed)
                        .is_ok_and(|age| age > STALE)
            }
        };
        let swept = sweeper.sweep(roots, request.mode, wanted).await?;
        Ok(Pruned {
            images: gone
                .into_iter()
                .map(|stored| PrunedImage {
                    id: stored.record.id.clone(),
                    name: stored.record.name.clone(),
                    digest: stored.record.digest.clone(),
                })
                .collect(),
            disks: swept.disks,
            blobs: swept.blobs,
            bytes: swept.bytes,
        })
    }

    /// Everything that would be needed if these were all the records.
    pub(super) fn needed(&self, records: &[Stored], in_use: &[String]) -> HashSet<Key> {
        let mut needed = roots(records, in_use, &self.content);
        needed.extend(self.serving.needed_beside(records));
        needed
    }

    /// The records that must go for the store to keep within its budget, and whether it does not.
    async fn over_budget<'a>(
        &self,
        all: &'a [Stored],
        in_use: &[String],
    ) -> Result<(Vec<&'a Stored>, bool), StoreError> {
        let Some(budget) = self.options.budget else {
            return Ok((Vec::new(), false));
        };
        let inventory = self.inventory().await?;
        if inventory.total() <= budget {
            return Ok((Vec::new(), false));
        }
        let mut roots = roots(all, in_use, &self.content);
        roots.extend(self.serving.needed());
        let unreferenced: u64 = inventory
            .unreferenced(&roots)
            .map(|(_, item)| item.bytes)
            .sum();
        let candidates: Vec<Candidate> = all
            .iter()
            .map(|stored| Candidate {
                needs: needed_by(stored, &self.content),
                last_used: self.last_used(stored),
                stays: in_use.contains(&stored.record.digest),
            })
            .collect();
        let doomed = budget::choose(
            &candidates,
            inventory.total().saturating_sub(unreferenced),
            budget,
            SystemTime::now(),
            |key| inventory.bytes(key),
        );
        Ok((doomed.into_iter().map(|index| &all[index]).collect(), true))
    }

    /// Collects what a removed record needed, and no more: a pull that was interrupted keeps its layers.
    pub(super) async fn collect_removed(
        &self,
        removed: &Stored,
        in_use: &[String],
    ) -> Result<(), StoreError> {
        let sweeper = Sweeper::begin(self).await;
        let left = match sweeper.records() {
            Err(error @ StoreError::RecordDamaged(_)) => {
                // The record is gone, as was asked. What it needed goes when the damaged one is dealt with.
                tracing::warn!(%error, "an image's content is left where it is");
                return Ok(());
            }
            left => left?,
        };
        let roots = roots(&left, in_use, &self.content);
        let needed = needed_by(removed, &self.content);
        let wanted = move |key: &Key, _: &Item| needed.contains(key);
        let swept = sweeper.sweep(roots, PruneMode::Remove, wanted).await?;
        tracing::debug!(?swept, "removed what the image had for itself");
        Ok(())
    }
}

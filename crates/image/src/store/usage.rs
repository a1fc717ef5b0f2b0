//! What the images take on the file system, and what of it they share.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use warren_core::Timestamp;
use warren_core::storage::{ImageUsage, ImagesUsage, LayerUsage};

use super::inventory::{Inventory, Key, Kind, needed_by};
use super::records::Stored;
use super::{ImageStore, StoreError, records};

impl ImageStore {
    pub(super) async fn inventory(&self) -> Result<Inventory, StoreError> {
        let (content, disks) = (self.content.clone(), self.disks.clone());
        records::blocking("looking through the image store", move || {
            Inventory::read(&content, &disks)
        })
        .await
    }

    /// When an instance last started from an image, or it came here.
    pub(super) fn last_used(&self, stored: &Stored) -> SystemTime {
        let manifest = stored.record.digest.parse().ok();
        manifest
            .and_then(|manifest| self.disks.last_used(&manifest))
            .unwrap_or_else(|| stored.record.created_at.into())
    }

    pub(super) async fn images_usage(&self, in_use: &[String]) -> Result<ImagesUsage, StoreError> {
        let mut all = self.records.list()?.readable;
        all.sort_by(|a, b| (&a.record.name, &a.record.id).cmp(&(&b.record.name, &b.record.id)));
        let inventory = self.inventory().await?;
        let needs: Vec<HashSet<Key>> = all
            .iter()
            .map(|stored| needed_by(stored, &self.content))
            .collect();
        let mut counts: HashMap<&Key, usize> = HashMap::new();
        for key in needs.iter().flatten() {
            *counts.entry(key).or_default() += 1;
        }
        let images: Vec<ImageUsage> = all
            .iter()
            .zip(&needs)
            .map(|(stored, needs)| {
                let size: u64 = needs.iter().map(|key| inventory.bytes(key)).sum();
                let own = needs.iter().filter(|key| counts.get(key) == Some(&1));
                let unique: u64 = own.map(|key| inventory.bytes(key)).sum();
                let record = &stored.record;
                let instances = in_use.iter().filter(|it| **it == record.digest).count();
                ImageUsage {
                    id: record.id.clone(),
                    name: record.name.clone(),
                    digest: record.digest.clone(),
                    size,
                    shared: size - unique,
                    unique,
                    reclaimable: if instances == 0 { unique } else { 0 },
                    instances,
                    last_used: Some(Timestamp::from(self.last_used(stored))),
                }
            })
            .collect();
        let leased = self.content.leased();
        let free_without = |records: &[Stored]| -> u64 {
            let needed = self.needed(records, in_use);
            let free = inventory.unreferenced(&needed);
            let free = free.filter(|((_, digest), _)| !leased.contains(digest));
            free.map(|(_, item)| item.bytes).sum()
        };
        let used = |stored: &&Stored| in_use.contains(&stored.record.digest);
        let used: Vec<Stored> = all.iter().filter(used).cloned().collect();
        Ok(ImagesUsage {
            images,
            layers: layers(&all, &inventory),
            total: inventory.total(),
            unreferenced: free_without(&all),
            reclaimable: free_without(&used),
            budget: self.options.budget,
        })
    }
}

/// Each layer once, the largest first.
fn layers(all: &[Stored], inventory: &Inventory) -> Vec<LayerUsage> {
    let mut images = HashMap::new();
    for stored in all {
        for layer in stored.layers.iter().collect::<HashSet<_>>() {
            *images.entry(layer).or_insert(0) += 1;
        }
    }
    let mut layers: Vec<LayerUsage> = images
        .into_iter()
        .map(|(digest, images)| LayerUsage {
            digest: digest.to_string(),
            size: inventory.bytes(&(Kind::Blob, digest.clone())),
            images,
        })
        .collect();
    layers.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
    layers
}

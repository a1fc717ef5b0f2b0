//! The record of intent as a whole: what is in the store, whether it agrees with itself, and how it is rebuilt
//! from what a host remembers. Used by the server, and by the binary on a store that no server has open.

mod recovery;

pub use recovery::{Missing, recover};

use crate::keys;
use std::collections::{BTreeMap, BTreeSet};
use warren_core::instance::{InstanceIntent, InstanceStatus};
use warren_core::inventory::{Difference, DifferenceKind, Item, Kind, Part, Remedy};
use warren_core::ports::Store;
use warren_core::ports::host_link::HostRecords;
use warren_core::ports::store::{Guard, Record, Revision, Transaction, Write};
use warren_core::{InstanceId, PortError};

/// Records read at a time.
const PAGE: usize = 500;

/// What the store says of instances.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// What is wanted, and the commit that wrote it.
    pub intents: BTreeMap<InstanceId, (InstanceIntent, Revision)>,
    /// What was seen last.
    pub statuses: BTreeMap<InstanceId, InstanceStatus>,
    /// Names, labels, addresses, ports: key, holder.
    reservations: BTreeMap<String, InstanceId>,
    /// Keys that could not be read, and why.
    unreadable: Vec<(String, String)>,
    /// Keys whose record the store has set aside, and why.
    set_aside: Vec<(String, String)>,
}

impl Records {
    /// Reads all of it.
    ///
    /// # Errors
    /// The store's. A record that is damaged is not an error, but named by [`Records::differences`].
    pub async fn read(store: &dyn Store) -> Result<Self, PortError> {
        let mut records = Records::default();
        for damaged in store.damaged().await? {
            records.set_aside.push((damaged.key, damaged.reason));
        }
        for record in all(store, keys::INSTANCES).await? {
            let intent = keys::decode::<InstanceIntent>(&record).and_then(|intent| {
                if keys::instance(&intent.id) == record.key {
                    Ok(intent)
                } else {
                    Err(PortError::bug(
                        "damaged_record",
                        "its id is not that of its key",
                    ))
                }
            });
            match intent {
                Ok(intent) => {
                    records
                        .intents
                        .insert(intent.id.clone(), (intent, record.revision));
                }
                Err(error) => records.unreadable.push((record.key, said(&error))),
            }
        }
        for record in all(store, keys::STATUSES).await? {
            match keys::decode::<InstanceStatus>(&record) {
                Ok(status) if keys::status(&status.id) == record.key => {
                    records.statuses.insert(status.id.clone(), status);
                }
                Ok(_) => records
                    .unreadable
                    .push((record.key, "its id is not that of its key".to_owned())),
                Err(error) => records.unreadable.push((record.key, said(&error))),
            }
        }
        for prefix in keys::RESERVATIONS {
            for record in all(store, prefix).await? {
                match keys::decode::<InstanceId>(&record) {
                    Ok(holder) => {
                        records.reservations.insert(record.key, holder);
                    }
                    Err(error) => records.unreadable.push((record.key, said(&error))),
                }
            }
        }
        Ok(records)
    }

    fn may_lack_instances(&self) -> bool {
        let mut damaged = self.set_aside.iter().chain(&self.unreadable);
        damaged.any(|(key, _)| may_be_an_instances(key))
    }

    /// Everything in which the record does not agree with itself.
    pub fn differences(&self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let key =
            |kind, key: &str, instance: Option<&InstanceId>, remedy, sentence: String| Difference {
                kind,
                item: Item::new(Kind::Key, key, Part::Unknown),
                instance: instance.cloned(),
                sentence,
                remedy,
            };
        for (name, reason) in &self.set_aside {
            differences.push(key(
                DifferenceKind::Damaged,
                name,
                None,
                remedy_of_damage(name),
                format!("the record {name} was damaged and is set aside: {reason}"),
            ));
        }
        for (name, reason) in &self.unreadable {
            differences.push(key(
                DifferenceKind::Damaged,
                name,
                None,
                remedy_of_damage(name),
                format!("the record {name} cannot be read: {reason}"),
            ));
        }
        // What is held beyond what instances have is a leak, unless a record of an instance is what is missing.
        let remedy_of_leaks = if self.may_lack_instances() {
            Remedy::Recover
        } else {
            Remedy::Repair
        };
        let mut claimed: BTreeSet<String> = BTreeSet::new();
        for (intent, _) in self.intents.values() {
            for name in keys::reservations(intent) {
                if self.reservations.get(&name) != Some(&intent.id) {
                    differences.push(key(
                        DifferenceKind::Missing,
                        &name,
                        Some(&intent.id),
                        Remedy::Repair,
                        format!("{} does not hold {name} in the record", intent.id),
                    ));
                }
                claimed.insert(name);
            }
        }
        for (name, holder) in &self.reservations {
            if !claimed.contains(name) {
                differences.push(key(
                    DifferenceKind::Leaked,
                    name,
                    None,
                    remedy_of_leaks,
                    format!("{name} is held for {holder}, which does not have it"),
                ));
            }
        }
        for id in self.statuses.keys() {
            if !self.intents.contains_key(id) {
                let name = keys::status(id);
                differences.push(key(
                    DifferenceKind::Leaked,
                    &name,
                    None,
                    remedy_of_leaks,
                    format!("{name} is of an instance that is not recorded"),
                ));
            }
        }
        differences
    }
}

/// Whether it may be the record of an instance that is damaged: unless the key says that it follows from one, or is
/// of no consequence.
pub(crate) fn may_be_an_instances(key: &str) -> bool {
    let others = [keys::STATUSES, keys::EVENT, keys::IDEMPOTENCY];
    let mut others = others.iter().chain(&keys::RESERVATIONS);
    !others.any(|prefix| key.starts_with(prefix))
}

/// What helps against a damaged record: of an instance, its host; of anything that follows from it, this.
fn remedy_of_damage(key: &str) -> Remedy {
    if may_be_an_instances(key) {
        Remedy::Recover
    } else {
        Remedy::Repair
    }
}

/// Directories whose own record cannot be read.
pub fn unreadable(host: &HostRecords) -> impl Iterator<Item = Difference> + '_ {
    host.damaged.iter().map(|(handle, reason)| Difference {
        kind: DifferenceKind::Damaged,
        item: Item::new(
            Kind::File,
            "record.json",
            Part::Home {
                handle: handle.clone(),
            },
        ),
        instance: None,
        sentence: reason.clone(),
        remedy: Remedy::Look,
    })
}

/// Puts one difference of the record right.
///
/// # Errors
/// The store's; `not_repairable` for what needs another remedy.
pub async fn repair(store: &dyn Store, difference: &Difference) -> Result<(), PortError> {
    let name = &difference.item.name;
    if difference.item.kind != Kind::Key || difference.remedy != Remedy::Repair {
        return Err(PortError::unsupported(
            "not_repairable",
            format!("{} is not repaired by a program", difference.item.name),
        ));
    }
    // Anew: what was seen may have changed.
    let records = Records::read(store).await?;
    let holder = records
        .intents
        .values()
        .find(|(intent, _)| keys::reservations(intent).contains(name))
        .map(|(intent, revision)| (intent.id.clone(), *revision));
    let transaction = match (difference.kind, holder) {
        (DifferenceKind::Missing | DifferenceKind::Damaged, Some((id, revision))) => Transaction {
            guards: vec![Guard::At(keys::instance(&id), revision)],
            writes: vec![Write::Put(name.clone(), keys::encode(&id))],
        },
        (DifferenceKind::Missing, None) | (DifferenceKind::Leaked, Some(_)) => return Ok(()),
        (DifferenceKind::Leaked | DifferenceKind::Damaged | DifferenceKind::Unknown, None) => {
            Transaction {
                guards: vec![],
                writes: vec![Write::Delete(name.clone())],
            }
        }
        (DifferenceKind::Unknown, Some(_)) => return Ok(()),
    };
    store.commit(transaction).await?;
    if difference.kind == DifferenceKind::Damaged
        && let Some(upkeep) = store.upkeep()
    {
        upkeep.forget_damaged(name).await?;
    }
    Ok(())
}

fn said(error: &PortError) -> String {
    match &error.source {
        Some(source) => format!("{}: {source}", error.message),
        None => error.message.clone(),
    }
}

async fn all(store: &dyn Store, prefix: &str) -> Result<Vec<Record>, PortError> {
    let mut records = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), PAGE).await?;
        records.extend(page.records);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(records),
        }
    }
}

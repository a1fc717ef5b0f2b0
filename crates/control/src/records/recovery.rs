//! Rebuilding the record of intent from what the host remembers. Only the record is changed; nothing on the
//! host is touched, started or stopped by it.
//!
//! | in the record | in the host's directories | becomes |
//! |---|---|---|
//! | – | there | recorded |
//! | older | newer | as the host knows it |
//! | newer or the same | there | unchanged |
//! | there | – | forgotten: deleted since; or, if asked, kept and made anew |

use super::Records;
use crate::keys;
use std::collections::BTreeSet;
use warren_api::upkeep::Recovery;
use warren_core::instance::{Desired, InstanceIntent};
use warren_core::ports::Store;
use warren_core::ports::host_link::HostRecords;
use warren_core::ports::store::{Transaction, Write};
use warren_core::{InstanceId, PortError};
use warren_crashpoint::reached;

/// What becomes of an instance that is recorded and has nothing on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// It was deleted after the record was copied, and stays so.
    #[default]
    Forget,
    /// It is kept, and made anew.
    Recreate,
}

/// What is to be done with one instance. Pure, so that it can be tried on any pair of records.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Record(InstanceIntent),
    Update {
        old: Option<Box<InstanceIntent>>,
        new: Box<InstanceIntent>,
    },
    Keep(InstanceId),
    Forget(InstanceIntent),
}

fn plan(records: &Records, host: &HostRecords, missing: Missing) -> Vec<Change> {
    let mut changes = Vec::new();
    let here: BTreeSet<&InstanceId> = host.intents.iter().map(|intent| &intent.id).collect();
    let unreadable: BTreeSet<_> = host.damaged.iter().map(|(handle, _)| handle).collect();
    for (id, (intent, _)) in &records.intents {
        if here.contains(id) {
            continue;
        }
        // A directory is there, whatever is in it: that is not a deletion.
        let kept = missing == Missing::Recreate
            || unreadable.contains(&intent.handle)
            || intent.desired == Desired::Deleted;
        changes.push(if kept {
            Change::Keep(id.clone())
        } else {
            Change::Forget(intent.clone())
        });
    }
    for intent in &host.intents {
        let known = records.intents.get(&intent.id).map(|(known, _)| known);
        changes.push(match known {
            None if intent.desired == Desired::Deleted => continue,
            None => Change::Record(intent.clone()),
            // Another instance that was given the same id once: the one that is here is the one there is.
            Some(known)
                if known.handle != intent.handle || known.generation < intent.generation =>
            {
                Change::Update {
                    old: Some(Box::new(known.clone())),
                    new: Box::new(intent.clone()),
                }
            }
            Some(_) => Change::Keep(intent.id.clone()),
        });
    }
    // What is given up first, so that what takes its name or address can have it.
    changes.sort_by_key(|change| !matches!(change, Change::Forget(_)));
    changes
}

/// Rebuilds the record and takes it as right from then on. Repeating it changes nothing more.
///
/// # Errors
/// The store's; what was done until then stays, and it can be repeated.
pub async fn recover(
    store: &dyn Store,
    host: &HostRecords,
    missing: Missing,
) -> Result<Recovery, PortError> {
    let records = Records::read(store).await?;
    let mut recovery = Recovery::default();
    for change in plan(&records, host, missing) {
        let (list, id, writes) = match change {
            Change::Record(intent) => (&mut recovery.recovered, intent.id.clone(), claim(&intent)),
            Change::Update { old, new } => {
                let mut writes: Vec<Write> = old
                    .iter()
                    .flat_map(|old| keys::reservations(old))
                    .map(Write::Delete)
                    .collect();
                writes.extend(claim(&new));
                (&mut recovery.updated, new.id.clone(), writes)
            }
            Change::Keep(id) => (&mut recovery.unchanged, id, Vec::new()),
            Change::Forget(intent) => {
                let mut writes = vec![
                    Write::Delete(keys::instance(&intent.id)),
                    Write::Delete(keys::status(&intent.id)),
                ];
                writes.extend(keys::reservations(&intent).into_iter().map(Write::Delete));
                (&mut recovery.forgotten, intent.id.clone(), writes)
            }
        };
        list.push(id.to_string());
        if !writes.is_empty() {
            let guards = Vec::new();
            store.commit(Transaction { guards, writes }).await?;
            reached("recover.instance-recorded");
        }
    }
    // Instances are all there: what was damaged of them is no reason to keep anything any more.
    if let Some(upkeep) = store.upkeep() {
        for damaged in store.damaged().await? {
            if super::may_be_an_instances(&damaged.key) {
                upkeep.forget_damaged(&damaged.key).await?;
            }
        }
    }
    // What follows from them is put right as well.
    for difference in Records::read(store).await?.differences() {
        if difference.remedy == warren_core::inventory::Remedy::Repair {
            super::repair(store, &difference).await?;
        }
    }
    if let Some(upkeep) = store.upkeep() {
        for damaged in store.damaged().await? {
            upkeep.forget_damaged(&damaged.key).await?;
        }
        reached("recover.before-acceptance");
        upkeep.accept().await?;
        reached("recover.accepted");
    }
    let unreadable = host.damaged.iter();
    recovery.unreadable = unreadable
        .map(|(handle, reason)| format!("{handle}: {reason}"))
        .collect();
    for list in [
        &mut recovery.recovered,
        &mut recovery.updated,
        &mut recovery.unchanged,
        &mut recovery.forgotten,
    ] {
        list.sort();
    }
    Ok(recovery)
}

/// An instance and everything it holds.
fn claim(intent: &InstanceIntent) -> Vec<Write> {
    let holder = keys::encode(&intent.id);
    let mut writes = vec![Write::Put(keys::instance(&intent.id), keys::encode(intent))];
    writes.extend(
        keys::reservations(intent)
            .into_iter()
            .map(|key| Write::Put(key, holder.clone())),
    );
    writes
}

//! Taking over what an earlier process left: directories tell what exists here. And the sweep: what
//! carries this installation's id and belongs to no instance is removed; disks are only set aside.

use crate::actor::InstanceShared;
use crate::agent::Agent;
use crate::record::HostRecord;
use crate::steps::disk_path;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use warren_core::instance::Desired;
use warren_core::{Handle, PortError};

/// Between two looks at what the kernel holds. A leak is removed when two looks in a row found it, so
/// nothing in the making is ever taken for one.
const SWEEP: Duration = Duration::from_secs(30);

/// The records of all instances that have a directory in `instances`. Damaged ones are named in the log
/// and left alone; halves of removed directories are removed.
///
/// # Errors
/// When the directory cannot be read; one that does not exist is empty.
pub fn records(instances: &Path) -> Result<Vec<HostRecord>, PortError> {
    let list = |error| PortError::io("reading the instances' directory", error);
    let mut records = Vec::new();
    let entries = match std::fs::read_dir(instances) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(records),
        entries => entries.map_err(list)?,
    };
    for entry in entries {
        let directory = entry.map_err(list)?.path();
        if directory
            .extension()
            .is_some_and(|extension| extension == "deleted")
        {
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                tracing::warn!(directory = %directory.display(), %error, "cannot remove a deleted instance's rest");
            }
            continue;
        }
        match HostRecord::read(&directory) {
            Ok(Some(record)) => records.push(record),
            // Made, but nothing recorded in it: nothing outside of it can exist.
            Ok(None) => drop(std::fs::remove_dir(&directory)),
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "an instance's record is set aside")
            }
        }
    }
    Ok(records)
}

/// An instance that no intent knows: its machine and network go, its disk is set aside.
pub(crate) fn remove_orphan(agent: &Arc<Agent>, orphan: &InstanceShared) {
    let home = &orphan.home;
    let already = orphan.wish.borrow().desired == Desired::Deleted;
    if !already {
        let aside = agent
            .context()
            .config
            .set_aside
            .join(format!("{}-{}.ext4", home.handle, home.id));
        match std::fs::rename(disk_path(home), &aside) {
            Ok(()) => {
                tracing::warn!(instance = %home.id, disk = %aside.display(), "unknown instance: its disk is set aside")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(instance = %home.id, %error, "unknown instance: its disk cannot be set aside, it is left alone");
                return;
            }
        }
    }
    orphan.wish.send_modify(|intent| {
        intent.generation += 1;
        intent.desired = Desired::Deleted;
    });
}

/// Removes leaks for as long as the agent lives, once intent is known.
pub(crate) async fn sweep_forever(agent: Weak<Agent>, mut synced: watch::Receiver<bool>) {
    if synced.wait_for(|synced| *synced).await.is_err() {
        return;
    }
    let mut suspects: BTreeSet<Handle> = BTreeSet::new();
    loop {
        let Some(agent) = agent.upgrade() else { return };
        suspects = sweep_once(&agent, &suspects).await;
        let clock = Arc::clone(&agent.context().ports.clock);
        drop(agent);
        clock.sleep(SWEEP).await;
    }
}

/// One look. Removes what was a suspect before and still is; returns the new suspects.
async fn sweep_once(agent: &Agent, suspects: &BTreeSet<Handle>) -> BTreeSet<Handle> {
    let network = &agent.context().ports.network;
    let owned = match network.owned().await {
        Ok(owned) => owned,
        Err(error) => {
            tracing::warn!(%error, "cannot look for leaks");
            return BTreeSet::new();
        }
    };
    // Asked after the kernel was: whoever came meanwhile is known.
    let known: BTreeSet<Handle> = agent.handles().into_iter().collect();
    let mut next = BTreeSet::new();
    for handle in owned.into_iter().filter(|handle| !known.contains(handle)) {
        if !suspects.contains(&handle) {
            next.insert(handle);
            continue;
        }
        match network.sweep(&handle).await {
            Ok(()) => {
                tracing::warn!(%handle, "removed a network attachment that belonged to no instance")
            }
            Err(error) => {
                tracing::warn!(%handle, %error, "cannot remove a leaked network attachment")
            }
        }
    }
    next
}

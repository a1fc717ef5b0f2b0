//! The sweep: what carries this installation's id and belongs to no instance is removed; disks are only
//! set aside.

use crate::context::{Actors, Context, InstanceShared, disk_path};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use warren_core::Handle;
use warren_core::instance::Desired;

/// Between two looks at what the kernel holds. A leak is removed when two looks in a row found it, so
/// nothing in the making is ever taken for one.
const SWEEP: Duration = Duration::from_secs(30);

/// An instance that no intent knows: its machine and network go, its disk is set aside.
pub(crate) fn remove_orphan(context: &Context, orphan: &InstanceShared) {
    let home = &orphan.home;
    let already = orphan.wish.borrow().desired == Desired::Deleted;
    if !already {
        let aside = context
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
pub(crate) async fn sweep_forever(
    context: Weak<Context>,
    actors: Weak<Actors>,
    mut synced: watch::Receiver<bool>,
) {
    if synced.wait_for(|synced| *synced).await.is_err() {
        return;
    }
    let mut suspects: BTreeSet<Handle> = BTreeSet::new();
    loop {
        let (Some(context), Some(actors)) = (context.upgrade(), actors.upgrade()) else {
            return;
        };
        suspects = sweep_once(&context, &actors, &suspects).await;
        let clock = Arc::clone(&context.ports.clock);
        drop((context, actors));
        clock.sleep(SWEEP).await;
    }
}

/// One look. Removes what was a suspect before and still is; returns the new suspects.
async fn sweep_once(
    context: &Context,
    actors: &Actors,
    suspects: &BTreeSet<Handle>,
) -> BTreeSet<Handle> {
    let network = &context.ports.network;
    let owned = match network.owned().await {
        Ok(owned) => owned,
        Err(error) => {
            tracing::warn!(%error, "cannot look for leaks");
            return BTreeSet::new();
        }
    };
    // Asked after the kernel was: whoever came meanwhile is known.
    let known: BTreeSet<Handle> = handles(actors);
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

fn handles(actors: &Actors) -> BTreeSet<Handle> {
    let actors = actors.lock().unwrap_or_else(PoisonError::into_inner);
    actors
        .values()
        .map(|shared| shared.home.handle.clone())
        .collect()
}

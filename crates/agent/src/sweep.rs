//! The sweep: what the kernel holds under this installation's id and belongs to no instance is removed.
//! It never touches an instance's directory, and so no disk: an instance that is not recorded means that the
//! record is wrong, and stops the sweep (see [`HostLink::sync`](warren_core::ports::HostLink::sync)).

use crate::context::{Actors, Context};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use warren_core::Handle;
use warren_core::inventory::Item;
use warren_crashpoint::reached;

/// Between two looks at what the kernel holds. A leak is removed when two looks in a row found it, so
/// nothing in the making is ever taken for one.
const SWEEP: Duration = Duration::from_secs(30);
/// Between the first two: what an earlier process left is gone soon after the next one has started.
const FIRST: Duration = Duration::from_secs(1);

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
    let mut pause = FIRST;
    loop {
        let (Some(context), Some(actors)) = (context.upgrade(), actors.upgrade()) else {
            return;
        };
        suspects = sweep_once(&context, &actors, &suspects).await;
        let clock = Arc::clone(&context.ports.clock);
        drop((context, actors));
        clock.sleep(pause).await;
        pause = SWEEP;
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
    let handles: BTreeSet<Handle> = owned.iter().filter_map(owner).collect();
    for handle in handles.difference(&known).cloned() {
        if !suspects.contains(&handle) {
            next.insert(handle);
            continue;
        }
        match network.sweep(&handle).await {
            Ok(()) => {
                reached("sweep.leak-removed");
                tracing::warn!(%handle, "removed a network attachment that belonged to no instance")
            }
            Err(error) => {
                tracing::warn!(%handle, %error, "cannot remove a leaked network attachment")
            }
        }
    }
    next
}

fn owner(item: &Item) -> Option<Handle> {
    item.part.handle().cloned()
}

fn handles(actors: &Actors) -> BTreeSet<Handle> {
    let actors = actors.lock().unwrap_or_else(PoisonError::into_inner);
    actors
        .values()
        .map(|shared| shared.home.handle.clone())
        .collect()
}

//! How much a client may send ahead of a guest that does not take it.
//!
//! russh grants a client new room as soon as data has come, whether somebody has taken it or not, and its only brake is to stand
//! still with the whole session. A command that reads nothing until its own output is taken (`ssh … cat <file >copy`) would then
//! wait for ever. So nothing here ever stands still: what has come is counted, and while more than [`ENOUGH`] waits, a client is
//! given room for [`TRICKLE`] bytes only, and each such piece is looked at after [`PAUSE`]. Memory is bounded by what a
//! client may have on its way, [`ROOM`] for each channel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::ChannelId;
use tokio::sync::Notify;
use tokio::time::timeout;

/// What a client may send ahead on a channel.
pub(crate) const ROOM: u32 = 2 << 20;
/// With this much waiting for a guest, no more is asked for.
const ENOUGH: usize = 1 << 20;
/// Room while there is no room. More than one byte, because russh halves it to decide when to grant it again.
const TRICKLE: u32 = 2;
/// How long a piece may be kept from the session while there is no room.
const PAUSE: Duration = Duration::from_millis(20);

/// What waits, for all channels of a session.
#[derive(Clone, Default)]
pub(crate) struct Backlog(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<HashMap<ChannelId, usize>>,
    taken: Notify,
}

impl Backlog {
    fn waiting(&self) -> MutexGuard<'_, HashMap<ChannelId, usize>> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes have come.
    pub(crate) fn came(&self, channel: ChannelId, bytes: usize) {
        *self.waiting().entry(channel).or_default() += bytes;
    }

    /// So many bytes of them are with the guest.
    pub(crate) fn taken(&self, channel: ChannelId, bytes: usize) {
        if let Some(waiting) = self.waiting().get_mut(&channel) {
            *waiting = waiting.saturating_sub(bytes);
        }
        self.0.taken.notify_waiters();
    }

    /// The channel is closed.
    pub(crate) fn forget(&self, channel: ChannelId) {
        self.waiting().remove(&channel);
        self.0.taken.notify_waiters();
    }

    /// What a client may send from now on.
    pub(crate) fn room(&self) -> u32 {
        if self.waiting().values().any(|waiting| *waiting > ENOUGH) {
            TRICKLE
        } else {
            ROOM
        }
    }

    /// Returns when there is room, and after [`PAUSE`] in any case.
    pub(crate) async fn pause(&self) {
        if self.room() == ROOM {
            return;
        }
        let room = async {
            loop {
                let taken = self.0.taken.notified();
                tokio::pin!(taken);
                taken.as_mut().enable();
                if self.room() == ROOM {
                    return;
                }
                taken.await;
            }
        };
        // Late or not, the session goes on.
        let _ = timeout(PAUSE, room).await;
    }
}

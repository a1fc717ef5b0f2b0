//! Back-pressure: how many instances may be on their way up at the same time. Who comes when all places are taken is
//! asked to come again and is not queued: a queue would only hide the load from whoever makes it. Nothing else needs a
//! place, so that everything can be looked at, stopped and deleted however many are on their way; and a place is given
//! back when its instance is up, is over or is gone, or has taken as long as a client waits: one that hangs holds up
//! nobody for good.

use super::{App, AppError, View};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_api::Code;
use warren_core::state::StateName;

pub(super) struct Starts {
    places: Arc<Semaphore>,
    all: usize,
}

/// A place among those on their way up.
pub(super) struct Place(OwnedSemaphorePermit);

impl Starts {
    pub(super) fn new(at_once: usize) -> Self {
        let all = at_once.max(1);
        Starts {
            places: Arc::new(Semaphore::new(all)),
            all,
        }
    }
}

impl App {
    /// How many are on their way up.
    pub(super) fn starts_under_way(&self) -> usize {
        let starts = &self.0.starts;
        starts.all.saturating_sub(starts.places.available_permits())
    }

    /// A place for one more.
    pub(super) fn place_on_the_way_up(&self) -> Result<Place, AppError> {
        let places = Arc::clone(&self.0.starts.places);
        places.try_acquire_owned().map(Place).map_err(|_| {
            AppError::coded(
                Code::TooManyRequests,
                format!(
                    "{} instances are on their way up, as many as may be: try again when some are",
                    self.0.starts.all
                ),
            )
        })
    }

    /// Gives the place back when the instance is up or over.
    pub(super) fn hold_until_up(&self, place: Place, view: &View) {
        let app = self.clone();
        let id = view.intent.id.clone();
        self.0.tasks.spawn(async move {
            let limit = app.0.settings.start_wait;
            let up = |view: &View| {
                view.is_current()
                    && (matches!(
                        view.status.state.name(),
                        StateName::Running | StateName::Paused
                    ) || view.has_ended())
            };
            app.wait_until(&id, limit, up).await;
            let Place(permit) = place;
            drop(permit);
        });
    }
}

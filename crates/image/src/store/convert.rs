//! One conversion a digest, however many ask for it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::FutureExt as _;
use futures::future::Shared;
use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::images::ProgressSink;

use super::publish::Temporary;
use super::{ImageStore, StoreError};
use crate::digest::Digest;
use crate::pipeline::{self, Converted, LayerInput, Step};
use crate::source::manifest::Layer;

type Work = Pin<Box<dyn Future<Output = Result<(), Arc<StoreError>>> + Send>>;

/// Conversions under way, by the digest of the manifest.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Digest, Weak<Flight>>>);

/// A conversion that lives as long as somebody waits for it.
pub(super) struct Flight {
    work: Shared<Work>,
    listeners: Listeners,
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flight(…)")
    }
}

/// Everybody who wants to see the progress of one conversion.
#[derive(Clone, Default)]
pub(super) struct Listeners(Arc<Mutex<Vec<ProgressSink>>>);

impl Listeners {
    fn add(&self, sink: ProgressSink) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sink);
    }

    pub(super) fn tell(&self, event: &ImageProgress) {
        for sink in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sink(event.clone());
        }
    }
}

/// Nothing starts while this is held.
pub(super) struct Quiet<'a>(
    #[expect(dead_code, reason = "held for its lock")]
    MutexGuard<'a, HashMap<Digest, Weak<Flight>>>,
);

impl Flights {
    /// Waits for the conversion of `digest`: the one under way, or the one `start` makes.
    pub(super) async fn join(
        &self,
        digest: &Digest,
        progress: ProgressSink,
        start: impl FnOnce(Listeners) -> Work,
    ) -> Result<(), Arc<StoreError>> {
        let flight = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|_, flight| flight.strong_count() > 0);
            match flights.get(digest).and_then(Weak::upgrade) {
                Some(flight) => {
                    flight.listeners.add(progress);
                    flight
                }
                None => {
                    let listeners = Listeners::default();
                    listeners.add(progress);
                    let flight = Arc::new(Flight {
                        work: start(listeners.clone()).shared(),
                        listeners,
                    });
                    flights.insert(digest.clone(), Arc::downgrade(&flight));
                    flight
                }
            }
        };
        flight.work.clone().await
    }

    /// Keeps new conversions from starting, `None` when some are under way.
    pub(super) fn pause(&self) -> Option<Quiet<'_>> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = flights.values().all(|flight| flight.strong_count() == 0);
        idle.then_some(Quiet(flights))
    }
}

/// What to convert.
pub(super) struct Job {
    pub(super) layers: Vec<Layer>,
    pub(super) inputs: Vec<LayerInput>,
}

impl ImageStore {
    /// Converts on a thread that may block, and publishes. `target` names the disk from what came out. Dropping the
    /// future stops the thread; what it had written is gone with it.
    pub(super) fn convert(
        &self,
        job: Job,
        uuid: Option<[u8; 16]>,
        listeners: Listeners,
        target: Box<dyn FnOnce(&Converted) -> std::path::PathBuf + Send>,
    ) -> impl Future<Output = Result<Converted, StoreError>> + Send + use<> {
        let limits = self.options.limits;
        let disks = self.root.join("disks").join("new");
        async move {
            let cancel = CancellationToken::new();
            let _cancel_on_drop = cancel.clone().drop_guard();
            let work = move || {
                let writing = |source| StoreError::Disk {
                    what: "writing the disk",
                    source,
                };
                let mut temporary = Temporary::beside(&disks).map_err(writing)?;
                let file = temporary.file().try_clone().map_err(writing)?;
                let watch = |index: usize, step: Step| {
                    let Some(layer) = job.layers.get(index) else {
                        return;
                    };
                    let (phase, bytes) = match step {
                        Step::Read(bytes) => (LayerPhase::Converting, bytes),
                        Step::Done => (LayerPhase::Done, layer.size),
                    };
                    listeners.tell(&layer_event(layer, phase, bytes));
                };
                let converted =
                    pipeline::convert(job.inputs, file, uuid, &limits, &cancel, &watch)?;
                listeners.tell(&ImageProgress::Finishing);
                if cancel.is_cancelled() {
                    return Err(pipeline::ConvertError::Cancelled.into());
                }
                let path = target(&converted);
                temporary.publish(&path).map_err(writing)?;
                Ok(converted)
            };
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|error| StoreError::Disk {
                    what: "converting",
                    source: std::io::Error::other(error),
                })?
        }
    }
}

pub(super) fn layer_event(layer: &Layer, phase: LayerPhase, bytes: u64) -> ImageProgress {
    ImageProgress::Layer {
        digest: layer.digest.to_string(),
        phase,
        bytes,
        total: layer.size,
    }
}

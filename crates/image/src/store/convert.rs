//! One conversion a digest, however many ask for it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::Shared;
use tokio_util::sync::CancellationToken;
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::images::ProgressSink;
use warren_crashpoint::reached;

use super::content::{Content, Lease};
use super::disks::Disks;
use super::keep::{Copy, Keeper};
use super::publish::Temporary;
use super::pull::TICK;
use super::{ImageStore, StoreError};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::pipeline::{self, LayerInput, LayerOutput, Step};
use crate::source::layout::Known;
use crate::source::manifest::{Image, Layer};

pub(super) type Work = Pin<Box<dyn Future<Output = Result<(), Arc<StoreError>>> + Send>>;

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
#[derive(Clone)]
pub(super) struct Listeners(Arc<Mutex<Vec<ProgressSink>>>);

impl Listeners {
    pub(super) fn of(sink: ProgressSink) -> Self {
        Listeners(Arc::new(Mutex::new(vec![sink])))
    }

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
                    let listeners = Listeners::of(progress);
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
}

/// What to convert.
pub(super) struct Job {
    pub(super) known: Known,
    pub(super) inputs: Vec<LayerInput>,
    pub(super) copies: Copies,
}

/// Whether layers become blobs on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    /// Those that are none yet.
    Missing,
    /// They come from blobs, or something else makes blobs of them.
    None,
}

impl ImageStore {
    /// Converts on a thread that may block, and publishes. Gives the image and a lease on what was not known of it before.
    /// Dropping the future stops the thread; what it had written is gone with it.
    pub(super) fn convert(
        &self,
        job: Job,
        listeners: Listeners,
    ) -> impl Future<Output = Result<(Image, Lease), StoreError>> + Send + use<> {
        let limits = self.options.limits;
        let (content, disks) = (Arc::clone(&self.content), Arc::clone(&self.disks));
        async move {
            let cancel = CancellationToken::new();
            let _cancel_on_drop = cancel.clone().drop_guard();
            let work = move || {
                let conversion = Conversion {
                    content: &content,
                    disks: &disks,
                    limits: &limits,
                    cancel: &cancel,
                    listeners: &listeners,
                };
                conversion.run(job)
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

struct Conversion<'a> {
    content: &'a Content,
    disks: &'a Disks,
    limits: &'a Limits,
    cancel: &'a CancellationToken,
    listeners: &'a Listeners,
}

impl Conversion<'_> {
    fn run(&self, job: Job) -> Result<(Image, Lease), StoreError> {
        let writing = |source| StoreError::Disk {
            what: "writing the disk",
            source,
        };
        let mut temporary = Temporary::beside(&self.disks.beside()).map_err(writing)?;
        let file = temporary.file().try_clone().map_err(writing)?;
        let shown = shown(&job);
        let told = Pace::default();
        let watch = |index: usize, step: Step| {
            let Some((digest, size)) = shown.get(index) else {
                return;
            };
            let (phase, bytes) = match step {
                // Told too often, it would crowd out what matters on its way to the user.
                Step::Read(_) if !told.is_due() => return,
                Step::Read(bytes) => (LayerPhase::Converting, bytes),
                Step::Done => (LayerPhase::Done, *size),
            };
            self.listeners.tell(&ImageProgress::Layer {
                digest: digest.clone(),
                phase,
                bytes,
                total: *size,
            });
        };
        let keeping = |source| StoreError::Disk {
            what: "keeping the layers",
            source,
        };
        let keeper = Keeper::start().map_err(keeping)?;
        let inputs = self.tee(job.inputs, job.copies, &keeper);
        // Without a UUID of its own: then only the layers decide about its bytes, whatever manifest names them.
        let converted = pipeline::convert(inputs, file, None, self.limits, self.cancel, &watch)?;
        self.listeners.tell(&ImageProgress::Finishing);
        // The last layer becomes durable at the same time.
        temporary.sync().map_err(writing)?;
        let copies = keeper.finish().map_err(keeping)?;
        if self.cancel.is_cancelled() {
            return Err(pipeline::ConvertError::Cancelled.into());
        }
        reached("convert.written");
        let image = known_now(job.known, &converted.layers, &copies)?;
        let lease = self.content.lease(image.contents());
        for (index, copy) in copies {
            if let Some(layer) = converted.layers.get(index) {
                copy.publish(self.content, &layer.digest).map_err(keeping)?;
                reached("convert.layer-published");
            }
        }
        self.disks.unseal(image.digest()).map_err(writing)?;
        temporary
            .show(&self.disks.path(image.digest()))
            .map_err(writing)?;
        reached("convert.disk-published");
        Ok((image, lease))
    }

    fn tee(&self, inputs: Vec<LayerInput>, copies: Copies, keeper: &Keeper) -> Vec<LayerInput> {
        let is_here = |input: &LayerInput| match (&input.digest, input.size) {
            (Some(digest), Some(size)) => self.content.size(digest) == Some(size),
            (None, _) | (_, None) => false,
        };
        let teed = |(index, input): (usize, LayerInput)| match copies {
            Copies::Missing if !is_here(&input) => keeper.tee(index, input, self.content),
            Copies::Missing | Copies::None => input,
        };
        inputs.into_iter().enumerate().map(teed).collect()
    }
}

/// Lets something happen ten times a second at most.
#[derive(Debug, Default)]
struct Pace(Mutex<Option<Instant>>);

impl Pace {
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= TICK);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// What each layer is called in progress, and its size: one that is not known by its digest goes by its diff-id or its
/// place.
fn shown(job: &Job) -> Vec<(String, u64)> {
    let name = |(index, input): (usize, &LayerInput)| {
        let digest = input.digest.as_ref().or(input.diff_id.as_ref());
        let name = digest.map_or_else(|| format!("layer {index}"), Digest::to_string);
        (name, input.size.unwrap_or_default())
    };
    job.inputs.iter().enumerate().map(name).collect()
}

/// The image, now that its layers have been read.
fn known_now(
    known: Known,
    layers: &[LayerOutput],
    copies: &[(usize, Copy)],
) -> Result<Image, StoreError> {
    let unmade = match known {
        Known::Image(image) => return Ok(*image),
        Known::Committed(committed) => {
            let added = layers.get(committed.base.layers.len());
            return Ok(committed.make(added.map(made).as_ref())?);
        }
        Known::Unmade(unmade) => unmade,
    };
    let layers = layers.iter().enumerate().map(|(index, layer)| {
        let copy = copies.iter().find(|(of, _)| *of == index);
        let (_, copy) = copy.ok_or_else(|| StoreError::Disk {
            what: "keeping the layers",
            source: std::io::ErrorKind::UnexpectedEof.into(),
        })?;
        Ok((made(layer), copy.compression))
    });
    Ok(unmade.make(layers.collect::<Result<_, StoreError>>()?)?)
}

/// A layer of which nothing was known before it was read.
fn made(layer: &LayerOutput) -> Layer {
    Layer {
        digest: layer.digest.clone(),
        size: layer.size,
        diff_id: layer.diff_id.clone(),
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

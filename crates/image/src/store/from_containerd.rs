//! Pulls that a containerd on this host can answer.

use warren_core::image::ImageRecord;
use warren_core::ports::images::ProgressSink;

use super::{ImageStore, NewRecord, StoreError};
use crate::source::Reference;
use crate::source::containerd::{Containerd, Offer};
use crate::source::manifest::{Platform, Wanted};

impl ImageStore {
    /// What containerd has of an image, where one is configured. One that is not there, or whose image cannot be used,
    /// stands in nobody's way: the registry is asked then.
    pub(super) async fn offered(
        &self,
        reference: &Reference,
        platform: &Platform,
        wanted: Wanted,
    ) -> Option<Offer> {
        let socket = self.options.containerd.clone()?;
        let containerd = Containerd::new(socket, self.options.stall);
        match containerd.find(reference, platform, wanted).await {
            Ok(offer) => offer,
            Err(error) => {
                let socket = containerd.socket().display();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%socket, %reference, %error, cause, "containerd gives no image; the registry is asked");
                None
            }
        }
    }

    pub(super) async fn take_offer(
        &self,
        new: NewRecord,
        offer: Offer,
        progress: &ProgressSink,
    ) -> Result<ImageRecord, StoreError> {
        self.load_known(new, offer.image, offer.inputs, progress)
            .await
    }
}

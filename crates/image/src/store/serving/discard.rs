//! Tags and manifests that are taken away, with the images that were recorded for them.

use std::collections::BTreeSet;

use warren_core::ports::registry::ManifestName;
use warren_crashpoint::reached;

use super::error::ServeError;
use super::now;
use crate::digest::Digest;
use crate::store::ImageStore;

impl ImageStore {
    pub(super) async fn take(
        &self,
        repository: &str,
        name: &ManifestName,
        in_use: &[String],
    ) -> Result<(), ServeError> {
        let view = self.view(repository)?;
        let unknown = |name: &str| ServeError::ManifestUnknown {
            repository: repository.to_owned(),
            name: name.to_owned(),
        };
        let records = match name {
            ManifestName::Tag(tag) => {
                view.tag(tag).ok_or_else(|| unknown(tag))?;
                view.records_of_tag(tag)
            }
            ManifestName::Digest(text) => {
                let digest: Digest = text.parse()?;
                if !view.has_manifest(&digest) {
                    return Err(unknown(text));
                }
                view.records_of_manifest(&digest)
            }
        };
        let going: BTreeSet<&String> = records.iter().map(|stored| &stored.record.id).collect();
        for stored in &records {
            let digest = &stored.record.digest;
            let last = !view
                .all
                .iter()
                .any(|other| other.record.digest == *digest && !going.contains(&other.record.id));
            if last && in_use.contains(digest) {
                return Err(ServeError::InUse(stored.record.name.clone()));
            }
        }
        // Records first: a tag whose records are gone is gone.
        for stored in &records {
            self.records.remove(&stored.record.id).await?;
        }
        reached("discard.records-removed");
        let now = now();
        self.serving
            .shelf
            .change(repository, |repository| match name {
                ManifestName::Tag(tag) => repository.take_tag(tag, now),
                ManifestName::Digest(text) => text
                    .parse()
                    .is_ok_and(|digest| repository.take_manifest(&digest, now)),
            })
            .await?;
        reached("discard.repository-written");
        for stored in &records {
            self.collect_removed(stored, in_use).await?;
        }
        Ok(())
    }
}

//! Commands about the room that things take, and about what becomes of them.

use super::{Outcome, Session};
use crate::cli::args::{DfArgs, OutputFormat, PruneArgs, VerifyArgs};
use crate::cli::output::{Chatter, Detail, Field, Look, Row};
use crate::cli::text::{ago, bytes, short_digest};
use serde::Serialize;
use time::OffsetDateTime;
use warren_api::client::ListQuery;
use warren_api::image::ImageStatus;
use warren_api::storage::{
    ImagePartCheck, ImagePartKind, ImagePartState, ImageStorage, ImageVerification,
    InstanceStorage, LayerStorage, PruneImagesRequest, StorageUsage, VerifyImageRequest,
};

/// One kind of thing that takes room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Summary {
    kind: &'static str,
    /// How many there are; nothing where they are not counted.
    count: Option<usize>,
    /// How many of them are in use.
    active: Option<usize>,
    size: u64,
    reclaimable: Option<u64>,
}

impl Row for Summary {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        let number = |count: Option<usize>| count.map(|n| n.to_string()).unwrap_or_default();
        let reclaimable = match self.reclaimable {
            Some(part) => format!("{} ({} %)", bytes(part), percent(part, self.size)),
            None => String::new(),
        };
        vec![
            Field::new(self.kind),
            Field::new(number(self.count)),
            Field::new(number(self.active)),
            Field::new(bytes(self.size)),
            Field::new(reclaimable),
        ]
    }

    fn name(&self) -> String {
        self.kind.to_owned()
    }
}

fn percent(part: u64, of: u64) -> u64 {
    (u128::from(part) * 100)
        .checked_div(u128::from(of))
        .and_then(|percent| u64::try_from(percent).ok())
        .unwrap_or_default()
}

/// What takes room, a line for each kind. What has nothing of its kind is left out where people seldom have it.
fn summaries(usage: &StorageUsage) -> Vec<Summary> {
    let of = |size: fn(&InstanceStorage) -> u64| usage.instances.iter().map(size).sum();
    let plain = |kind, size| Summary {
        kind,
        count: None,
        active: None,
        size,
        reclaimable: None,
    };
    let mut lines = vec![
        Summary {
            kind: "images",
            count: Some(usage.images.len()),
            active: Some(usage.images.iter().filter(|it| it.instances > 0).count()),
            size: usage.images_bytes,
            reclaimable: Some(usage.reclaimable_bytes),
        },
        Summary {
            count: Some(usage.instances.len()),
            ..plain("instance disks", of(|it| it.disk_bytes))
        },
        plain("logs", of(|it| it.logs_bytes)),
        plain("other", of(|it| it.other_bytes)),
        plain("empty disks", usage.templates_bytes),
    ];
    if usage.set_aside_bytes > 0 {
        lines.push(plain("set aside", usage.set_aside_bytes));
    }
    lines.push(plain("total", usage.total_bytes));
    lines
}

/// `warren system df`
pub(super) async fn df(session: &Session, args: DfArgs) -> Outcome {
    let usage = session.client.storage().await?;
    match session.out.format(OutputFormat::Table) {
        OutputFormat::Json => session.out.json(&usage)?,
        OutputFormat::Yaml => session.out.yaml(&usage)?,
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
            session.out.list(&summaries(&usage), Detail::Short)?;
            if let Some(budget) = usage.image_budget_bytes {
                session.out.note(format!(
                    "images may take {} before those go that were not used for longest",
                    bytes(budget)
                ));
            }
            if args.verbose {
                session.out.line("")?;
                session.out.list(&usage.images, Detail::Short)?;
                session.out.line("")?;
                session.out.list(&usage.layers, Detail::Short)?;
                session.out.line("")?;
                session.out.list(&usage.instances, Detail::Short)?;
            }
        }
    }
    Ok(0)
}

impl Row for ImageStorage {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec![
            "IMAGE",
            "ID",
            "SIZE",
            "SHARED",
            "UNIQUE",
            "RECLAIMABLE",
            "INSTANCES",
            "LAST USED",
        ]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        let now = OffsetDateTime::now_utc();
        let used = self.last_used_at.map(|then| ago(then, now));
        vec![
            Field::new(&self.name),
            Field::new(&self.id),
            Field::new(bytes(self.size_bytes)),
            Field::new(bytes(self.shared_bytes)),
            Field::new(bytes(self.unique_bytes)),
            Field::new(bytes(self.reclaimable_bytes)),
            Field::new(self.instances.to_string()),
            Field::new(used.unwrap_or_default()),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Row for LayerStorage {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["LAYER", "SIZE", "IMAGES"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        vec![
            Field::new(short_digest(&self.digest)),
            Field::new(bytes(self.size_bytes)),
            Field::new(self.images.to_string()),
        ]
    }

    fn name(&self) -> String {
        self.digest.clone()
    }
}

impl Row for InstanceStorage {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["INSTANCE", "ID", "DISK", "LOGS", "OTHER"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        vec![
            Field::new(&self.name),
            Field::new(&self.id),
            Field::new(bytes(self.disk_bytes)),
            Field::new(bytes(self.logs_bytes)),
            Field::new(bytes(self.other_bytes)),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// `warren prune`
pub(super) async fn prune(session: &Session, args: PruneArgs) -> Outcome {
    let request = PruneImagesRequest {
        all: args.all.then_some(true),
        dry_run: args.dry_run.then_some(true),
    };
    let pruned = session.client.prune_images(&request).await?;
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&pruned)?,
        OutputFormat::Yaml => session.out.yaml(&pruned)?,
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
            for image in &pruned.images {
                session.out.line(match session.out.chatter() {
                    Chatter::Normal => &image.name,
                    Chatter::Quiet => &image.id,
                })?;
            }
        }
    }
    let verb = match args.dry_run {
        true => "would remove",
        false => "removed",
    };
    session.out.note(format!(
        "{verb} {}, {} and {}: {}",
        counted(pruned.images.len(), "image"),
        counted(pruned.disks, "disk"),
        counted(pruned.blobs, "layer or document"),
        bytes(pruned.reclaimed_bytes)
    ));
    Ok(0)
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {}", what.replacen(' ', "s ", 1) + "s"),
    }
}

impl Row for ImageVerification {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["IMAGE", "DIGEST", "FOUND"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        let found: Vec<String> = self.parts.iter().filter_map(finding).collect();
        let field = match (self.sound, found.is_empty()) {
            (true, true) => Field::new("sound").looking(Look::Good),
            (true, false) => Field::new(found.join(", ")).looking(Look::Good),
            (false, _) => Field::new(found.join(", ")).looking(Look::Bad),
        };
        vec![
            Field::new(&self.name),
            Field::new(short_digest(&self.digest)),
            field,
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What is to be said of a part; nothing when it is as it came.
fn finding(check: &ImagePartCheck) -> Option<String> {
    let state = match check.state {
        ImagePartState::Sound => return None,
        ImagePartState::Missing => "missing",
        ImagePartState::Damaged => "damaged",
        ImagePartState::Unknown => "of unknown state",
        ImagePartState::Repaired => "made again",
    };
    Some(match check.part {
        ImagePartKind::Manifest => format!("manifest {state}"),
        ImagePartKind::Configuration => format!("configuration {state}"),
        ImagePartKind::Layer => format!("layer {} {state}", short_digest(&check.digest)),
        ImagePartKind::Disk => format!("disk {state}"),
    })
}

/// `warren image verify`
pub(super) async fn verify(session: &Session, args: VerifyArgs) -> Outcome {
    let wanted = match args.all {
        false => args.images,
        true => {
            let images = session.client.images(&ListQuery::default()).await?;
            let here = images
                .into_iter()
                .filter(|it| it.status == ImageStatus::Ready);
            here.map(|image| image.id).collect()
        }
    };
    let mut found = Vec::new();
    let mut failed = false;
    // One after the other: each reads as fast as the disk gives.
    for image in wanted {
        let request = VerifyImageRequest {
            image,
            repair: args.repair.then_some(true),
        };
        match session.client.verify_image(&request).await {
            Ok(verification) => found.push(verification),
            Err(error) => {
                session.out.error(&error.into());
                failed = true;
            }
        }
    }
    session.out.list(&found, Detail::Short)?;
    let unsound: Vec<&ImageVerification> = found.iter().filter(|it| !it.sound).collect();
    for image in &unsound {
        if let Some(advice) = &image.advice {
            session.out.note(format!("{}: {advice}", image.name));
        }
    }
    Ok(u8::from(failed || !unsound.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_each_kind() {
        let usage = StorageUsage {
            instances: vec![
                InstanceStorage {
                    id: "a".into(),
                    name: "a".into(),
                    disk_bytes: 100,
                    logs_bytes: 10,
                    other_bytes: 1,
                };
                2
            ],
            images_bytes: 400,
            reclaimable_bytes: 100,
            total_bytes: 622,
            ..StorageUsage::default()
        };
        let lines = summaries(&usage);
        let sizes: Vec<(&str, u64)> = lines.iter().map(|line| (line.kind, line.size)).collect();
        assert_eq!(
            sizes,
            [
                ("images", 400),
                ("instance disks", 200),
                ("logs", 20),
                ("other", 2),
                ("empty disks", 0),
                ("total", 622)
            ]
        );
        assert_eq!(
            lines[0].cells(Detail::Short).last(),
            Some(&Field::new("100 B (25 %)"))
        );
        assert_eq!(percent(1, 0), 0);
    }

    #[test]
    fn counts_are_read_as_people_say_them() {
        assert_eq!(counted(1, "image"), "1 image");
        assert_eq!(counted(0, "disk"), "0 disks");
        assert_eq!(counted(2, "layer or document"), "2 layers or documents");
    }
}

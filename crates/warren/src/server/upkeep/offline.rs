//! The same on a data directory that no server holds.

use super::super::clock::SystemClock;
use super::super::config::Config;
use super::super::data_dir::DataDir;
use super::super::{record, wire};
use crate::cli::CliError;
use std::path::Path;
use std::sync::Arc;
use warren_agent::{host_records, remove_leak, take_inventory};
use warren_api::upkeep::{Check, FailedRepair, Recovery};
use warren_control::records::{self, Missing, Records};
use warren_core::PortError;
use warren_core::inventory::{
    Difference, DifferenceKind, Expectation, Item, Kind, Part, Remedy, RunOver, compare,
};
use warren_core::ports::host_link::HostRecords;
use warren_store::{Older, SqliteStore};

fn said(error: PortError) -> CliError {
    match error.hint {
        Some(hint) => CliError::refused(error.message, hint),
        None => CliError::plain(error.message),
    }
}

fn wired(error: anyhow::Error) -> CliError {
    CliError::plain(format!("{error:#}"))
}

/// What the store says, where there is a store.
struct Recorded {
    store: Option<Arc<SqliteStore>>,
    records: Records,
    doubt: Option<String>,
}

async fn recorded(data: &DataDir, older: Older) -> Result<Recorded, PortError> {
    if !data.store().exists() {
        // Looking must not make one: the next server would take it for the record.
        return Ok(Recorded {
            store: None,
            records: Records::default(),
            doubt: Some("there is no record in this data directory".to_owned()),
        });
    }
    let record::Opened { store, doubt } = record::open(data, older).await?;
    Ok(Recorded {
        records: Records::read(&*store).await?,
        store: Some(store),
        doubt,
    })
}

/// Looks, repairs if asked, and looks again.
pub(super) async fn check(
    config: &Config,
    data: &DataDir,
    repair: bool,
) -> Result<Check, CliError> {
    let clock = Arc::new(SystemClock::going_on(data.uptime()));
    let (settings, ports) = wire::adapters(config, data, clock).map_err(wired)?;
    let mode = ports.network.report().await.map_err(said)?.mode;
    // Who only looks changes nothing.
    let older = if repair {
        Older::BringUpToDate
    } else {
        Older::Refuse
    };
    let recorded = recorded(data, older).await.map_err(said)?;
    let look = async |records: &Records| {
        let inventory = take_inventory(&settings, &ports).await?;
        let host = host_records(&data.instances())?;
        let expected: Vec<Expectation> = records
            .intents
            .values()
            .map(|(intent, _)| Expectation::of_resting(intent, over(&host, intent), mode))
            .collect();
        let mut differences: Vec<Difference> = recorded
            .doubt
            .iter()
            .filter(|_| !inventory.is_empty())
            .map(|reason| in_doubt(reason))
            .collect();
        differences.extend(records.differences());
        differences.extend(compare(&expected, &inventory));
        differences.extend(records::unreadable(&host));
        Ok::<_, PortError>((inventory, differences))
    };
    let (mut inventory, mut differences) = look(&recorded.records).await.map_err(said)?;
    let mut repaired = Vec::new();
    let mut failed = Vec::new();
    if repair {
        for difference in &differences {
            if difference.remedy != Remedy::Repair {
                continue;
            }
            let outcome = match (difference.item.kind, &recorded.store) {
                (Kind::Key, Some(store)) => records::repair(&**store, difference).await,
                _ => remove_leak(&settings, &ports, &difference.item).await,
            };
            match outcome {
                Ok(()) => repaired.push(difference.into()),
                Err(error) => failed.push(FailedRepair {
                    difference: difference.into(),
                    error: error.sentence(),
                }),
            }
        }
        let records = match &recorded.store {
            Some(store) => Records::read(&**store).await.map_err(said)?,
            None => Records::default(),
        };
        (inventory, differences) = look(&records).await.map_err(said)?;
    }
    if let Some(store) = &recorded.store {
        store.close().await.map_err(said)?;
    }
    Ok(Check {
        repaired,
        failed,
        ..Check::of(&inventory, &differences)
    })
}

fn in_doubt(reason: &str) -> Difference {
    Difference {
        kind: DifferenceKind::Damaged,
        item: Item::new(Kind::Key, "the record of intent", Part::Unknown),
        instance: None,
        sentence: reason.to_owned(),
        remedy: Remedy::Recover,
    }
}

fn over(host: &HostRecords, intent: &warren_core::instance::InstanceIntent) -> RunOver {
    let ended = host
        .over
        .iter()
        .any(|(id, run)| *id == intent.id && *run >= intent.run);
    if ended { RunOver::Yes } else { RunOver::No }
}

/// Rebuilds the record, making the store where there is none.
pub(super) async fn recover(data: &DataDir, missing: Missing) -> Result<Recovery, CliError> {
    let record::Opened { store, .. } = record::open(data, Older::BringUpToDate)
        .await
        .map_err(said)?;
    let host = host_records(&data.instances()).map_err(said)?;
    let recovery = records::recover(&*store, &host, missing)
        .await
        .map_err(said)?;
    store.close().await.map_err(said)?;
    Ok(recovery)
}

/// Copies the store into the new file `to`.
pub(super) async fn backup(data: &DataDir, to: &Path) -> Result<(), CliError> {
    if !data.store().exists() {
        return Err(CliError::plain(format!(
            "there is no record in {}",
            data.root().display()
        )));
    }
    let record::Opened { store, .. } = record::open(data, Older::BringUpToDate)
        .await
        .map_err(said)?;
    store.backup_to(to).await.map_err(said)?;
    store.close().await.map_err(said)
}

/// Puts a backup in the store's place.
pub(super) async fn restore(data: &DataDir, from: &Path) -> Result<(), CliError> {
    let aside = data.set_aside().join(format!(
        "store-{}",
        time::OffsetDateTime::now_utc().unix_timestamp()
    ));
    std::fs::create_dir_all(&aside).map_err(|source| CliError::File {
        what: aside.display().to_string(),
        source,
    })?;
    let (from, to) = (from.to_owned(), data.store());
    let restored =
        tokio::task::spawn_blocking(move || warren_store::restore(&from, &to, &aside)).await;
    match restored {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(said(error)),
        Err(error) => Err(CliError::plain(error.to_string())),
    }
}

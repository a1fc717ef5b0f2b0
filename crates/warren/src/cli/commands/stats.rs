//! `warren stats`: what instances use, once or again and again.

use super::{Outcome, Session};
use crate::cli::args::{OutputFormat, StatsArgs};
use crate::cli::failure::CliError;
use crate::cli::output::{Detail, Field, Row, Stream};
use crate::cli::text::bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use warren_api::client::ListQuery;
use warren_api::instance::{InstanceState, InstanceStats};

/// Between two looks of a refreshed table.
const PERIOD: Duration = Duration::from_secs(2);
/// Between the two looks that a processor share needs when it is printed once.
const SHORT_PERIOD: Duration = Duration::from_millis(500);

/// One instance's figures, and the share of one processor since the last look.
#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    stats: InstanceStats,
    #[serde(skip)]
    share: Option<f64>,
}

/// Percent of one processor between two looks.
fn share(before: f64, now: f64, between: Duration) -> Option<f64> {
    let seconds = between.as_secs_f64();
    // A restart begins a new count.
    (seconds > 0.0 && now >= before).then(|| (now - before) / seconds * 100.0)
}

impl Row for Figures {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec![
            "NAME", "CPU", "CPUS", "MEMORY", "OF", "IN GUEST", "NET IN", "NET OUT", "DISK",
        ]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        let stats = &self.stats;
        vec![
            Field::new(&stats.instance_name),
            Field::new(
                self.share
                    .map_or_else(|| "-".to_owned(), |share| format!("{share:.1}%")),
            ),
            Field::new(stats.allocated_vcpus.to_string()),
            Field::new(bytes(stats.memory_rss_bytes)),
            Field::new(bytes(stats.allocated_memory_bytes)),
            Field::new(
                stats
                    .guest_memory_used_bytes
                    .map_or_else(|| "-".to_owned(), bytes),
            ),
            Field::new(bytes(stats.network_rx_bytes)),
            Field::new(bytes(stats.network_tx_bytes)),
            Field::new(bytes(stats.disk_bytes)),
        ]
    }

    fn name(&self) -> String {
        self.stats.instance_name.clone()
    }

    fn id(&self) -> String {
        self.stats.instance_id.clone()
    }
}

/// The figures now, and when each was taken.
struct Look {
    figures: Vec<Figures>,
    taken: BTreeMap<String, (f64, Instant)>,
}

async fn look(
    session: &Session,
    names: &[String],
    before: &BTreeMap<String, (f64, Instant)>,
) -> Result<Look, CliError> {
    let ids: Vec<String> = if names.is_empty() {
        let query = ListQuery {
            states: vec![InstanceState::Running],
            ..ListQuery::default()
        };
        let running = session.client.instances(&query).await?;
        running.into_iter().map(|instance| instance.id).collect()
    } else {
        names.to_vec()
    };
    let answers = futures::future::join_all(
        ids.iter()
            .map(|id| async move { (session.client.instance_stats(id).await, Instant::now()) }),
    )
    .await;
    let mut found = Look {
        figures: Vec::new(),
        taken: BTreeMap::new(),
    };
    for (answer, at) in answers {
        let stats = match answer {
            Ok(stats) => stats,
            // One that was not asked for by name may have stopped meanwhile.
            Err(error) if names.is_empty() && matches!(error.status(), Some(404 | 409)) => continue,
            Err(error) => return Err(error.into()),
        };
        let share = before
            .get(&stats.instance_id)
            .and_then(|(seconds, then)| share(*seconds, stats.cpu_seconds, at - *then));
        found
            .taken
            .insert(stats.instance_id.clone(), (stats.cpu_seconds, at));
        found.figures.push(Figures { stats, share });
    }
    found
        .figures
        .sort_by(|a, b| a.stats.instance_name.cmp(&b.stats.instance_name));
    Ok(found)
}

/// `warren stats`
pub(super) async fn stats(session: &Session, args: StatsArgs) -> Outcome {
    let first = look(session, &args.names, &BTreeMap::new()).await?;
    let for_people = matches!(
        session.out.format(OutputFormat::Table),
        OutputFormat::Table | OutputFormat::Wide
    );
    if !for_people {
        session.out.list(&first.figures, Detail::Short)?;
        return Ok(0);
    }
    let mut taken = first.taken;
    let mut ticks = tokio::time::interval(PERIOD);
    if args.no_stream || !session.out.to_terminal() {
        // The share needs a second look; the deadline of each look is the client's.
        tokio::time::sleep(SHORT_PERIOD).await;
        let second = look(session, &args.names, &taken).await?;
        session.out.list(&second.figures, Detail::Short)?;
        return Ok(0);
    }
    let mut shown = first.figures;
    let mut lines = 0;
    loop {
        let text = session.out.table_text(&shown, Detail::Short);
        // Back to the first line of what was shown before, and nothing left of it below.
        let back = match lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}F\x1b[J"),
        };
        lines = text.lines().count();
        session
            .out
            .bytes(Stream::Stdout, format!("{back}{text}").as_bytes())?;
        ticks.tick().await;
        let next = look(session, &args.names, &taken).await?;
        taken = next.taken;
        shown = next.figures;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_one_processor_and_survives_a_restart() {
        assert_eq!(share(1.0, 2.0, Duration::from_secs(2)), Some(50.0));
        assert_eq!(share(0.0, 4.0, Duration::from_secs(2)), Some(200.0));
        assert_eq!(share(5.0, 0.1, Duration::from_secs(2)), None);
        assert_eq!(share(0.0, 1.0, Duration::ZERO), None);
    }
}

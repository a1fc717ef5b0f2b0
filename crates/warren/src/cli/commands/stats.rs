//! `warren stats`: what instances use, once or again and again.

use super::usage::{Figures, Redrawn, SHORT_PERIOD, Watched};
use super::{Outcome, Session};
use crate::cli::args::{OutputFormat, StatsArgs};
use crate::cli::output::{Detail, Field, Row, Stream};
use crate::cli::terminal::Size;
use crate::cli::text::bytes;
use serde::Serialize;
use std::time::Duration;
use warren_api::InstanceStats;

/// Between two looks of a refreshed table.
const PERIOD: Duration = Duration::from_secs(2);

/// A line of the table. For scripts it is the API's own object: what needs two looks is `warren top`'s.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    stats: InstanceStats,
    /// Percent of one processor.
    #[serde(skip)]
    share: Option<f64>,
}

impl From<Figures> for Line {
    fn from(figures: Figures) -> Self {
        Line {
            stats: figures.stats,
            share: figures.rates.map(|rates| rates.cpu_percent),
        }
    }
}

fn lines(figures: Vec<Figures>) -> Vec<Line> {
    figures.into_iter().map(Line::from).collect()
}

impl Row for Line {
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

/// `warren stats`
pub(super) async fn stats(session: &Session, args: StatsArgs) -> Outcome {
    let mut watched = Watched::new(session, &args.names);
    let mut shown = lines(watched.look().await?);
    let for_people = matches!(
        session.out.format(OutputFormat::Table),
        OutputFormat::Table | OutputFormat::Wide
    );
    if !for_people {
        session.out.list(&shown, Detail::Short)?;
        return Ok(0);
    }
    let mut ticks = tokio::time::interval(PERIOD);
    if args.no_stream || !session.out.to_terminal() {
        // The share needs a second look.
        tokio::time::sleep(SHORT_PERIOD).await;
        let second = lines(watched.look().await?);
        session.out.list(&second, Detail::Short)?;
        return Ok(0);
    }
    let mut drawn = Redrawn::default();
    loop {
        let text = session.out.table_text(&shown, Detail::Short);
        let text = drawn.over(&text, Size::current());
        session.out.bytes(Stream::Stdout, text.as_bytes())?;
        ticks.tick().await;
        shown = lines(watched.look().await?);
    }
}

//! `warren top`: what instances do, the busiest first, again and again.

use super::usage::{Figures, Redrawn, SHORT_PERIOD, Watched};
use super::{Outcome, Session};
use crate::cli::args::{OutputFormat, TopArgs, TopOrder};
use crate::cli::failure::CliError;
use crate::cli::output::{Detail, Field, Row, Stream};
use crate::cli::terminal::Size;
use crate::cli::text::bytes;
use serde::Serialize;
use std::cmp::Ordering;
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;

/// A line of the table.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Line(Figures);

/// What scripts get of one round.
#[derive(Debug, Serialize)]
struct Round<'a> {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    instances: &'a [Line],
}

fn percent(share: Option<f64>) -> Field {
    Field::new(share.map_or_else(|| "-".to_owned(), |share| format!("{share:.1}%")))
}

fn amount(amount: Option<u64>) -> Field {
    Field::new(amount.map_or_else(|| "-".to_owned(), bytes))
}

fn per_second(rate: Option<f64>) -> Field {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is not negative, and what is too large for a byte count is shown as the largest"
    )]
    let whole = |rate: f64| format!("{}/s", bytes(rate.round() as u64));
    Field::new(rate.map_or_else(|| "-".to_owned(), whole))
}

impl Row for Line {
    fn heads(detail: Detail) -> Vec<&'static str> {
        let mut heads = vec![
            "NAME", "CPU", "MEMORY", "IN GUEST", "OF", "READ", "WRITTEN", "NET IN", "NET OUT",
        ];
        match detail {
            Detail::Short | Detail::Untruncated => {}
            Detail::Wide => heads.extend(["CPU IN GUEST", "CPUS", "TASKS", "DISK", "ID"]),
        }
        heads
    }

    fn cells(&self, detail: Detail) -> Vec<Field> {
        let Figures { stats, rates } = &self.0;
        let guest = stats.guest.as_ref();
        let mut cells = vec![
            Field::new(&stats.instance_name),
            percent(rates.map(|rates| rates.cpu_percent)),
            amount(Some(stats.memory_rss_bytes)),
            amount(stats.guest_memory_used_bytes),
            amount(Some(stats.allocated_memory_bytes)),
            per_second(rates.and_then(|rates| rates.disk_read_bytes_per_second)),
            per_second(rates.and_then(|rates| rates.disk_written_bytes_per_second)),
            per_second(rates.map(|rates| rates.network_rx_bytes_per_second)),
            per_second(rates.map(|rates| rates.network_tx_bytes_per_second)),
        ];
        match detail {
            Detail::Short | Detail::Untruncated => {}
            Detail::Wide => cells.extend([
                percent(rates.and_then(|rates| rates.guest_cpu_percent)),
                Field::new(stats.allocated_vcpus.to_string()),
                Field::new(guest.map_or_else(|| "-".to_owned(), |guest| guest.tasks.to_string())),
                amount(Some(stats.disk_bytes)),
                Field::new(&stats.instance_id),
            ]),
        }
        cells
    }

    fn name(&self) -> String {
        self.0.stats.instance_name.clone()
    }

    fn id(&self) -> String {
        self.0.stats.instance_id.clone()
    }
}

/// What an order goes by, the most first; what is not known is least.
fn weight(figures: &Figures, order: TopOrder) -> f64 {
    let rates = figures.rates.as_ref();
    let known = match order {
        TopOrder::Name => None,
        TopOrder::Cpu => rates.map(|rates| rates.cpu_percent),
        #[expect(
            clippy::cast_precision_loss,
            reason = "an order for people: 52 bits are plenty"
        )]
        TopOrder::Memory => Some(figures.stats.memory_rss_bytes as f64),
        TopOrder::Disk => rates.and_then(|rates| {
            let read = rates.disk_read_bytes_per_second?;
            Some(read + rates.disk_written_bytes_per_second?)
        }),
        TopOrder::Network => {
            rates.map(|rates| rates.network_rx_bytes_per_second + rates.network_tx_bytes_per_second)
        }
    };
    known.unwrap_or(-1.0)
}

/// The first is what is asked for most; equal ones are by name.
fn ordered(mut figures: Vec<Figures>, order: TopOrder) -> Vec<Line> {
    figures.sort_by(|a, b| {
        let heavier = weight(b, order).partial_cmp(&weight(a, order));
        let by_name = || a.stats.instance_name.cmp(&b.stats.instance_name);
        heavier.unwrap_or(Ordering::Equal).then_with(by_name)
    });
    figures.into_iter().map(Line).collect()
}

/// `warren top`
pub(super) async fn top(session: &Session, args: TopArgs) -> Outcome {
    let mut watched = Watched::new(session, &args.names);
    // Rates need a look to begin with.
    watched.look().await?;
    tokio::time::sleep(SHORT_PERIOD.min(args.every)).await;
    let mut ticks = tokio::time::interval(args.every);
    // A server that takes long is not asked more often for it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn = Redrawn::default();
    let mut round = 0;
    loop {
        // At once the first time.
        ticks.tick().await;
        let lines = ordered(watched.look().await?, args.sort);
        show(session, &lines, &mut drawn)?;
        round += 1;
        if args.rounds == Some(round) {
            return Ok(0);
        }
    }
}

fn show(session: &Session, lines: &[Line], drawn: &mut Redrawn) -> Result<(), CliError> {
    let out = &session.out;
    let round = Round {
        at: OffsetDateTime::now_utc(),
        instances: lines,
    };
    let detail = match out.format(OutputFormat::Table) {
        OutputFormat::Json => return out.json_line(&round),
        OutputFormat::Yaml => return out.yaml_document(&round),
        OutputFormat::Name => return out.list(lines, Detail::Short),
        OutputFormat::Table => Detail::Short,
        OutputFormat::Wide => Detail::Wide,
    };
    if !out.to_terminal() {
        return out.list(lines, detail);
    }
    let text = drawn.over(&out.table_text(lines, detail), Size::current());
    out.bytes(Stream::Stdout, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::usage::Rates;
    use super::super::usage::tests::stats;
    use super::*;

    fn figures(name: &str, rss: u64, cpu: f64, disk: Option<f64>, network: f64) -> Figures {
        let mut stats = stats(name, 0);
        stats.memory_rss_bytes = rss;
        let rates = Some(Rates {
            cpu_percent: cpu,
            guest_cpu_percent: None,
            disk_read_bytes_per_second: disk,
            disk_written_bytes_per_second: disk,
            network_rx_bytes_per_second: network,
            network_tx_bytes_per_second: 0.0,
        });
        Figures { stats, rates }
    }

    #[test]
    fn the_heaviest_is_first_and_what_is_not_known_is_last() {
        let all = || {
            let restarted = Figures {
                rates: None,
                ..figures("a", 1, 0.0, None, 0.0)
            };
            vec![
                figures("d", 30, 5.0, Some(0.0), 0.0),
                restarted,
                figures("c", 20, 80.0, None, 7.0),
                figures("b", 20, 5.0, Some(9.0), 0.0),
            ]
        };
        for (order, names) in [
            (TopOrder::Name, "abcd"),
            (TopOrder::Cpu, "cbda"),
            (TopOrder::Memory, "dbca"),
            (TopOrder::Disk, "bdac"),
            (TopOrder::Network, "cbda"),
        ] {
            let lines = ordered(all(), order);
            let found: String = lines.iter().map(Line::name).collect();
            assert_eq!(found, names, "{order:?}");
        }
    }

    #[test]
    fn a_line_has_a_cell_under_each_head() {
        for detail in [Detail::Short, Detail::Wide] {
            let line = Line(figures("a", 1, 0.0, None, f64::MAX));
            assert_eq!(line.cells(detail).len(), Line::heads(detail).len());
        }
    }
}

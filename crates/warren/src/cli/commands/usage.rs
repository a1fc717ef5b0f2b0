//! What instances use, looked at again and again: counters become rates by looking twice. `warren stats` and `warren top` show it.

use super::Session;
use crate::cli::failure::CliError;
use crate::cli::terminal::Size;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use warren_api::InstanceStats;
use warren_api::client::ListQuery;
use warren_api::instance::InstanceState;

/// Between the two looks that rates need when something is printed for the first time.
pub(super) const SHORT_PERIOD: Duration = Duration::from_millis(500);

/// One instance's figures, and what became of its counters since the last look.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    #[serde(flatten)]
    pub(super) stats: InstanceStats,
    /// Absent at the first look, and right after a restart.
    #[serde(flatten)]
    pub(super) rates: Option<Rates>,
}

/// How fast counters grew between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Percent of one processor, as the host counts.
    pub(super) cpu_percent: f64,
    /// Percent of one processor, as the guest counts.
    pub(super) guest_cpu_percent: Option<f64>,
    /// Bytes a second.
    pub(super) disk_read_bytes_per_second: Option<f64>,
    /// Bytes a second.
    pub(super) disk_written_bytes_per_second: Option<f64>,
    /// Bytes a second.
    pub(super) network_rx_bytes_per_second: f64,
    /// Bytes a second.
    pub(super) network_tx_bytes_per_second: f64,
}

/// How fast a counter grew; nothing where it began anew.
fn rate(before: f64, now: f64, between: Duration) -> Option<f64> {
    let seconds = between.as_secs_f64();
    (seconds > 0.0 && now >= before).then(|| (now - before) / seconds)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate for people: 52 bits are plenty"
)]
fn bytes_rate(before: u64, now: u64, between: Duration) -> Option<f64> {
    // Subtracted before it becomes a float: large counters grow by little.
    let grown = now.checked_sub(before)?;
    rate(0.0, grown as f64, between)
}

impl Rates {
    fn between(before: &InstanceStats, now: &InstanceStats, between: Duration) -> Option<Self> {
        let guest = before.guest.as_ref().zip(now.guest.as_ref());
        Some(Rates {
            cpu_percent: 100.0 * rate(before.cpu_seconds, now.cpu_seconds, between)?,
            guest_cpu_percent: guest
                .and_then(|(before, now)| rate(before.cpu_seconds, now.cpu_seconds, between))
                .map(|rate| 100.0 * rate),
            disk_read_bytes_per_second: guest.and_then(|(before, now)| {
                bytes_rate(before.disk_read_bytes, now.disk_read_bytes, between)
            }),
            disk_written_bytes_per_second: guest.and_then(|(before, now)| {
                bytes_rate(before.disk_written_bytes, now.disk_written_bytes, between)
            }),
            network_rx_bytes_per_second: bytes_rate(
                before.network_rx_bytes,
                now.network_rx_bytes,
                between,
            )?,
            network_tx_bytes_per_second: bytes_rate(
                before.network_tx_bytes,
                now.network_tx_bytes,
                between,
            )?,
        })
    }
}

/// Instances that are looked at more than once.
pub(super) struct Watched<'a> {
    session: &'a Session,
    /// All that run, when empty.
    names: &'a [String],
    before: BTreeMap<String, (InstanceStats, Instant)>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(session: &'a Session, names: &'a [String]) -> Self {
        let before = BTreeMap::new();
        Watched {
            session,
            names,
            before,
        }
    }

    /// The figures now, by name. The deadline of each question is the client's.
    pub(super) async fn look(&mut self) -> Result<Vec<Figures>, CliError> {
        let client = &self.session.client;
        let ids: Vec<String> = if self.names.is_empty() {
            let query = ListQuery {
                states: vec![InstanceState::Running],
                ..ListQuery::default()
            };
            let running = client.instances(&query).await?;
            running.into_iter().map(|instance| instance.id).collect()
        } else {
            self.names.to_vec()
        };
        let answers = futures::future::join_all(
            ids.iter()
                .map(|id| async move { (client.instance_stats(id).await, Instant::now()) }),
        )
        .await;
        let mut figures = Vec::new();
        let mut taken = BTreeMap::new();
        for (answer, at) in answers {
            let stats = match answer {
                Ok(stats) => stats,
                // One that was not asked for by name may have stopped meanwhile.
                Err(error)
                    if self.names.is_empty() && matches!(error.status(), Some(404 | 409)) =>
                {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let before = self.before.get(&stats.instance_id);
            let rates =
                before.and_then(|(before, then)| Rates::between(before, &stats, at - *then));
            taken.insert(stats.instance_id.clone(), (stats.clone(), at));
            figures.push(Figures { stats, rates });
        }
        self.before = taken;
        figures.sort_by(|a, b| a.stats.instance_name.cmp(&b.stats.instance_name));
        Ok(figures)
    }
}

/// What is drawn on a terminal again and again, each time in the place of what was there before.
#[derive(Debug, Default)]
pub(super) struct Redrawn {
    height: usize,
}

impl Redrawn {
    /// What draws these lines over the last ones: as many as the terminal shows, for it forgets what has left it.
    pub(super) fn over(&mut self, text: &str, terminal: Size) -> String {
        // Back to the first line of what was shown before, and nothing left of it below.
        let mut drawn = match self.height {
            0 => String::new(),
            height => format!("\x1b[{height}F\x1b[J"),
        };
        let room = usize::from(terminal.rows.max(3)) - 1;
        let all = text.lines().count();
        let shown = if all > room { room - 1 } else { all };
        for line in text.lines().take(shown) {
            drawn.push_str(line);
            drawn.push('\n');
        }
        self.height = shown;
        if shown < all {
            drawn.push_str(&format!("and {} more\n", all - shown));
            self.height += 1;
        }
        drawn
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use warren_api::GuestStats;

    pub(in crate::cli::commands) fn stats(name: &str, counters: u64) -> InstanceStats {
        InstanceStats {
            instance_id: name.to_owned(),
            instance_name: name.to_owned(),
            cpu_seconds: counters as f64,
            memory_rss_bytes: 1,
            memory_vms_bytes: 2,
            network_rx_bytes: counters * 10,
            network_tx_bytes: u64::MAX - 100 + counters,
            allocated_vcpus: 1,
            allocated_memory_bytes: 4,
            memory_utilization_ratio: None,
            guest_memory_used_bytes: None,
            disk_bytes: 5,
            guest: Some(GuestStats {
                uptime_seconds: 1.0,
                cpu_seconds: counters as f64 / 2.0,
                memory_total_bytes: 1,
                memory_available_bytes: 1,
                disk_total_bytes: 1,
                disk_free_bytes: 1,
                disk_read_bytes: counters * 100,
                disk_written_bytes: 0,
                tasks: 1,
            }),
        }
    }

    #[test]
    fn rates_are_by_the_second_and_begin_anew_with_a_restart() {
        let two = Duration::from_secs(2);
        let rates = Rates::between(&stats("a", 1), &stats("a", 2), two);
        let expected = Rates {
            cpu_percent: 50.0,
            guest_cpu_percent: Some(25.0),
            disk_read_bytes_per_second: Some(50.0),
            disk_written_bytes_per_second: Some(0.0),
            network_rx_bytes_per_second: 5.0,
            network_tx_bytes_per_second: 0.5,
        };
        assert_eq!(rates, Some(expected));
        assert_eq!(Rates::between(&stats("a", 2), &stats("a", 1), two), None);
        let at_once = Rates::between(&stats("a", 1), &stats("a", 2), Duration::ZERO);
        assert_eq!(at_once, None);
    }

    #[test]
    fn what_is_redrawn_never_leaves_the_terminal() {
        let terminal = |rows| Size { rows, columns: 80 };
        let mut drawn = Redrawn::default();
        assert_eq!(drawn.over("a\nb\n", terminal(24)), "a\nb\n");
        assert_eq!(
            drawn.over("a\nb\nc\nd\n", terminal(4)),
            "\x1b[2F\x1b[Ja\nb\nand 2 more\n"
        );
        assert_eq!(
            drawn.over("a\nb\nc\n", terminal(4)),
            "\x1b[3F\x1b[Ja\nb\nc\n"
        );
        assert_eq!(drawn.over("", terminal(0)), "\x1b[3F\x1b[J");
        assert_eq!(drawn.over("x\n", terminal(0)), "x\n");
    }

    #[test]
    fn a_guest_that_was_silent_has_the_rates_that_the_host_knows() {
        let silent = InstanceStats {
            guest: None,
            ..stats("a", 1)
        };
        let rates = Rates::between(&silent, &stats("a", 2), Duration::from_secs(1)).unwrap();
        assert_eq!(rates.guest_cpu_percent, None);
        assert_eq!(rates.disk_read_bytes_per_second, None);
        assert!((rates.cpu_percent - 100.0).abs() < 1e-9);
    }
}

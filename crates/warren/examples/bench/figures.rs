//! Medians, ratios and the A/A control.

use serde::Serialize;
use std::time::Duration;

/// What a run of the benchmark found. Times in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pairs: usize,
    warren_median_ms: f64,
    bare_median_ms: f64,
    added_median_ms: f64,
    /// Median of the pairs' ratios.
    pub(crate) ratio: f64,
    /// Each arm's even runs against its odd ones.
    warren_control: f64,
    bare_control: f64,
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn millis(time: &Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Even runs against odd ones. The order within a pair alternates too, so both halves are quartered by it.
fn control(times: &[Duration]) -> f64 {
    let half = |wanted: usize| {
        median(
            times
                .iter()
                .enumerate()
                .filter(|(at, _)| (at / 2) % 2 == wanted)
                .map(|(_, time)| millis(time)),
        )
    };
    half(0) / half(1)
}

impl Figures {
    pub(crate) fn of(warren: &[Duration], bare: &[Duration]) -> Self {
        let pairs = || warren.iter().zip(bare);
        Figures {
            pairs: warren.len(),
            warren_median_ms: median(warren.iter().map(millis)),
            bare_median_ms: median(bare.iter().map(millis)),
            added_median_ms: median(pairs().map(|(warren, bare)| millis(warren) - millis(bare))),
            ratio: median(pairs().map(|(warren, bare)| millis(warren) / millis(bare))),
            warren_control: control(warren),
            bare_control: control(bare),
        }
    }

    pub(crate) fn worst_control(&self) -> f64 {
        (self.warren_control - 1.0)
            .abs()
            .max((self.bare_control - 1.0).abs())
    }

    pub(crate) fn table(&self) -> String {
        format!(
            "| # | what | Warren | bare QEMU | added | ratio | A/A Warren | A/A bare | pairs |\n\
             |---|---|---|---|---|---|---|---|---|\n\
             | 1 | create → guest ready (median) | {:.0} ms | {:.0} ms | {:.0} ms | {:.3} | {:.3} | {:.3} | {} |",
            self.warren_median_ms,
            self.bare_median_ms,
            self.added_median_ms,
            self.ratio,
            self.warren_control,
            self.bare_control,
            self.pairs
        )
    }
}

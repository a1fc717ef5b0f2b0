//! Rows of the table: medians, ratios, the A/A control, and what a row must not be worse than.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far an arm may be from itself for a ratio to mean anything.
pub(crate) const NOISE: f64 = 0.05;
/// How much worse than the committed table a ratio may be.
const REGRESSION: f64 = 0.10;

/// What is wanted of a row's ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    /// A cost: the lower the better.
    AtMost(f64),
    /// A rate: the higher the better.
    AtLeast(f64),
}

impl Aim {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Aim::AtMost(bound) => value <= bound,
            Aim::AtLeast(bound) => value >= bound,
        }
    }

    fn is_worse(self, value: f64, committed: f64) -> bool {
        match self {
            Aim::AtMost(_) => value > committed * (1.0 + REGRESSION),
            Aim::AtLeast(_) => value < committed * (1.0 - REGRESSION),
        }
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Aim::AtMost(bound) => write!(f, "≤ {bound}"),
            Aim::AtLeast(bound) => write!(f, "≥ {bound}"),
        }
    }
}

/// What a row's ratio is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// Of the two arms, or of a figure and its bound.
    #[default]
    Ratio,
    /// Of the difference of the two arms and its bound. It may be next to nothing, and then a tenth of it is too.
    Difference,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Its name, unique: what `--check` finds it by.
    pub(crate) name: String,
    /// In words.
    pub(crate) what: String,
    /// What Warren's figure and the reference are counted in.
    pub(crate) unit: String,
    /// Median of Warren's arm.
    pub(crate) warren: f64,
    /// What it is compared with.
    pub(crate) reference_is: String,
    /// Median of the reference arm; the bound itself where the row is an absolute one.
    pub(crate) reference: f64,
    /// Median of the pairs' ratios.
    pub(crate) ratio: f64,
    /// What the ratio should be.
    pub(crate) aim: Aim,
    #[serde(default)]
    pub(crate) measure: Measure,
    /// Each arm's even runs against its odd ones: Warren, reference. Absent where there are no pairs.
    pub(crate) control: Option<(f64, f64)>,
    /// Pairs, or runs.
    pub(crate) runs: usize,
    /// How it was measured, and which commit.
    #[serde(default)]
    pub(crate) command: String,
    #[serde(default)]
    pub(crate) commit: String,
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// Linear between neighbours.
pub(crate) fn quantile(values: impl IntoIterator<Item = f64>, at: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = at * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    values[low] + (values[high] - values[low]) * (place - place.floor())
}

/// Even runs against odd ones. The order within a pair alternates too, so both halves are quartered by it.
fn control(values: &[f64]) -> f64 {
    let half = |wanted: usize| {
        let chosen = values
            .iter()
            .enumerate()
            .filter(|(at, _)| (at / 2) % 2 == wanted);
        median(chosen.map(|(_, value)| *value))
    };
    half(0) / half(1)
}

impl Row {
    /// A row of measured pairs.
    pub(crate) fn of_pairs(
        name: &str,
        what: &str,
        unit: &str,
        reference_is: &str,
        aim: Aim,
        warren: &[f64],
        reference: &[f64],
    ) -> Self {
        let ratios = warren
            .iter()
            .zip(reference)
            .map(|(ours, theirs)| ours / theirs);
        Row {
            name: name.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            warren: median(warren.iter().copied()),
            reference_is: reference_is.to_owned(),
            reference: median(reference.iter().copied()),
            ratio: median(ratios),
            aim,
            measure: Measure::Ratio,
            control: (warren.len() >= 4).then(|| (control(warren), control(reference))),
            runs: warren.len(),
            command: String::new(),
            commit: String::new(),
        }
    }

    /// A row with a bound that is a figure and not another program.
    pub(crate) fn of_bound(
        name: &str,
        what: &str,
        unit: &str,
        bound: f64,
        measured: &[f64],
    ) -> Self {
        let warren = median(measured.iter().copied());
        Row {
            name: name.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            warren,
            reference_is: "the bound".to_owned(),
            reference: bound,
            ratio: warren / bound,
            aim: Aim::AtMost(1.0),
            measure: Measure::Ratio,
            // A bound does not differ from itself.
            control: (measured.len() >= 4).then(|| (control(measured), 1.0)),
            runs: measured.len(),
            command: String::new(),
            commit: String::new(),
        }
    }

    /// A row of what the first arm takes more than the second, pair by pair. What both arms are from themselves says whether
    /// it means anything.
    pub(crate) fn of_difference(
        name: &str,
        what: &str,
        unit: &str,
        bound: f64,
        warren: &[f64],
        reference: &[f64],
    ) -> Self {
        let added: Vec<f64> = warren
            .iter()
            .zip(reference)
            .map(|(ours, theirs)| ours - theirs)
            .collect();
        Row {
            measure: Measure::Difference,
            control: (warren.len() >= 4).then(|| (control(warren), control(reference))),
            ..Row::of_bound(name, what, unit, bound, &added)
        }
    }

    fn is_noisy(&self) -> bool {
        self.worst_control() > NOISE
    }

    fn worst_control(&self) -> f64 {
        self.control.map_or(0.0, |(ours, theirs)| {
            (ours - 1.0).abs().max((theirs - 1.0).abs())
        })
    }
}

/// All rows of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Where the time of one create goes, in milliseconds, by phase.
    #[serde(default)]
    pub(crate) breakdown: BTreeMap<String, f64>,
    /// What it was measured on.
    #[serde(default)]
    pub(crate) machine: String,
}

fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

impl Report {
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            "| row | what | Warren | compared with | ratio | aim | A/A Warren | A/A other | runs |"
                .to_owned(),
            "|---|---|---|---|---|---|---|---|---|".to_owned(),
        ];
        for row in &self.rows {
            let (ours, theirs) = match row.control {
                Some((ours, theirs)) => (format!("{ours:.3}"), format!("{theirs:.3}")),
                None => ("–".to_owned(), "–".to_owned()),
            };
            lines.push(format!(
                "| {} | {} | {} {unit} | {}: {} {unit} | {:.3} | {} | {ours} | {theirs} | {} |",
                row.name,
                row.what,
                figure(row.warren),
                row.reference_is,
                figure(row.reference),
                row.ratio,
                row.aim,
                row.runs,
                unit = row.unit,
            ));
        }
        if !self.breakdown.is_empty() {
            lines.push(String::new());
            lines.push("| phase of one create | median ms |".to_owned());
            lines.push("|---|---|".to_owned());
            for (phase, millis) in &self.breakdown {
                lines.push(format!("| {phase} | {} |", figure(*millis)));
            }
        }
        lines.join("\n")
    }

    /// Takes over what was measured anew, row by row; but no row that the machine was too noisy for.
    pub(crate) fn take_over(&mut self, newer: Report) {
        for row in newer.rows {
            if row.is_noisy() {
                continue;
            }
            match self.rows.iter_mut().find(|known| known.name == row.name) {
                Some(known) => *known = row,
                None => self.rows.push(row),
            }
        }
        self.rows.sort_by(|a, b| a.name.cmp(&b.name));
        if !newer.breakdown.is_empty() {
            self.breakdown = newer.breakdown;
        }
        self.machine = newer.machine;
    }

    /// The page of the documentation.
    pub(crate) fn page(&self) -> String {
        let mut commands: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            let key = (row.command.as_str(), row.commit.as_str());
            commands.entry(key).or_default().push(&row.name);
        }
        let commands: Vec<String> = commands
            .into_iter()
            .map(|((command, commit), rows)| {
                format!("- `{command}` at {commit}: {}", rows.join(", "))
            })
            .collect();
        format!(
            "# Measured\n\n\
             Written by `./dev bench -- … --record`; the figures are also in `bench.json`, against which `./dev bench --check` \
             compares.\n\n\
             Both arms of a row run in turn in one process, in pairs of alternating order; the ratio is the median of the \
             pairs' ratios. *A/A* is an arm's even pairs against its odd ones: a row in which it is further from 1 than \
             {noise} is not recorded. What is added is a difference: its A/A is that of the arms, and it is held to its bound. \
             Figures of different machines cannot be compared; ratios can.\n\n\
             Machine: {machine}\n\n\
             {commands}\n\n\
             {table}\n\n\
             *Running* is said by the server when the guest's agent has said that it is ready. *Bare QEMU* is the same binary \
             with the very arguments of one of Warren's own VMMs (read back from the process, descriptors replaced by paths), \
             the same kernel, initramfs, disks and agent and a ready-made TAP; it ends with the same word of the agent. The \
             fake hypervisor runs no machines: what is left is Warren alone, guests' agents included, which it plays itself. \
             *ssh* and *scp* are the distribution's, to the distribution's sshd in the very same guest, over one kept connection \
             (ControlMaster): nobody pays for a handshake. A *bare port* is a second one beside the agent's, in a guest started by \
             hand, with nothing of ours at either end.\n",
            noise = NOISE,
            machine = self.machine,
            commands = commands.join("\n"),
            table = self.table(),
        )
    }

    /// Rows whose arms differ too much from themselves for a ratio to count.
    pub(crate) fn noisy(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.is_noisy())
    }

    /// Every row that misses its aim, or is worse than the committed table by more than a tenth. Nothing is said of rows
    /// that the machine was too noisy for.
    pub(crate) fn complaints(&self, committed: &Report) -> Vec<String> {
        let mut complaints = Vec::new();
        for row in self.rows.iter().filter(|row| !row.is_noisy()) {
            let before = committed.rows.iter().find(|other| other.name == row.name);
            match before {
                Some(before)
                    if row.measure == Measure::Ratio
                        && row.aim.is_worse(row.ratio, before.ratio) =>
                {
                    complaints.push(format!(
                        "{}: {:.3}, and {:.3} in the committed table",
                        row.name, row.ratio, before.ratio
                    ))
                }
                // What was committed as missed is known.
                Some(before) if !before.aim.is_met(before.ratio) => {}
                Some(_) | None if !row.aim.is_met(row.ratio) => {
                    complaints.push(format!("{}: {:.3} is not {}", row.name, row.ratio, row.aim));
                }
                Some(_) | None => {}
            }
        }
        complaints
    }
}

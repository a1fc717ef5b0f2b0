//! Bars for pulls and loads: on a terminal one per layer that moves, elsewhere a line at the beginning
//! and the end. All of it on stderr.

use super::output::{Chatter, Output};
use super::text::{bytes, one_line, short_digest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Duration;
use warren_core::image::{ImageProgress, LayerPhase};

/// Layers that get a bar of their own; more would scroll a terminal away.
const BARS: usize = 16;
/// Layers that are counted: more than any image may have.
const LAYERS: usize = 1024;

/// How far the layers are. Pure.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    layers: BTreeMap<String, (LayerPhase, u64, u64)>,
    expected: usize,
    total: u64,
}

impl Tally {
    /// Takes in one step.
    pub(crate) fn update(&mut self, progress: &ImageProgress) {
        match progress {
            ImageProgress::Resolved {
                layers,
                total_bytes,
                ..
            } => {
                self.expected = *layers;
                self.total = *total_bytes;
            }
            ImageProgress::Layer {
                digest,
                phase,
                bytes,
                total,
            } => {
                if self.layers.len() < LAYERS || self.layers.contains_key(digest) {
                    self.layers.insert(digest.clone(), (*phase, *bytes, *total));
                }
            }
            ImageProgress::Finishing => {}
        }
    }

    /// In words.
    pub(crate) fn sentence(&self) -> String {
        let done = self
            .layers
            .values()
            .filter(|(phase, ..)| *phase == LayerPhase::Done)
            .count();
        let all = self.expected.max(self.layers.len());
        format!("{done} of {all} layers, {}", bytes(self.total))
    }
}

/// The bars of one image.
pub(crate) struct ImageBars {
    bars: MultiProgress,
    head: ProgressBar,
    layers: BTreeMap<String, ProgressBar>,
    tally: Tally,
    chatter: Chatter,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}

impl ImageBars {
    /// Begins: `what` is "pulling nginx:1.27".
    pub(crate) fn new(out: &Output, what: &str) -> Self {
        let bars = MultiProgress::new();
        let head = match out.chatter() {
            Chatter::Normal => {
                let head = bars.add(ProgressBar::new_spinner());
                head.set_style(style("{spinner} {msg}"));
                head.set_message(one_line(what));
                if head.is_hidden() {
                    out.note(format!("{what} …"));
                } else {
                    head.enable_steady_tick(Duration::from_millis(120));
                }
                head
            }
            Chatter::Quiet => ProgressBar::hidden(),
        };
        ImageBars {
            bars,
            head,
            layers: BTreeMap::new(),
            tally: Tally::default(),
            chatter: out.chatter(),
        }
    }

    /// Shows one step.
    pub(crate) fn update(&mut self, what: &str, progress: &ImageProgress) {
        self.tally.update(progress);
        if self.chatter == Chatter::Quiet {
            return;
        }
        match progress {
            ImageProgress::Resolved { .. } => {
                self.head
                    .set_message(one_line(&format!("{what}: {}", self.tally.sentence())));
            }
            ImageProgress::Finishing => {
                self.layers.values().for_each(ProgressBar::finish_and_clear);
                self.head
                    .set_message(one_line(&format!("{what}: writing the disk")));
            }
            ImageProgress::Layer {
                digest,
                phase,
                bytes,
                total,
            } => {
                self.head
                    .set_message(one_line(&format!("{what}: {}", self.tally.sentence())));
                self.layer(digest, *phase, *bytes, *total);
            }
        }
    }

    fn layer(&mut self, digest: &str, phase: LayerPhase, done: u64, total: u64) {
        let word = match phase {
            LayerPhase::Waiting => return,
            LayerPhase::Downloading => "downloading",
            LayerPhase::Converting => "converting",
            LayerPhase::Uploading => "uploading",
            LayerPhase::Done => {
                if let Some(bar) = self.layers.remove(digest) {
                    bar.finish_and_clear();
                }
                return;
            }
        };
        if self.layers.len() >= BARS && !self.layers.contains_key(digest) {
            return;
        }
        let bars = &self.bars;
        let bar = self.layers.entry(digest.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total));
            bar.set_style(style(
                "  {prefix} {msg:11} {bar:30} {binary_bytes:>10} of {binary_total_bytes}",
            ));
            bar.set_prefix(short_digest(digest));
            bar
        });
        bar.set_length(total);
        bar.set_message(word);
        bar.set_position(done.min(total));
    }

    /// Takes all bars away.
    pub(crate) fn finish(self) {
        self.layers.values().for_each(ProgressBar::finish_and_clear);
        self.head.finish_and_clear();
    }
}

/// A bar for bytes that are read here, and the reader that moves it.
pub(crate) fn transfer(out: &Output, what: &str, total: Option<u64>) -> ProgressBar {
    let bar = match (out.chatter(), total) {
        (Chatter::Quiet, _) => return ProgressBar::hidden(),
        (Chatter::Normal, Some(total)) => {
            let bar = ProgressBar::new(total);
            bar.set_style(style(
                "{msg} {bar:30} {binary_bytes} of {binary_total_bytes} {binary_bytes_per_sec}",
            ));
            bar
        }
        (Chatter::Normal, None) => {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style(
                "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}",
            ));
            bar
        }
    };
    bar.set_message(one_line(what));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_counts_layers_that_are_done() {
        let mut tally = Tally::default();
        tally.update(&ImageProgress::Resolved {
            digest: "sha256:0".into(),
            layers: 3,
            total_bytes: 3 << 20,
        });
        for (digest, phase) in [
            ("a", LayerPhase::Done),
            ("b", LayerPhase::Downloading),
            ("b", LayerPhase::Done),
            ("c", LayerPhase::Converting),
        ] {
            tally.update(&ImageProgress::Layer {
                digest: digest.into(),
                phase,
                bytes: 1,
                total: 1,
            });
        }
        assert_eq!(tally.sentence(), "2 of 3 layers, 3.0 MiB");
    }

    #[test]
    fn a_server_cannot_make_the_tally_grow_without_end() {
        let mut tally = Tally::default();
        for n in 0..LAYERS * 2 {
            tally.update(&ImageProgress::Layer {
                digest: n.to_string(),
                phase: LayerPhase::Done,
                bytes: 0,
                total: 0,
            });
        }
        assert_eq!(tally.layers.len(), LAYERS);
    }
}

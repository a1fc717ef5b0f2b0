//! What has been done, in this run and in those before it.

use super::operation::Operation;
use crate::harness::Mode;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One kill.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Case {
    scene: String,
    pub(super) place: String,
    pub(super) time: usize,
}

impl Case {
    pub(super) fn new(mode: Mode, operation: Operation, place: &str, time: usize) -> Self {
        Case {
            scene: format!("{mode:?}/{operation:?}"),
            place: place.to_owned(),
            time,
        }
    }

    fn line(&self) -> String {
        format!("{} {} {}", self.scene, self.place, self.time)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Case {
            scene: words.next()?.to_owned(),
            place: words.next()?.to_owned(),
            time: words.next()?.parse().ok()?,
        })
    }
}

#[derive(Default)]
struct Done {
    cases: BTreeSet<Case>,
    /// Those at which it died.
    kills: BTreeSet<Case>,
}

#[derive(Default)]
pub(super) struct Progress {
    done: Mutex<Done>,
    file: Option<PathBuf>,
    deadline: Option<Instant>,
    each_time: bool,
}

impl Progress {
    pub(super) fn from_environment() -> Self {
        let file = std::env::var_os("WARREN_CRASH_STATE").map(PathBuf::from);
        let mut done = Done::default();
        let text = file.as_ref().map(std::fs::read_to_string);
        for line in text.and_then(Result::ok).unwrap_or_default().lines() {
            let (case, outcome) = line.rsplit_once(' ').unwrap_or((line, ""));
            if let Some(case) = Case::parse(case) {
                if outcome == "died" {
                    done.kills.insert(case.clone());
                }
                done.cases.insert(case);
            }
        }
        let seconds = std::env::var("WARREN_CRASH_SECONDS").ok();
        let seconds = seconds.and_then(|text| text.parse().ok());
        Progress {
            done: Mutex::new(done),
            file,
            deadline: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            each_time: std::env::var_os("WARREN_CRASH_EACH_TIME").is_some(),
        }
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At how many of the times that an operation comes by a place the server dies there.
    pub(super) fn times(&self, times: usize) -> usize {
        if self.each_time { times } else { times.min(1) }
    }

    /// Whether nothing is left out.
    pub(super) fn is_of_each_time(&self) -> bool {
        self.each_time
    }

    /// Whether the time is up.
    pub(super) fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    pub(super) fn is_done(&self, case: &Case) -> bool {
        self.done().cases.contains(case)
    }

    pub(super) fn note(&self, case: &Case, died: bool) {
        let mut done = self.done();
        done.cases.insert(case.clone());
        if died {
            done.kills.insert(case.clone());
        }
        if let Some(file) = &self.file {
            let outcome = if died { "died" } else { "missed" };
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(file)
                .unwrap();
            writeln!(file, "{} {outcome}", case.line()).unwrap();
        }
    }

    pub(super) fn kills(&self) -> usize {
        self.done().kills.len()
    }

    pub(super) fn hit(&self) -> BTreeSet<String> {
        self.done()
            .kills
            .iter()
            .map(|case| case.place.clone())
            .collect()
    }

    pub(super) fn was_hit(&self, place: &str) -> bool {
        self.done().kills.iter().any(|case| case.place == place)
    }
}

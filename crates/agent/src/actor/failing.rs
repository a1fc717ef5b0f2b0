//! What becomes of a step that failed: tried again after a pause, or its run is given up.

use super::Actor;
use crate::steps::{INTERRUPTED, MACHINE_ENDED, printable};
use futures::StreamExt;
use std::time::Duration;
use tokio::sync::watch;
use warren_core::error::Failure;
use warren_core::instance::Desired;
use warren_core::planner::{self, GivenUp, Reach, Refused, STARTS, Step, Told};
use warren_core::ports::Presence;
use warren_core::ports::host_link::{LogQuery, LogSource};
use warren_core::{ErrorClass, PortError};
use warren_crashpoint::reached;

/// A failed step that may work later is tried again this many times before its run is given up.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between attempts of what is never given up: taking things away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Actor {
    pub(super) async fn failed(&mut self, step: Step, error: PortError) {
        if error.code != INTERRUPTED {
            let cause = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            tracing::warn!(instance = %self.record.intent.id, ?step, code = error.code, %error, cause, "step failed");
            self.failures += 1;
            if step == Step::AttachGuest {
                self.seen.reach = Reach::Silent;
            }
            let taking_away = matches!(
                step,
                Step::DestroyVmm
                    | Step::ReleaseNetwork
                    | Step::RemoveDisk
                    | Step::RemoveDirectory
                    | Step::RecordExit
            );
            // A guest that was ready once is never given up for a lost session; what is said of an earlier run is not
            // about this one.
            let ran = self.record.started_at.is_some() && self.process().is_some();
            let hopeless = error.class != ErrorClass::Retry || self.failures >= ATTEMPTS;
            let ended = error.code == MACHINE_ENDED;
            let goal = planner::goal(&self.record.intent, &self.seen);
            let standby = match step {
                Step::SaveMachine => true,
                Step::Pause => goal == Desired::Standby,
                // What was saved is gone by then, or goes.
                Step::Resume => false,
                // On the way back, whatever is in it: a port that somebody else has by now, an image that cannot be read.
                _ => !taking_away && planner::is_saved(&self.record.intent, &self.seen),
            };
            if standby && hopeless && !ended {
                self.refuse(Failure::from(&error));
            } else if !taking_away && !ran && hopeless && !ended {
                self.give_up(&error);
            } else if !ended {
                self.failure = Some(Failure::from(&error));
                let pause = RETRY_PAUSE
                    .saturating_mul(1 << self.failures.min(16))
                    .min(LONGEST_PAUSE);
                self.not_before = Some(self.context.ports.clock.monotonic() + pause);
            }
        }
        self.observe().await;
    }

    /// Whatever step noticed it, this is what happened; the console's last words say why.
    pub(super) async fn machine_ended_early(&mut self) {
        let query = LogQuery {
            source: LogSource::Console,
            tail: Some(40),
            ..LogQuery::default()
        };
        let over = watch::channel(true).1;
        let words: Vec<String> = match self.shared.console_log.lines(query, over) {
            Ok(lines) => lines.map(|line| printable(&line.text)).collect().await,
            Err(error) => vec![error.to_string()],
        };
        let panic = words.iter().find_map(|line| {
            let start = line.find("Kernel panic")?;
            Some(line[start..].to_owned())
        });
        let last = words[words.len().saturating_sub(5)..].join(" | ");
        tracing::warn!(
            instance = %self.record.intent.id,
            panic,
            console = last,
            "the machine ended before its guest was ready"
        );
        self.failure = Some(machine_ended(panic.as_deref()));
        // The next start, if there is one, need not wait.
        self.not_before = None;
    }

    /// A restore whose machine has ended often enough is over: what was saved stays. Else there is no end to it.
    pub(super) fn gives_up_restoring(&mut self) -> bool {
        let often = matches!(self.seen.told, Told::No { starts } if starts >= STARTS);
        let gives_up = often && planner::is_saved(&self.record.intent, &self.seen);
        if gives_up {
            let failure = self.failure.take().unwrap_or_else(|| machine_ended(None));
            self.refuse(failure);
            self.seen.told = Told::Perhaps;
        }
        gives_up
    }

    /// The newest wish cannot be had, and nothing is lost: what was before stays, until there is another wish.
    fn refuse(&mut self, failure: Failure) {
        self.record.refused = Some((self.record.intent.generation, failure.clone()));
        self.seen.refused = Refused::Yes;
        self.failure = Some(failure);
        self.failures = 0;
        // A later restore looks for it again, as every start does.
        self.image_disk = None;
        self.seen.image = Presence::Absent;
        self.write_record();
        reached("refusal.recorded");
    }

    fn give_up(&mut self, error: &PortError) {
        let failure = Failure::from(error);
        self.record.given_up = Some((self.record.intent.run, failure.clone()));
        self.seen.given_up = GivenUp::Yes;
        self.failure = Some(failure);
        self.failures = 0;
        self.stopped_at = Some(self.now());
        self.write_record();
        reached("failure.recorded");
    }
}

/// In the words of its kernel, where that had some.
pub(super) fn machine_ended(panic: Option<&str>) -> Failure {
    let why = panic.map_or_else(String::new, |words| format!(" ({words})"));
    Failure {
        class: ErrorClass::Retry,
        code: MACHINE_ENDED.to_owned(),
        message: format!(
            "the machine ended before it was ready{why}: see its console with warren logs --source console"
        ),
    }
}

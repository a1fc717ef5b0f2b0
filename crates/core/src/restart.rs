//! Whether and when a workload that has ended is started again.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When a workload is started again without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartWhen {
    /// Never.
    #[default]
    Never,
    /// When it ended with anything but 0.
    OnFailure,
    /// Whenever it ended, until somebody stops the instance.
    Always,
}

/// The policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub when: RestartWhen,
    /// The pause before the first restart, milliseconds; doubled for each further one, at most [`LONGEST_BACKOFF`].
    pub backoff_ms: u64,
    /// Restarts before it stays stopped; 0 is no limit.
    pub max_attempts: u32,
    /// A run that lasted this long, milliseconds, starts the count anew.
    pub stable_after_ms: u64,
}

/// The longest pause between restarts.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            when: RestartWhen::Never,
            backoff_ms: 5_000,
            max_attempts: 0,
            stable_after_ms: 600_000,
        }
    }
}

/// How restarts have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartStatus {
    /// Restarts since the last stable run or explicit start.
    pub attempts: u32,
    /// The last one.
    pub last_attempt_at: Option<Timestamp>,
    /// The next one, while waiting for it.
    pub next_attempt_at: Option<Timestamp>,
}

/// What the policy says about an ended run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays ended.
    Stay,
    /// It is started again at this time, as this attempt.
    Restart {
        /// Not before.
        at: Timestamp,
        /// Counting from 1.
        attempt: u32,
    },
}

/// Decides about a run that ended at `ended` with `code` after having started at `started`.
pub fn decide(
    policy: &RestartPolicy,
    status: &RestartStatus,
    code: Option<i32>,
    started: Option<Timestamp>,
    ended: Timestamp,
) -> Verdict {
    let wanted = match policy.when {
        RestartWhen::Never => false,
        RestartWhen::OnFailure => code != Some(0),
        RestartWhen::Always => true,
    };
    let stable = started
        .is_some_and(|started| ended - started >= Duration::from_millis(policy.stable_after_ms));
    let done = if stable { 0 } else { status.attempts };
    if !wanted || (policy.max_attempts != 0 && done >= policy.max_attempts) {
        return Verdict::Stay;
    }
    let pause = Duration::from_millis(policy.backoff_ms.saturating_mul(1 << done.min(20)))
        .min(LONGEST_BACKOFF);
    Verdict::Restart {
        at: ended + pause,
        attempt: done + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const T: Timestamp = datetime!(2026-01-01 00:00 UTC);

    fn policy(when: RestartWhen) -> RestartPolicy {
        RestartPolicy {
            when,
            backoff_ms: 1_000,
            max_attempts: 3,
            stable_after_ms: 60_000,
        }
    }

    #[test]
    fn backoff_doubles_and_attempts_end() {
        for (attempts, pause) in [(0, 1), (1, 2), (2, 4)] {
            let status = RestartStatus {
                attempts,
                ..RestartStatus::default()
            };
            assert_eq!(
                decide(&policy(RestartWhen::Always), &status, Some(0), None, T),
                Verdict::Restart {
                    at: T + Duration::from_secs(pause),
                    attempt: attempts + 1
                }
            );
        }
        let spent = RestartStatus {
            attempts: 3,
            ..RestartStatus::default()
        };
        assert_eq!(
            decide(&policy(RestartWhen::Always), &spent, Some(1), None, T),
            Verdict::Stay
        );
    }

    #[test]
    fn a_stable_run_starts_the_count_anew() {
        let spent = RestartStatus {
            attempts: 3,
            ..RestartStatus::default()
        };
        let verdict = decide(
            &policy(RestartWhen::Always),
            &spent,
            Some(1),
            Some(T - Duration::from_secs(61)),
            T,
        );
        assert!(matches!(verdict, Verdict::Restart { attempt: 1, .. }));
    }

    #[test]
    fn on_failure_leaves_a_clean_exit_alone_and_counts_an_unseen_end_as_failure() {
        let none = RestartStatus::default();
        assert_eq!(
            decide(&policy(RestartWhen::OnFailure), &none, Some(0), None, T),
            Verdict::Stay
        );
        assert!(matches!(
            decide(&policy(RestartWhen::OnFailure), &none, None, None, T),
            Verdict::Restart { .. }
        ));
        assert_eq!(
            decide(&policy(RestartWhen::Never), &none, Some(1), None, T),
            Verdict::Stay
        );
    }

    #[test]
    fn backoff_is_bounded() {
        let endless = RestartPolicy {
            max_attempts: 0,
            ..policy(RestartWhen::Always)
        };
        let status = RestartStatus {
            attempts: 4_000_000_000,
            ..RestartStatus::default()
        };
        assert_eq!(
            decide(&endless, &status, None, None, T),
            Verdict::Restart {
                at: T + LONGEST_BACKOFF,
                attempt: 4_000_000_001
            }
        );
    }
}

//! Killed at every place: the server dies at each named step of each operation and is started again; within ten
//! seconds the operation is completed or undone, and record and host agree (`warren fsck`).
//!
//! The places are found by running each operation once and noting what it comes by; a place that is in the sources
//! and that no operation came by fails the test, so that a new step cannot be forgotten.
//!
//! `./dev soak crash` runs all of it on real machines, with these in the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `WARREN_CRASH_MACHINES=real` | on QEMU |
//! | `WARREN_CRASH_EACH_TIME=1` | at each of the times that an operation comes by a place, not at the first alone |
//! | `WARREN_CRASH_STATE=FILE` | what is done is appended to `FILE`, and not done again |
//! | `WARREN_CRASH_SECONDS=N` | nothing is begun after that long |

mod operation;
mod places;
mod progress;
mod stage;

use crate::harness::{Mode, missing, skip};
use operation::Operation;
use progress::{Case, Progress};
use stage::{Machines, Stage};
use std::collections::BTreeSet;

/// Kills at all places of `operations` that are wanted and not done yet.
fn kill_everywhere(
    mode: Mode,
    machines: Machines,
    operations: &[Operation],
    wanted: impl Fn(&str) -> bool,
    progress: &Progress,
) {
    let mut stage = Stage::set(mode, machines);
    for operation in operations {
        let mut cases = Vec::new();
        for (name, times) in stage.trace(*operation) {
            // A first create differs from any other in a few places only, and so does an upgrade from any start.
            let differs_little = match operation {
                Operation::CreateFirst | Operation::Upgrade => true,
                // From the start of a VMM: which takes seconds, where it is real.
                Operation::Wake => machines == Machines::Real && !progress.is_of_each_time(),
                _ => false,
            };
            let known = differs_little && progress.was_hit(&name);
            if !known && wanted(&name) {
                let time = |time| Case::new(mode, *operation, &name, time);
                cases.extend((1..=progress.times(times)).map(time));
            }
        }
        for case in cases {
            if progress.is_over() {
                return stage.strike();
            }
            if !progress.is_done(&case) {
                let died = stage.kill_at(*operation, &case.place, case.time);
                progress.note(&case, died);
            }
        }
    }
    stage.strike();
}

/// Fails for each place in the sources of which `wanted` says that it should have been hit.
fn nothing_forgotten(progress: &Progress, wanted: impl Fn(&str) -> bool) {
    let hit = progress.hit();
    println!("killed {} times at {} places:", progress.kills(), hit.len());
    for name in &hit {
        println!("  {name}");
    }
    let forgotten: BTreeSet<String> = places::all()
        .into_iter()
        .filter(|name| wanted(name) && !hit.contains(name))
        .collect();
    assert!(
        forgotten.is_empty(),
        "no operation comes by these places, which are in the sources: {forgotten:?}"
    );
}

#[test]
fn killed_at_every_place_of_every_operation_it_converges_and_leaves_nothing() {
    const NAME: &str = "killed_at_every_place_of_every_operation_it_converges_and_leaves_nothing";
    if let Some(reason) = missing(Mode::Bridge).or_else(|| missing(Mode::User)) {
        return skip(NAME, &reason);
    }
    let machines = Machines::from_environment();
    let progress = Progress::from_environment();
    std::thread::scope(|scope| {
        for mode in [Mode::Bridge, Mode::User] {
            let progress = &progress;
            scope.spawn(move || {
                kill_everywhere(mode, machines, Operation::of(mode), |_| true, progress);
            });
        }
    });
    if progress.is_over() {
        println!("killed {} times, and there is more to do", progress.kills());
        return;
    }
    nothing_forgotten(&progress, |name| match machines {
        Machines::Fake => !places::of_real_machines(name),
        Machines::Real => !places::of_fake_machines(name),
    });
}

/// Seeds in one run of the test; `WARREN_SEEDS` asks for more (`./dev soak recovery`).
const SEEDS: u64 = 10;

#[test]
fn killed_again_and_again_during_recovery_it_converges() {
    const NAME: &str = "killed_again_and_again_during_recovery_it_converges";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let seeds = std::env::var("WARREN_SEEDS").ok();
    let seeds = seeds.and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let kills: usize = std::thread::scope(|scope| {
        let halves: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    let mut stage = Stage::set(Mode::Bridge, Machines::Fake);
                    let kills: usize = (0..seeds)
                        .filter(|seed| seed % 2 == half)
                        .map(|seed| {
                            println!("seed {seed}");
                            stage.kill_again_and_again(seed)
                        })
                        .sum();
                    stage.strike();
                    kills
                })
            })
            .collect();
        halves.into_iter().map(|half| half.join().unwrap()).sum()
    });
    println!("{seeds} seeds, {kills} kills during recovery: it converged each time");
}

#[test]
fn killed_while_a_real_machine_is_made_paused_and_taken_away_it_converges_and_leaves_nothing() {
    const NAME: &str =
        "killed_while_a_real_machine_is_made_paused_and_taken_away_it_converges_and_leaves_nothing";
    if let Some(reason) = missing(Mode::Bridge) {
        return skip(NAME, &reason);
    }
    let progress = Progress::default();
    let operations = [
        Operation::Create,
        Operation::Pause,
        Operation::Standby,
        Operation::Wake,
        Operation::Delete,
    ];
    kill_everywhere(
        Mode::Bridge,
        Machines::Real,
        &operations,
        places::of_real_machines,
        &progress,
    );
    nothing_forgotten(&progress, places::of_real_machines);
}

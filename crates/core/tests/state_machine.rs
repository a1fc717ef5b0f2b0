//! `docs/state-machine.md` is what the code says: rendered from the admission table, the table of moves and the
//! planner's steps. `UPDATE_DOCS=1 cargo test -p warren-core --test state_machine` rewrites it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use warren_core::admission::{Admission, Operation, admit};
use warren_core::instance::Desired;
use warren_core::planner::Step;
use warren_core::state::{InstanceState, StateName};

const DESIRED: [Desired; 5] = [
    Desired::Running,
    Desired::Paused,
    Desired::Standby,
    Desired::Stopped,
    Desired::Deleted,
];

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/state-machine.md")
}

/// One row's answers, by state.
fn answers(operation: Operation, desired: Desired) -> Vec<String> {
    StateName::ALL
        .into_iter()
        .map(|state| match admit(operation, state, desired) {
            Admission::Accept => "yes".to_owned(),
            Admission::AlreadySo => "already so".to_owned(),
            Admission::Refuse(refusal) => match refusal.next {
                Some(next) => format!("no: {next}"),
                None => "no".to_owned(),
            },
        })
        .collect()
}

fn cells(words: impl IntoIterator<Item = String>) -> String {
    words.into_iter().fold("|".to_owned(), |mut line, word| {
        line.push_str(&format!(" {word} |"));
        line
    })
}

fn rule(columns: usize) -> String {
    format!("|{}", "---|".repeat(columns))
}

fn rendered() -> String {
    let states = || StateName::ALL.into_iter().map(|state| state.to_string());
    let mut text = String::from(
        "# States, and what may be asked in each\n\n\
         Rendered from `crates/core` by its test `state_machine`, which fails when this page is not what the code says \
         (`UPDATE_DOCS=1 cargo test -p warren-core --test state_machine` rewrites it).\n\n\
         ## Requests\n\n\
         Every request in every state, for what the instance is on its way to. *yes*: it is recorded and carried out; \
         *already so*: it succeeds and changes nothing; *no*: 409 `wrong_state`, with what to do instead. A delete is \
         never refused. An instance whose record is in doubt (`warren system recover`) answers 503 `record_in_doubt` to \
         all but a delete.\n\n",
    );
    let heads = ["request", "on its way to"].map(str::to_owned);
    writeln!(text, "{}", cells(heads.into_iter().chain(states()))).unwrap();
    writeln!(text, "{}", rule(StateName::ALL.len() + 2)).unwrap();
    for operation in Operation::ALL {
        let mut rows: Vec<(Vec<Desired>, Vec<String>)> = Vec::new();
        for desired in DESIRED {
            let answers = answers(operation, desired);
            match rows.iter_mut().find(|(_, known)| *known == answers) {
                Some((wishes, _)) => wishes.push(desired),
                None => rows.push((vec![desired], answers)),
            }
        }
        for (wishes, answers) in rows {
            let wishes: Vec<String> = wishes.iter().map(|wish| format!("{wish:?}")).collect();
            let heads = [format!("{operation:?}"), wishes.join(", ")];
            writeln!(text, "{}", cells(heads.into_iter().chain(answers))).unwrap();
        }
    }
    text.push_str(
        "\n## Moves\n\n\
         From the state of the row to that of the column. A move that is not here is an error that names both.\n\n",
    );
    writeln!(
        text,
        "{}",
        cells(["from \\ to".to_owned()].into_iter().chain(states()))
    )
    .unwrap();
    writeln!(text, "{}", rule(StateName::ALL.len() + 1)).unwrap();
    for from in StateName::ALL {
        let moves = StateName::ALL.into_iter().map(|to| {
            let word = match InstanceState::check_move(from, to) {
                _ if from == to => "=",
                Ok(()) => "yes",
                Err(_) => "",
            };
            word.to_owned()
        });
        writeln!(
            text,
            "{}",
            cells([from.to_string()].into_iter().chain(moves))
        )
        .unwrap();
    }
    text.push_str(
        "\n## Steps\n\n\
         What brings a host closer to what is wanted (`planner.rs`). From any sight of a host the plans end, and then \
         ask for nothing: a property test (`tests/planner`). Each step may be repeated; the server is killed before \
         and after each (`step.NAME.begun`, `step.NAME.done`).\n\n",
    );
    for step in Step::ALL {
        writeln!(text, "- `{}`", step.name()).unwrap();
    }
    text
}

#[test]
fn the_committed_page_is_what_the_code_says() {
    let rendered = rendered();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(page(), &rendered).unwrap();
    }
    let committed = std::fs::read_to_string(page()).unwrap_or_default();
    assert!(
        committed == rendered,
        "docs/state-machine.md is not what the code says: UPDATE_DOCS=1 rewrites it"
    );
}

#[test]
fn every_request_has_an_answer_for_every_state_and_every_wish() {
    for operation in Operation::ALL {
        for desired in DESIRED {
            assert_eq!(answers(operation, desired).len(), StateName::ALL.len());
        }
        let deleted = answers(Operation::Delete, Desired::Running);
        assert!(deleted.iter().all(|answer| answer == "yes"), "{deleted:?}");
    }
}

//! The places there are, as the sources name them.

use crate::harness::checkout;
use std::collections::BTreeSet;
use std::path::Path;
use warren_core::planner::Step;

/// Whose places other tests kill at: the image store has a crash test of its own, on its own operations.
const ELSEWHERE: [&str; 1] = ["image"];

/// Every name in a call of `reached` in the sources, and the two of each step of the planner.
pub(super) fn all() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = Step::ALL
        .iter()
        .flat_map(|step| ["begun", "done"].map(|place| format!("step.{}.{place}", step.name())))
        .collect();
    for entry in std::fs::read_dir(checkout().join("crates")).unwrap() {
        let directory = entry.unwrap().path();
        let name = directory
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if !ELSEWHERE.contains(&name.as_str()) {
            read(&directory.join("src"), &mut names);
        }
    }
    names
}

fn read(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, names);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            names.extend(literals(&text));
        }
    }
}

/// The literals in calls of `reached`, but for those in comments.
fn literals(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("reached(\"").skip(1))
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// Places that only a hypervisor which runs something comes by.
pub(super) fn of_real_machines(name: &str) -> bool {
    name.starts_with("qemu.")
}

/// Places that only the hypervisor which runs nothing comes by.
pub(super) fn of_fake_machines(name: &str) -> bool {
    name.starts_with("fake.")
}

#[test]
fn places_are_read_from_calls_and_not_from_comments() {
    let text = "reached(\"a.b\");\n// reached(\"c.d\")\nwarren_crashpoint::reached(\"e.f\")\nreached(&format!(\"x\"))";
    assert_eq!(literals(text), ["a.b", "e.f"]);
}

#[test]
fn places_have_one_name_each_of_the_agreed_form() {
    for name in all() {
        let fits = name.split('.').count() >= 2
            && name.split('.').all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            });
        assert!(fits, "{name}");
    }
}

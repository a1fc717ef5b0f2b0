//! Which crate may know which, and how large a file may get: rules that `ARCHITECTURE.md` states and
//! nothing else would notice being broken.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates of the workspace, and which of them each may depend on.
const ALLOWED: [(&str, &[&str]); 15] = [
    ("core", &[]),
    ("crashpoint", &[]),
    ("api", &["core"]),
    ("store", &["core", "crashpoint"]),
    ("tar", &[]),
    ("image", &["core", "crashpoint", "tar"]),
    ("hypervisor", &["core", "helper", "crashpoint"]),
    ("network", &["core", "helper", "crashpoint"]),
    ("helper", &["crashpoint"]),
    ("tree", &["tar"]),
    ("guest", &["tar", "tree"]),
    ("agent", &["core", "api", "guest", "crashpoint"]),
    ("ssh", &["core"]),
    ("control", &["core", "api", "crashpoint", "ssh"]),
    (
        "warren",
        &[
            "core",
            "crashpoint",
            "api",
            "store",
            "image",
            "hypervisor",
            "network",
            "helper",
            "tar",
            "tree",
            "guest",
            "ssh",
            "agent",
            "control",
        ],
    ),
];

/// Arrows that must not exist even by way of other crates, and why.
const FORBIDDEN: [(&str, &[&str], &str); 4] = [
    (
        "control",
        &["hypervisor", "network", "image", "helper", "guest"],
        "control reaches hosts only through HostLink, so that one host and many are the same path",
    ),
    (
        "agent",
        &["store", "hypervisor", "network", "image"],
        "an agent is handed ports, so that every adapter can be exchanged for its fake, and it never writes intent",
    ),
    (
        "helper",
        &["core"],
        "what runs as root knows a closed set of verbs and as little code as possible",
    ),
    (
        "guest",
        &["core"],
        "what runs in every guest is static and small, and outlives the host's version",
    ),
];

/// Crates that touch the world or run futures: none may be below `core`.
const IO_CRATES: [&str; 27] = [
    "async-io",
    "async-std",
    "axum",
    "futures-executor",
    "getrandom",
    "h2",
    "hyper",
    "libsqlite3-sys",
    "mio",
    "nix",
    "notify",
    "oci-client",
    "polling",
    "rand",
    "reqwest",
    "rtnetlink",
    "rusqlite",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "tracing-subscriber",
    "ureq",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// The platform that the tests were built for, as cargo writes it.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.unwrap().to_owned()
}

/// Who depends on whom, by name, tests' own dependencies left out.
struct Graph {
    members: BTreeSet<String>,
    arrows: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Graph {
        // Packages for other platforms than this one were never downloaded.
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline", "--locked"])
            .args(["--filter-platform", &host()])
            .current_dir(workspace())
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo metadata: {complaint}");
        Graph::parse(&serde_json::from_slice(&output.stdout).unwrap())
    }

    fn parse(metadata: &Value) -> Graph {
        let list = |value: &Value| value.as_array().unwrap().clone();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let arrows = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let to = list(&node["deps"])
                    .iter()
                    .filter(|dep| list(&dep["dep_kinds"]).iter().any(|k| k["kind"] != "dev"))
                    .map(|dep| names[&text(&dep["pkg"])].clone())
                    .collect::<BTreeSet<_>>();
                (names[&text(&node["id"])].clone(), to)
            })
            // Two versions of one crate are one name here.
            .fold(BTreeMap::new(), |mut all, (from, to)| {
                all.entry(from).or_insert_with(BTreeSet::new).extend(to);
                all
            });
        Graph {
            members: list(&metadata["workspace_members"])
                .iter()
                .map(|id| names[&text(id)].clone())
                .collect(),
            arrows,
        }
    }

    /// A way from one package to another, if there is any.
    fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut paths = vec![vec![from.to_owned()]];
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop() {
            let last = path.last().unwrap();
            if last == to && path.len() > 1 {
                return Some(path);
            }
            if seen.insert(last.clone()) {
                for next in self.arrows.get(last).into_iter().flatten() {
                    paths.push([&path[..], std::slice::from_ref(next)].concat());
                }
            }
        }
        None
    }

    /// Every broken rule, in a sentence.
    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let known: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| package(name)).collect();
        for member in self.members.symmetric_difference(&known) {
            complaints.push(format!(
                "{member}: the workspace and the table of allowed arrows do not name the same crates"
            ));
        }
        for (from, allowed) in ALLOWED {
            let allowed: BTreeSet<String> = allowed.iter().copied().map(package).collect();
            for to in self.arrows.get(&package(from)).into_iter().flatten() {
                if self.members.contains(to) && !allowed.contains(to) {
                    complaints.push(format!(
                        "{} -> {to}: not in the table of allowed arrows",
                        package(from)
                    ));
                }
            }
        }
        for (from, to, why) in FORBIDDEN {
            for to in to {
                if let Some(path) = self.path(&package(from), &package(to)) {
                    complaints.push(format!("{}: {why}", path.join(" -> ")));
                }
            }
        }
        for to in IO_CRATES {
            if let Some(path) = self.path(&package("core"), to) {
                complaints.push(format!(
                    "{}: core is pure: no I/O, no clock, no async runtime",
                    path.join(" -> ")
                ));
            }
        }
        complaints
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn package(name: &str) -> String {
    match name {
        "warren" => name.to_owned(),
        _ => format!("warren-{name}"),
    }
}

#[test]
fn no_arrow_is_forbidden() {
    let complaints = Graph::read().complaints();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn a_forbidden_arrow_is_named_with_its_reason() {
    for (from, to, expected) in [
        ("warren-core", "tokio", "core is pure"),
        ("warren-core", "warren-api", "not in the table"),
        ("warren-control", "warren-network", "through HostLink"),
        // By way of another crate.
        (
            "warren-api",
            "warren-guest",
            "warren-control -> warren-api -> warren-guest",
        ),
        ("warren-agent", "warren-store", "handed ports"),
        ("warren-helper", "warren-core", "runs as root"),
        ("serde", "mio", "serde -> mio"),
    ] {
        let mut graph = Graph::read();
        graph.arrows.get_mut(from).unwrap().insert(to.to_owned());
        let complaints = graph.complaints().join("\n");
        assert!(
            complaints.contains(expected),
            "{from} -> {to}: {complaints}"
        );
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&workspace().join("crates"), &mut found);
    assert!(found.len() > 50, "only {} sources found", found.len());
    found
}

const LONGEST: usize = 1000;

#[test]
fn no_source_file_is_longer_than_a_thousand_lines() {
    let long: Vec<String> = all_sources()
        .iter()
        .filter_map(|path| {
            let lines = std::fs::read_to_string(path).unwrap().lines().count();
            (lines > LONGEST).then(|| format!("{}: {lines} lines, split it", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

/// What no code of ours may contain outside tests, and why.
const DENIED: [(&str, &str); 9] = [
    ("todo!(", "what is not there must not compile"),
    ("unimplemented!(", "what is not there must not compile"),
    ("dbg!(", "left over from debugging"),
    ("eprintln!(\"DEBUG", "left over from debugging"),
    ("FIXME", "fix it"),
    ("XXX", "say what it is"),
    (
        "#[allow(",
        "#[expect(…, reason = \"…\")] notices when it is no longer needed",
    ),
    (
        "#![allow(",
        "#![expect(…, reason = \"…\")] notices when it is no longer needed",
    ),
    ("#[ignore", "a test that is not run is not a test"),
];

/// The denied words in one file's text outside its test module, with their lines.
fn denied(source: &str) -> Vec<(usize, &'static str, &'static str)> {
    source
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .flat_map(|(number, line)| {
            DENIED
                .iter()
                .filter(move |(word, _)| line.contains(word))
                .map(move |(word, why)| (number + 1, *word, *why))
        })
        .collect()
}

#[test]
fn no_denied_word_is_in_code_that_ships() {
    let mut complaints = Vec::new();
    for path in all_sources() {
        if path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        for (line, word, why) in denied(&std::fs::read_to_string(&path).unwrap()) {
            complaints.push(format!("{}:{line}: {word}: {why}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn a_denied_word_is_found_only_outside_the_test_module() {
    let found =
        denied("fn a() {\n    todo!()\n}\n#[cfg(test)]\nmod tests { fn b() { dbg!(1); } }\n");
    assert_eq!(found, [(2, "todo!(", "what is not there must not compile")]);
}

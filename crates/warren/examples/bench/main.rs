//! Measures Warren against what does the same without it, side by side in one run: pairs in alternating order, medians,
//! and each arm compared with itself (A/A), which shows how far this machine's noise goes.
//!
//! Run by `./dev bench`. Rows with real machines need root (a bridge and TAPs).
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

mod bare;
mod client;
mod command;
mod report;
mod rows;
mod server;
mod ssh;

use anyhow::{Context, bail};
use report::{NOISE, Report};
use std::path::PathBuf;

/// Every subject, in the order in which they run.
const SUBJECTS: [&str; 10] = [
    "create", "standby", "images", "requests", "durable", "list", "memory", "crowd", "exec",
    "copies",
];

struct Arguments {
    subjects: Vec<String>,
    pairs: usize,
    instances: usize,
    json: Option<PathBuf>,
    record: bool,
    check: bool,
}

const HELP: &str = "\
./dev bench: Warren against the bare tools, as ratios

  SUBJECT…        only these [default: all]:
                  create    create → ready against QEMU by hand, and where the time goes
                  standby   restore → a command answers against create → a command answers
                  images    OCI layout → bootable disk against umoci and mke2fs, and zcat | sha256sum
                  requests  GET requests a second against a hello-world
                  durable   durable creates a second against the bare store (fake hypervisor)
                  list      a list of 10,000 against serialising it (fake hypervisor)
                  memory    for each instance, and of a VMM against QEMU by hand
                  crowd     many instances started, and a server restart among them
                  exec      a command in a guest against ssh into it, and an echo; two hundred at once
                  copies    a file into a guest and out of it against scp, and the bare channel
  --pairs N       measured pairs [default: 15]
  --instances N   how many make a crowd [default: 100]
  --json FILE     also write the figures there
  --record        take the rows over into docs/bench.json and docs/bench.md, but for those that the machine was too
                  noisy for
  --check         fail when a row misses its aim, or is more than a tenth worse than docs/bench.json";

fn arguments() -> anyhow::Result<Option<Arguments>> {
    let mut parsed = Arguments {
        subjects: Vec::new(),
        pairs: 15,
        instances: 100,
        json: None,
        record: false,
        check: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--check" => parsed.check = true,
            "--record" => parsed.record = true,
            "--pairs" => parsed.pairs = words.next().context("--pairs needs a number")?.parse()?,
            "--instances" => {
                parsed.instances = words
                    .next()
                    .context("--instances needs a number")?
                    .parse()?;
            }
            "--json" => parsed.json = Some(words.next().context("--json needs a file")?.into()),
            subject if SUBJECTS.contains(&subject) => parsed.subjects.push(subject.to_owned()),
            other => bail!("there is no {other} (see --help)"),
        }
    }
    anyhow::ensure!(parsed.pairs >= 4, "an A/A control needs at least 4 pairs");
    anyhow::ensure!(parsed.instances >= 2, "a crowd has at least 2 instances");
    if parsed.subjects.is_empty() {
        parsed.subjects = SUBJECTS.map(str::to_owned).to_vec();
    }
    Ok(Some(parsed))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(rows::requests::HELLO) {
        return rows::requests::serve_hello().await;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(arguments) = arguments()? else {
        println!("{HELP}");
        return Ok(());
    };
    let (pairs, mut report) = (arguments.pairs, Report::default());
    for subject in &arguments.subjects {
        match subject.as_str() {
            "create" => rows::create::measure(pairs, &mut report).await?,
            "standby" => rows::standby::measure(pairs, &mut report).await?,
            "images" => rows::images::measure(pairs, &mut report).await?,
            "requests" => rows::requests::measure(pairs, &mut report).await?,
            "durable" => rows::durable::measure(pairs, &mut report).await?,
            "list" => rows::list::measure(pairs.min(6), &mut report).await?,
            "memory" => rows::memory::measure(pairs.min(6), &mut report).await?,
            "exec" => rows::exec::measure(pairs, &mut report).await?,
            "copies" => rows::copies::measure(pairs.min(8), &mut report).await?,
            "crowd" => rows::crowd::measure(arguments.instances, pairs.min(4), &mut report).await?,
            other => bail!("there is no {other}"),
        }
    }
    sign(&mut report);
    println!("{}", report.table());
    for row in report.noisy() {
        println!(
            "{}: an arm differs from itself by more than {:.0} %: this machine was noisy.",
            row.name,
            NOISE * 100.0
        );
    }
    if let Some(path) = arguments.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let mut committed = committed()?;
    let complaints = report.complaints(&committed);
    if arguments.record {
        committed.take_over(report);
        let json = serde_json::to_string_pretty(&committed)? + "\n";
        std::fs::write(TABLE, json).context("writing docs/bench.json")?;
        std::fs::write(PAGE, committed.page()).context("writing docs/bench.md")?;
    }
    if arguments.check {
        anyhow::ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
    Ok(())
}

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/bench.json");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/bench.md");

fn committed() -> anyhow::Result<Report> {
    match std::fs::read(TABLE) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("reading docs/bench.json"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Report::default()),
        Err(error) => Err(error).context("reading docs/bench.json"),
    }
}

/// What a program prints first, or that it does not.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let text = output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    text.lines().next().unwrap_or("nothing").trim().to_owned()
}

/// Notes how, at which commit and on what it was measured.
fn sign(report: &mut Report) {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !matches!(word.as_str(), "--record" | "--check"))
        .collect();
    let commit = first_line("git", &["describe", "--always", "--dirty"]);
    for row in &mut report.rows {
        row.command = format!("./dev bench -- {}", words.join(" "));
        row.commit.clone_from(&commit);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    report.machine = format!(
        "{processors} processors, {}; {}",
        first_line("uname", &["-srm"]),
        first_line("qemu-system-x86_64", &["--version"])
    );
}

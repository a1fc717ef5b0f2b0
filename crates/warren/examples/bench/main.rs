//! Measures what Warren adds: `create → ready` through the API against QEMU started by hand with the same
//! kernel, initramfs, disks, devices and readiness signal. Pairs run in alternating order in one process; each arm
//! is also compared with itself (A/A), which shows how far this machine's noise goes.
//!
//! Run by `./dev bench`. Needs root (a bridge and a TAP).
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

mod bare;
mod figures;
mod server;

use anyhow::{Context, bail};
use figures::Figures;
use std::path::PathBuf;
use std::time::Duration;

/// Pairs measured unless told otherwise.
const PAIRS: usize = 15;
/// The ratio that `--check` accepts.
const LIMIT: f64 = 1.25;
/// How far an arm may be from itself for a ratio to mean anything.
const NOISE: f64 = 0.05;

struct Arguments {
    pairs: usize,
    json: Option<PathBuf>,
    check: bool,
}

const HELP: &str = "\
./dev bench: what Warren adds to starting QEMU by hand

  --pairs N     measured pairs [default: 15]
  --json FILE   also write the figures there
  --check       fail when the ratio is above its limit";

fn arguments() -> anyhow::Result<Option<Arguments>> {
    let mut parsed = Arguments {
        pairs: PAIRS,
        json: None,
        check: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--check" => parsed.check = true,
            "--pairs" => parsed.pairs = words.next().context("--pairs needs a number")?.parse()?,
            "--json" => parsed.json = Some(words.next().context("--json needs a file")?.into()),
            other => bail!("there is no {other} (see --help)"),
        }
    }
    anyhow::ensure!(parsed.pairs >= 4, "an A/A control needs at least 4 pairs");
    Ok(Some(parsed))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(arguments) = arguments()? else {
        println!("{HELP}");
        return Ok(());
    };
    let server = server::BenchServer::start().await?;
    let bare = bare::BareQemu::like_a_guest_of(&server).await?;
    // Neither arm pays for what the first run of anything pays.
    server.create_to_ready("warm-up").await?;
    bare.start_to_ready().await?;
    let (mut through, mut by_hand): (Vec<Duration>, Vec<Duration>) = Default::default();
    for pair in 0..arguments.pairs {
        let name = format!("pair-{pair}");
        if pair % 2 == 0 {
            through.push(server.create_to_ready(&name).await?);
            by_hand.push(bare.start_to_ready().await?);
        } else {
            by_hand.push(bare.start_to_ready().await?);
            through.push(server.create_to_ready(&name).await?);
        }
        eprint!("\r{} of {} pairs", pair + 1, arguments.pairs);
    }
    eprintln!();
    let figures = Figures::of(&through, &by_hand);
    println!("{}", figures.table());
    if let Some(path) = arguments.json {
        std::fs::write(&path, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    server.stop().await?;
    if arguments.check {
        anyhow::ensure!(
            figures.ratio <= LIMIT,
            "create → ready is {:.3} of bare QEMU; the limit is {LIMIT}",
            figures.ratio
        );
    }
    if figures.worst_control() > NOISE {
        println!(
            "This machine was noisy: an arm differs from itself by {:.0} %.",
            figures.worst_control() * 100.0
        );
    }
    Ok(())
}

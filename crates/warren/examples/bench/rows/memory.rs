//! Memory of Warren for each running instance, and of its VMM against QEMU started by hand.

use crate::bare::{BareQemu, RawPort, qemu_in};
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use anyhow::Context;
use std::time::Duration;

/// Instances over which the server's growth is divided, and how often.
const BATCH: usize = 200;
const BATCHES: usize = 4;
/// For a guest to have touched what it touches while idle.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Fake).await?;
    // What the first instances cost once is not what each costs.
    for number in 0..20 {
        server.create(&format!("early-{number:03}")).await?;
    }
    let mut each = Vec::new();
    let mut before = proportional_kib(server.pid())?;
    for batch in 0..BATCHES {
        for number in 0..BATCH {
            server.create(&format!("grown-{batch}-{number:03}")).await?;
        }
        let now = proportional_kib(server.pid())?;
        each.push((now - before) / BATCH as f64);
        before = now;
    }
    report.rows.push(Row::of_bound(
        "memory-instance",
        "Warren's own memory for a running instance (fake hypervisor, growth by each further 200)",
        "KiB",
        256.0,
        &each,
    ));
    server.stop().await?;

    let server = BenchServer::start(Machines::Real).await?;
    let bare = BareQemu::like_a_guest_of(&server).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                server.create(&format!("weighed-{pair}")).await?;
                tokio::time::sleep(SETTLE).await;
                let home = std::fs::read_dir(server.instances())?.next();
                let home = home.context("no instance directory")??.path();
                ours.push(proportional_kib(qemu_in(&home)?.0)? / 1024.0);
                server.delete(&format!("weighed-{pair}")).await?;
            } else {
                let guest = bare.start(0, RawPort::Absent).await?;
                tokio::time::sleep(SETTLE).await;
                theirs.push(proportional_kib(guest.pid())? / 1024.0);
            }
        }
        eprint!("\rmemory: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "memory-vmm",
        "memory of an idle VMM (proportional set size), one at a time",
        "MiB",
        "bare QEMU",
        Aim::AtMost(1.03),
        &ours,
        &theirs,
    ));
    server.stop().await
}

/// Proportional set size: pages shared with others count in part.
fn proportional_kib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no Pss")?.parse()?)
}

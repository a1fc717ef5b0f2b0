//! `create → ready` through the API against QEMU started by hand: what Warren adds, and where the time goes.

use crate::bare::BareQemu;
use crate::report::{Aim, Report, Row, median};
use crate::server::{BenchServer, Machines};
use std::collections::BTreeMap;
use std::time::Instant;

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Real).await?;
    let bare = BareQemu::like_a_guest_of(&server).await?;
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    // Neither arm pays for what the first run of anything pays.
    through_the_api(&server, "warm-up", &mut BTreeMap::new()).await?;
    bare.start_to_ready().await?;
    let (mut through, mut by_hand) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        let name = format!("pair-{pair}");
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                through.push(through_the_api(&server, &name, &mut phases).await?);
            } else {
                by_hand.push(bare.start_to_ready().await?.as_secs_f64() * 1000.0);
            }
        }
        eprint!("\rcreate: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "create",
        "create → guest ready",
        "ms",
        "bare QEMU, same kernel, disk, arguments",
        Aim::AtMost(1.05),
        &through,
        &by_hand,
    ));
    report.rows.push(Row::of_difference(
        "create-added",
        "what Warren adds to it, median of the pairs",
        "ms",
        25.0,
        &through,
        &by_hand,
    ));
    report.breakdown = phases
        .into_iter()
        .map(|(phase, times)| (phase, median(times)))
        .collect();
    server.stop().await
}

/// Milliseconds of one create; the instance is removed again, unmeasured.
async fn through_the_api(
    server: &BenchServer,
    name: &str,
    phases: &mut BTreeMap<String, Vec<f64>>,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let answer = server.create(name).await?;
    let took = start.elapsed().as_secs_f64() * 1000.0;
    let told = answer["phase_durations_ms"].as_object();
    for (phase, millis) in told.into_iter().flatten() {
        let millis = millis.as_f64().unwrap_or_default();
        phases.entry(phase.clone()).or_default().push(millis);
    }
    phases
        .entry("(all, as the client sees it)".to_owned())
        .or_default()
        .push(took);
    server.delete(name).await?;
    Ok(took)
}

//! Back from standby against a cold boot, each until a command has answered.

use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use std::time::Instant;

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Real).await?;
    // Neither arm pays for what the first run of anything pays.
    server.create("warm").await?;
    standby(&server, "warm").await?;
    restored(&server, "warm").await?;
    let (mut back, mut cold) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                standby(&server, "warm").await?;
                back.push(restored(&server, "warm").await?);
            } else {
                cold.push(booted(&server, &format!("cold-{pair}")).await?);
            }
        }
        eprint!("\rstandby: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "restore",
        "restore from standby → a command has answered",
        "ms",
        "create → a command has answered",
        Aim::AtMost(0.15),
        &back,
        &cold,
    ));
    server.stop().await
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

async fn standby(server: &BenchServer, name: &str) -> anyhow::Result<()> {
    let path = format!("/instances/{name}/standby");
    let (status, answer) = server.call("POST", &path, None).await?;
    anyhow::ensure!(
        status == 200 && answer["state"] == "Standby",
        "standby answered {status}: {answer}"
    );
    Ok(())
}

async fn restored(server: &BenchServer, name: &str) -> anyhow::Result<f64> {
    let start = Instant::now();
    let path = format!("/instances/{name}/restore");
    let (status, answer) = server.call("POST", &path, None).await?;
    anyhow::ensure!(
        status == 200 && answer["state"] == "Running",
        "restore answered {status}: {answer}"
    );
    server.cli(&["exec", name, "true"])?;
    Ok(millis(start))
}

/// The instance is removed again, unmeasured.
async fn booted(server: &BenchServer, name: &str) -> anyhow::Result<f64> {
    let start = Instant::now();
    server.create(name).await?;
    server.cli(&["exec", name, "true"])?;
    let took = millis(start);
    server.delete(name).await?;
    Ok(took)
}

//! Many instances: started against the same QEMUs under two workers, and a server restart among them.

use crate::bare::{BareGuest, BareQemu, RawPort};
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// As `xargs -P2` would.
const WORKERS: usize = 2;
const RESTARTS: usize = 8;
/// Until all must be adopted.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(
    instances: usize,
    pairs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut server = BenchServer::start(Machines::Real).await?;
    let mut bare = BareQemu::like_a_guest_of(&server).await?;
    bare.make_taps(instances)?;
    let (mut through, mut hand) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                through.push(through_the_api(&server, instances).await?);
                server.remove_all().await?;
            } else {
                hand.push(by_hand(&bare, instances).await?);
            }
        }
        eprint!("\rcrowd: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "crowd",
        &format!("{instances} instances started, all kept running"),
        "s",
        "the same QEMUs under two workers",
        Aim::AtMost(1.05),
        &through,
        &hand,
    ));
    let (mut up, mut adopted) = (Vec::new(), Vec::new());
    through_the_api(&server, instances).await?;
    for _ in 0..RESTARTS {
        let start = Instant::now();
        up.push(server.restart().await?.as_secs_f64());
        adopted.push(all_adopted(&server, instances, start).await?);
    }
    report.rows.push(Row::of_bound(
        "restart-api",
        &format!("server killed and started with {instances} running: the API answers"),
        "s",
        1.0,
        &up,
    ));
    report.rows.push(Row::of_bound(
        "restart-adopted",
        "… and the guest of every one of them answers",
        "s",
        2.0,
        &adopted,
    ));
    server.stop().await
}

async fn by_hand(bare: &BareQemu, instances: usize) -> anyhow::Result<f64> {
    let next = AtomicUsize::new(0);
    let running: Mutex<Vec<BareGuest>> = Mutex::new(Vec::new());
    let start = Instant::now();
    let workers = (0..WORKERS).map(|_| async {
        loop {
            let slot = next.fetch_add(1, Ordering::Relaxed);
            if slot >= instances {
                return anyhow::Ok(());
            }
            let guest = bare.start(slot, RawPort::Absent).await?;
            running
                .lock()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))?
                .push(guest);
        }
    });
    futures::future::try_join_all(workers).await?;
    Ok(start.elapsed().as_secs_f64())
}

async fn through_the_api(server: &BenchServer, instances: usize) -> anyhow::Result<f64> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let workers = (0..WORKERS).map(|_| async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= instances {
                return anyhow::Ok(());
            }
            server.create(&format!("crowd-{number:04}")).await?;
        }
    });
    futures::future::try_join_all(workers).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds from `start` until every guest answers its host: that an instance runs is in the record as well.
async fn all_adopted(
    server: &BenchServer,
    instances: usize,
    start: Instant,
) -> anyhow::Result<f64> {
    let answers = (0..instances).map(|number| async move {
        let path = format!("/instances/crowd-{number:04}/stats");
        loop {
            let (_, stats) = server.call("GET", &path, None).await?;
            if stats["guest_memory_used_bytes"].is_u64() {
                return anyhow::Ok(());
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "{path}: {stats}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    futures::future::try_join_all(answers).await?;
    Ok(start.elapsed().as_secs_f64())
}

//! Listing ten thousand instances against serialising the same rows.

use crate::client::Connection;
use crate::report::{Aim, Report, Row, quantile};
use crate::server::{BenchServer, Machines};
use std::time::Instant;
use warren_api::Instance;

const INSTANCES: usize = 10_000;
/// The API's largest page.
const PAGE: usize = 1000;
const CLIENTS: usize = 16;
/// Whole listings of which the slowest in a hundred counts.
const LISTINGS: usize = 100;

pub(crate) async fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Fake).await?;
    fill(&server).await?;
    eprintln!("list: {INSTANCES} instances made");
    let mut connection = Connection::open(server.port()).await?;
    let mut rows: Vec<Vec<Instance>> = Vec::new();
    for page in all_pages(&mut connection).await? {
        rows.push(serde_json::from_slice(&page)?);
    }
    anyhow::ensure!(
        rows.iter().map(Vec::len).sum::<usize>() == INSTANCES,
        "not all instances are listed"
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for arm in [round % 2, 1 - round % 2] {
            let mut times = Vec::new();
            for _ in 0..LISTINGS {
                let start = Instant::now();
                if arm == 0 {
                    std::hint::black_box(all_pages(&mut connection).await?);
                } else {
                    for rows in &rows {
                        std::hint::black_box(serde_json::to_vec(rows)?);
                    }
                }
                times.push(start.elapsed().as_secs_f64() * 1000.0);
            }
            let slowest = quantile(times, 0.99);
            if arm == 0 {
                ours.push(slowest)
            } else {
                theirs.push(slowest)
            }
        }
        eprint!("\rlist: {} of {rounds} rounds", round + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "list",
        "10,000 stopped instances listed in pages of 1,000, p99 of 100 listings",
        "ms",
        "serialising the same rows",
        Aim::AtMost(2.0),
        &ours,
        &theirs,
    ));
    server.stop().await
}

/// The whole list, page by page.
async fn all_pages(connection: &mut Connection) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut pages = Vec::new();
    let mut path = format!("/instances?limit={PAGE}");
    loop {
        let (status, body) = connection.request("GET", &path, b"").await?;
        anyhow::ensure!(status == 200, "{path} answered {status}");
        pages.push(body);
        match connection.next_page() {
            Some(token) => path = format!("/instances?limit={PAGE}&page_token={token}"),
            None => return Ok(pages),
        }
    }
}

async fn fill(server: &BenchServer) -> anyhow::Result<()> {
    let clients = (0..CLIENTS).map(|client| {
        let port = server.port();
        let mut request = server.request("");
        tokio::spawn(async move {
            let mut connection = Connection::open(port).await?;
            for number in (client..INSTANCES).step_by(CLIENTS) {
                let name = format!("listed{number:05}");
                request["id"] = name.as_str().into();
                request["name"] = name.as_str().into();
                let body = request.to_string();
                let (status, answer) = connection
                    .request("POST", "/instances", body.as_bytes())
                    .await?;
                anyhow::ensure!(
                    status == 201,
                    "create answered {status}: {}",
                    String::from_utf8_lossy(&answer)
                );
                // Not everybody's limit of open files lets ten thousand run.
                let stop = format!("/instances/{name}/stop");
                let (status, _) = connection.request("POST", &stop, b"{}").await?;
                anyhow::ensure!(status == 200, "stop answered {status}");
            }
            anyhow::Ok(())
        })
    });
    for client in futures::future::join_all(clients).await {
        client??;
    }
    Ok(())
}

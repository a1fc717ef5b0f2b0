//! Creates a second on the fake hypervisor against durable writes a second of the bare store.

use crate::client::Connection;
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use warren_core::ports::Store;
use warren_core::ports::store::{Guard, Transaction, Write};
use warren_store::{OpenOptions, SqliteStore};

const CLIENTS: usize = 16;
const SLICE: Duration = Duration::from_secs(2);

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Fake).await?;
    let made = Arc::new(AtomicUsize::new(0));
    // What the store holds for one instance is what the bare store writes.
    server.create("model").await?;
    let directory = tempfile::Builder::new().prefix("wrnb").tempdir()?;
    let store =
        SqliteStore::open(directory.path().join("store.db"), OpenOptions::default()).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let written = Arc::new(AtomicUsize::new(0));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                ours.push(creates(&server, &made).await?);
                server.remove_all().await?;
            } else {
                theirs.push(writes(&store, &written).await?);
            }
        }
        eprint!("\rdurable creates: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "durable-creates",
        "POST /instances answered 201, fake hypervisor, 16 clients",
        "creates/s",
        "transactions of the bare store, 16 writers",
        Aim::AtLeast(0.5),
        &ours,
        &theirs,
    ));
    server.stop().await
}

async fn creates(server: &BenchServer, made: &Arc<AtomicUsize>) -> anyhow::Result<f64> {
    let start = Instant::now();
    let clients = (0..CLIENTS).map(|_| {
        let (port, made) = (server.port(), Arc::clone(made));
        let mut request = server.request("");
        tokio::spawn(async move {
            let mut connection = Connection::open(port).await?;
            let mut done = 0u64;
            while start.elapsed() < SLICE {
                let name = format!("c{:07}", made.fetch_add(1, Ordering::Relaxed));
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
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for client in futures::future::join_all(clients).await {
        done += client??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

async fn writes(store: &Arc<dyn Store>, written: &Arc<AtomicUsize>) -> anyhow::Result<f64> {
    let value = bytes::Bytes::from(format!("{:?}", "x".repeat(1200)));
    let start = Instant::now();
    let writers = (0..CLIENTS).map(|_| {
        let (store, written, value) = (Arc::clone(store), Arc::clone(written), value.clone());
        tokio::spawn(async move {
            let mut done = 0u64;
            while start.elapsed() < SLICE {
                let key = format!("instance/{:09}", written.fetch_add(1, Ordering::Relaxed));
                let transaction = Transaction {
                    guards: vec![Guard::Absent(key.clone())],
                    writes: vec![Write::Put(key, value.clone())],
                };
                store.commit(transaction).await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for writer in futures::future::join_all(writers).await {
        done += writer??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

//! Creates a second on the fake hypervisor against the same transactions a second of the bare store.

use crate::client::Connection;
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use anyhow::Context;
use bytes::Bytes;
use rusqlite::OpenFlags;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use warren_core::ports::Store;
use warren_core::ports::store::{Guard, Transaction, Write};
use warren_store::{OpenOptions, SqliteStore};

const CLIENTS: usize = 16;
const SLICE: Duration = Duration::from_secs(2);
/// The server's own store keeps as many changes.
const HISTORY: usize = 20_000;

/// When a create is answered.
#[derive(Clone, Copy)]
enum Answered {
    /// As soon as it is durable; the instance starts behind it.
    Durable,
    /// When the instance runs.
    Running,
}

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Fake).await?;
    let made = Arc::new(AtomicUsize::new(0));
    server.create("model").await?;
    let model = Arc::new(Model::read(&server.store())?);
    let directory = tempfile::Builder::new().prefix("wrnb").tempdir()?;
    let options = OpenOptions {
        history: HISTORY,
        ..OpenOptions::default()
    };
    let store = SqliteStore::open(directory.path().join("store.db"), options).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let written = Arc::new(AtomicUsize::new(0));
    let (mut durable, mut running, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in 0..3 {
            match (arm + pair) % 3 {
                0 => bare.push(writes(&store, &model, &written).await?),
                1 => durable.push(creates(&server, &made, Answered::Durable).await?),
                _ => running.push(creates(&server, &made, Answered::Running).await?),
            }
            server.remove_all().await?;
        }
        eprint!("\rdurable creates: {} of {pairs} rounds", pair + 1);
    }
    eprintln!();
    let row = |name, what, aim, measured: &[f64]| {
        let reference = "the same transactions on the bare store, 16 writers";
        Row::of_pairs(name, what, "/s", reference, aim, measured, &bare)
    };
    report.rows.push(row(
        "durable-creates",
        "POST /instances?wait=none answered: it is durable (fake hypervisor, 16 clients)",
        Aim::AtLeast(0.5),
        &durable,
    ));
    report.rows.push(row(
        "running-creates",
        "POST /instances answered: it is durable and runs (fake hypervisor, 16 clients)",
        Aim::AtLeast(0.05),
        &running,
    ));
    server.stop().await
}

/// What the store is told by one create: the keys of one, with its name in them.
struct Model {
    records: Vec<(String, String)>,
}

const NAME: &str = "model";

impl Model {
    /// From the store of a server that has the instance `model` and no other.
    fn read(store: &Path) -> anyhow::Result<Self> {
        let connection =
            rusqlite::Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut query = connection.prepare("SELECT key, value FROM records")?;
        let all = query.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
        })?;
        let mut records = Vec::new();
        for one in all {
            let (key, value) = one?;
            // The status comes later, in transactions of its own.
            if !key.starts_with("status/") {
                records.push((key, String::from_utf8(value)?));
            }
        }
        anyhow::ensure!(
            records.len() == 4,
            "a create is not four records any more: {records:?}"
        );
        Ok(Model { records })
    }

    fn transaction(&self, number: usize) -> Transaction {
        let name = format!("c{number:07}");
        let mut transaction = Transaction::default();
        for (key, value) in &self.records {
            let own = key.replace(NAME, &name);
            if own != *key {
                transaction.guards.push(Guard::Absent(own.clone()));
            }
            let value = Bytes::from(value.replace(NAME, &name));
            transaction.writes.push(Write::Put(own, value));
        }
        transaction
    }
}

async fn creates(
    server: &BenchServer,
    made: &Arc<AtomicUsize>,
    answered: Answered,
) -> anyhow::Result<f64> {
    let path = match answered {
        Answered::Durable => "/instances?wait=none",
        Answered::Running => "/instances",
    };
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
                let (status, answer) = connection.request("POST", path, body.as_bytes()).await?;
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
        done += client.context("a client panicked")??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

async fn writes(
    store: &Arc<dyn Store>,
    model: &Arc<Model>,
    written: &Arc<AtomicUsize>,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let writers = (0..CLIENTS).map(|_| {
        let (store, model, written) = (Arc::clone(store), Arc::clone(model), Arc::clone(written));
        tokio::spawn(async move {
            let mut done = 0u64;
            while start.elapsed() < SLICE {
                let number = written.fetch_add(1, Ordering::Relaxed);
                store.commit(model.transaction(number)).await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for writer in futures::future::join_all(writers).await {
        done += writer.context("a writer panicked")??;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

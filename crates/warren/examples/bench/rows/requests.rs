//! GET requests a second against a hello-world of the same framework, each in a process of its own.

use crate::client::{Connection, get_rate};
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use anyhow::Context;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The word that makes this program the hello-world.
pub(crate) const HELLO: &str = "--serve-hello";
const CLIENTS: usize = 16;
const SLICE: Duration = Duration::from_secs(1);

/// Serves until its stdin ends.
pub(crate) async fn serve_hello() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr()?.port())?;
    out.flush()?;
    let router = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    let over = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    tokio::select! {
        served = axum::serve(listener, router).into_future() => served?,
        _ = over => {}
    }
    Ok(())
}

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Fake).await?;
    server.create("asked-for").await?;
    let mut hello = Command::new(std::env::current_exe()?)
        .arg(HELLO)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(hello.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let port: u16 = line.trim().parse()?;
    Connection::open(port)
        .await?
        .request("GET", "/", b"")
        .await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for arm in [pair % 2, 1 - pair % 2] {
            if arm == 0 {
                ours.push(get_rate(server.port(), "/instances/asked-for", CLIENTS, SLICE).await?);
            } else {
                theirs.push(get_rate(port, "/", CLIENTS, SLICE).await?);
            }
        }
        eprint!("\rrequests: {} of {pairs} pairs", pair + 1);
    }
    eprintln!();
    drop(hello.stdin.take());
    hello.wait()?;
    report.rows.push(Row::of_pairs(
        "requests",
        "GET /instances/{id}, 16 clients",
        "requests/s",
        "hello-world on the same framework",
        Aim::AtLeast(0.6),
        &ours,
        &theirs,
    ));
    server.stop().await
}

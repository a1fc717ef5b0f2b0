//! A tiny command in a guest and its exit code back: through the API and the CLI against OpenSSH in the same guest, against one
//! byte that a process in a guest sends back, and with two hundred of them at once.

use crate::bare::{BareGuest, BareQemu, RAW_DEVICE, RawPort};
use crate::report::{Aim, Report, Row, median, quantile};
use crate::server::{BenchServer, Machines};
use crate::ssh::SshGuest;
use anyhow::Context;
use futures::future::try_join_all;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use warren_api::ExecStart;
use warren_api::client::{Client, ExecConnection};
use warren_core::ports::host_link::{ExecInput, ExecOutput};
use warren_guest::client::ExecHandle;
use warren_guest::protocol::ExecRequest;

/// Round trips whose median is one run's figure.
const ROUNDS: usize = 20;
/// Until a byte must have come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// At once, on one instance.
const CROWD: usize = 200;
/// Rounds with a crowd at most: they take seconds each.
const CROWDED: usize = 8;
/// ssh has the user's shell run it, so this is the same program in both arms.
const TINY: [&str; 3] = ["sh", "-c", "true"];

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Real).await?;
    let mut bare = BareQemu::like_a_guest_of(&server).await?;
    against_an_echo(&server, &mut bare, pairs, report).await?;
    server.remove_all().await?;
    let guest = SshGuest::start(&server).await?;
    against_ssh(&server, &guest, pairs, report).await?;
    crowded(&server, guest.name(), pairs.min(CROWDED), report).await?;
    drop(guest);
    server.stop().await
}

fn client_of(server: &BenchServer) -> anyhow::Result<Client> {
    Ok(Client::new(
        &format!("http://127.0.0.1:{}", server.port()),
        None,
    )?)
}

async fn against_ssh(
    server: &BenchServer,
    guest: &SshGuest,
    pairs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let client = client_of(server)?;
    let line: Vec<&str> = ["exec", guest.name()].into_iter().chain(TINY).collect();
    let once = async |arm: usize| -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            match arm {
                0 => through_the_api(&client, guest.name(), &TINY).await?,
                1 => server.cli(&line)?,
                _ => guest.run("true")?,
            }
            times.push(millis(start));
        }
        Ok(median(times))
    };
    let mut arms = [const { Vec::new() }; 3];
    for arm in 0..arms.len() {
        once(arm).await?;
    }
    for pair in 0..pairs {
        for turn in 0..arms.len() {
            let arm = (pair + turn) % arms.len();
            arms[arm].push(once(arm).await?);
        }
        eprint!("\rexec: {} of {pairs} rounds against ssh", pair + 1);
    }
    eprintln!();
    let [api, cli, ssh] = &arms;
    report.rows.push(Row::of_pairs(
        "exec",
        "`sh -c true` in a guest through the API",
        "ms",
        "`ssh` to the guest's sshd over a kept connection",
        Aim::AtMost(0.3),
        api,
        ssh,
    ));
    report.rows.push(Row::of_pairs(
        "exec-cli",
        "`warren exec NAME sh -c true`, a whole process",
        "ms",
        "`ssh` to the guest's sshd over a kept connection",
        Aim::AtMost(0.3),
        cli,
        ssh,
    ));
    Ok(())
}

/// The p99 of many is set against the median of one alone, measured right before.
async fn crowded(
    server: &BenchServer,
    name: &str,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let client = client_of(server)?;
    let (mut alone, mut burst, mut among) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let times = one_after_the_other(&client, name, ROUNDS).await?;
        alone.push(median(times));
        let start = Instant::now();
        let times = (0..CROWD).map(async |_| {
            through_the_api(&client, name, &TINY).await?;
            anyhow::Ok(millis(start))
        });
        burst.push(quantile(try_join_all(times).await?, 0.99));
        let open = (0..CROWD).map(|_| running_cat(&client, name));
        let mut open = try_join_all(open).await?;
        let times = one_after_the_other(&client, name, CROWD).await?;
        among.push(quantile(times, 0.99));
        for cat in &mut open {
            cat.input.send(ExecInput::CloseStdin).await?;
            ended(cat).await?;
        }
        eprint!(
            "\rexec: {} of {rounds} rounds with {CROWD} at once",
            round + 1
        );
    }
    eprintln!();
    report.rows.push(Row::of_pairs(
        "exec-among",
        &format!("the same, p99, while {CROWD} other commands run on the instance"),
        "ms",
        "one alone, median",
        Aim::AtMost(5.0),
        &among,
        &alone,
    ));
    report.rows.push(Row::of_pairs(
        "exec-burst",
        &format!("{CROWD} of them asked for in one moment, p99 until the exit code"),
        "ms",
        "one alone, median",
        Aim::AtMost(5.0),
        &burst,
        &alone,
    ));
    Ok(())
}

async fn one_after_the_other(
    client: &Client,
    name: &str,
    times: usize,
) -> anyhow::Result<Vec<f64>> {
    let mut took = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        through_the_api(client, name, &TINY).await?;
        took.push(millis(start));
    }
    Ok(took)
}

/// Commands in a busybox guest against a port of the same kind whose bytes `cat` sends back in another one.
async fn against_an_echo(
    server: &BenchServer,
    bare: &mut BareQemu,
    pairs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (client, name) = (client_of(server)?, "echo");
    server.create(name).await?;
    bare.make_taps(2)?;
    let guests = [
        bare.start(0, RawPort::Present).await?,
        bare.start(1, RawPort::Present).await?,
    ];
    let mut echo = Echo::start(&guests[0], ECHOING).await?;
    let mut running = Echo::start(&guests[1], RUNNING).await?;
    let mut arms = [const { Vec::new() }; 3];
    for pair in 0..=pairs {
        for turn in 0..arms.len() {
            let arm = (pair + turn) % arms.len();
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let start = Instant::now();
                match arm {
                    0 => through_the_api(&client, name, &["true"]).await?,
                    1 => echo.round_trip().await?,
                    _ => running.round_trip().await?,
                }
                times.push(millis(start));
            }
            // Neither arm pays for what the first run of anything pays.
            if pair > 0 {
                arms[arm].push(median(times));
            }
        }
        eprint!("\rexec: {pair} of {pairs} rounds against an echo");
    }
    eprintln!();
    let [ours, echoed, run] = &arms;
    report.rows.push(Row::of_pairs(
        "exec-echo",
        "`true` in a guest through the API",
        "ms",
        "one byte to a running `cat` and back, on a bare port",
        Aim::AtMost(1.5),
        ours,
        echoed,
    ));
    report.rows.push(Row::of_pairs(
        "exec-port",
        "`true` in a guest through the API",
        "ms",
        "a line to a running shell on a bare port, which runs `/bin/true` and answers",
        Aim::AtMost(1.5),
        ours,
        run,
    ));
    Ok(())
}

/// What the guest's shell does with the raw port.
const ECHOING: &str = "cat";
/// The same with what no command can do without: a process that becomes a program and ends.
const RUNNING: &str = "while read -r line; do /bin/true; echo; done";

/// A process in a guest that answers each line that comes through the raw port with one byte.
struct Echo {
    port: UnixStream,
    process: ExecHandle,
}

impl Echo {
    async fn start(guest: &BareGuest, answer: &str) -> anyhow::Result<Self> {
        let port = guest.raw_port().await?;
        // Until the guest has heard that somebody is at the other end, the port has one that has gone.
        let line = format!("while :; do {answer}; done <>{RAW_DEVICE} >&0");
        let command = ["sh", "-c", &line].map(str::to_owned).to_vec();
        let request = ExecRequest {
            command,
            ..ExecRequest::default()
        };
        let process = guest.client()?.exec(request).await?;
        Ok(Echo { port, process })
    }

    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.port.write_all(b"\n").await?;
        let mut byte = [0];
        tokio::select! {
            read = self.port.read_exact(&mut byte) => drop(read?),
            said = self.process.output.next() => anyhow::bail!("the guest's shell: {said:?}"),
            () = tokio::time::sleep(PATIENCE) => anyhow::bail!("no echo"),
        }
        Ok(())
    }
}

async fn command(client: &Client, name: &str, words: &[&str]) -> anyhow::Result<ExecConnection> {
    let start = ExecStart {
        command: words.iter().map(|&word| word.to_owned()).collect(),
        ..ExecStart::default()
    };
    Ok(client.exec(name, &start).await?)
}

async fn through_the_api(client: &Client, name: &str, words: &[&str]) -> anyhow::Result<()> {
    ended(&mut command(client, name, words).await?).await
}

async fn ended(connection: &mut ExecConnection) -> anyhow::Result<()> {
    loop {
        match connection.output.next().await.context("no exit code")?? {
            ExecOutput::Data(..) => {}
            ExecOutput::Exited { code: 0, .. } => return Ok(()),
            ExecOutput::Exited { code, message } => anyhow::bail!("exit code {code}: {message:?}"),
        }
    }
}

/// A command that runs until its input ends, and has begun.
async fn running_cat(client: &Client, name: &str) -> anyhow::Result<ExecConnection> {
    let mut cat = command(client, name, &["cat"]).await?;
    let word = bytes::Bytes::from_static(b"x");
    cat.input.send(ExecInput::Stdin(word)).await?;
    match cat.output.next().await {
        Some(Ok(ExecOutput::Data(..))) => Ok(cat),
        other => anyhow::bail!("cat answered {other:?}"),
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

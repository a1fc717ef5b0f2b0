//! One file into a guest and out of it, as whole processes: `warren cp` against `scp` to OpenSSH in the same guest, and against
//! the bytes of a port of the same kind that nobody does anything with.

use crate::bare::{BareGuest, BareQemu, RAW_DEVICE, RawPort};
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use crate::ssh::SshGuest;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_guest::client::ExecHandle;
use warren_guest::protocol::{ExecRequest, ExitStatus};

/// A copy of it takes seconds.
const SIZE: usize = 64 << 20;
const PIECE: usize = 64 << 10;
/// Where it is in the guest: on its writable disk.
const PLACE: &str = "/root/measured";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let server = BenchServer::start(Machines::Real).await?;
    let bare = BareQemu::like_a_guest_of(&server).await?;
    let guest = SshGuest::start(&server).await?;
    let beside = bare.start(0, RawPort::Present).await?;
    let work = tempfile::Builder::new().prefix("wrnb").tempdir()?;
    let files = Files::make(work.path())?;
    for way in [Way::In, Way::Out] {
        let mut arms = [const { Vec::new() }; 3];
        for pair in 0..=pairs {
            for turn in 0..arms.len() {
                let arm = (pair + turn) % arms.len();
                settle(&server, &guest, &files)?;
                let start = Instant::now();
                match arm {
                    0 => files.by_warren(way, &server, &guest)?,
                    1 => files.by_scp(way, &guest)?,
                    _ => through_the_port(way, &beside).await?,
                }
                let rate = SIZE as f64 / start.elapsed().as_secs_f64() / 1e6;
                // No arm pays for what the first copy pays.
                if pair > 0 {
                    arms[arm].push(rate);
                }
            }
            eprint!("\rcopies: {pair} of {pairs} rounds {way:?}  ");
        }
        eprintln!();
        files.check()?;
        push(report, way, &arms);
    }
    drop(guest);
    server.stop().await
}

fn push(report: &mut Report, way: Way, [ours, scp, port]: &[Vec<f64>; 3]) {
    let (name, what) = match way {
        Way::In => (
            "copy-in",
            "`warren cp` of 64 MiB into a guest, durable there",
        ),
        Way::Out => ("copy-out", "`warren cp` of 64 MiB out of a guest"),
    };
    report.rows.push(Row::of_pairs(
        name,
        what,
        "MB/s",
        "`scp` over a kept connection",
        Aim::AtLeast(3.0),
        ours,
        scp,
    ));
    report.rows.push(Row::of_pairs(
        &format!("{name}-port"),
        what,
        "MB/s",
        "`dd` at a bare port of the same kind, from or to nowhere",
        Aim::AtLeast(0.8),
        ours,
        port,
    ));
}

/// No arm pays for what another has written.
fn settle(server: &BenchServer, guest: &SshGuest, files: &Files) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(&files.back);
    server.cli(&["exec", guest.name(), "sync"])?;
    rustix::fs::sync();
    Ok(())
}

struct Files {
    /// Incompressible, without holes.
    original: PathBuf,
    back: PathBuf,
}

impl Files {
    fn make(work: &Path) -> anyhow::Result<Self> {
        let (original, back) = (work.join("original"), work.join("back"));
        let mut random = std::io::Read::take(std::fs::File::open("/dev/urandom")?, SIZE as u64);
        std::io::copy(&mut random, &mut std::fs::File::create(&original)?)?;
        Ok(Files { original, back })
    }

    fn by_warren(&self, way: Way, server: &BenchServer, guest: &SshGuest) -> anyhow::Result<()> {
        let inside = format!("{}:{PLACE}", guest.name());
        let (original, back) = (self.original.to_string_lossy(), self.back.to_string_lossy());
        match way {
            Way::In => server.cli(&["cp", "-q", &original, &inside]),
            Way::Out => server.cli(&["cp", "-q", &inside, &back]),
        }
    }

    fn by_scp(&self, way: Way, guest: &SshGuest) -> anyhow::Result<()> {
        match way {
            Way::In => guest.copy_in(&self.original, PLACE),
            Way::Out => guest.copy_out(PLACE, &self.back),
        }
    }

    /// What came out last is what went in.
    fn check(&self) -> anyhow::Result<()> {
        if self.back.exists() {
            let same = std::fs::read(&self.original)? == std::fs::read(&self.back)?;
            anyhow::ensure!(same, "the copy is another file");
        }
        Ok(())
    }
}

async fn through_the_port(way: Way, guest: &BareGuest) -> anyhow::Result<()> {
    let mut port = guest.raw_port().await?;
    let count = SIZE / PIECE;
    let ends = match way {
        Way::In => format!("if={RAW_DEVICE} of=/dev/null iflag=fullblock"),
        Way::Out => format!("if=/dev/zero of={RAW_DEVICE}"),
    };
    let line = format!("exec dd bs={PIECE} count={count} {ends}");
    let request = ExecRequest {
        command: ["sh", "-c", &line].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    };
    let mut dd = guest.client()?.exec(request).await?;
    let mut piece = vec![0; PIECE];
    for _ in 0..count {
        match way {
            Way::In => port.write_all(&piece).await?,
            Way::Out => drop(port.read_exact(&mut piece).await?),
        }
    }
    ended(&mut dd).await
}

async fn ended(dd: &mut ExecHandle) -> anyhow::Result<()> {
    let done = dd.output.collect(4096).await.context("dd")?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.exit.status == ExitStatus::Code(0), "dd: {said}");
    Ok(())
}

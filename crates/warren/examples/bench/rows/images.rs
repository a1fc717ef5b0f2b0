//! An OCI layout to a bootable disk: against unpacking it and making a file system of that, which is how it is done by
//! hand, and against only decompressing and hashing its layers, which nobody can do without.

use crate::command::run;
use crate::report::{Aim, Report, Row};
use crate::server::{BenchServer, Machines};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The images, the size of the file system made by hand (mke2fs gives one inode to 16 KiB), and how many rounds they are
/// measured at most: what takes long differs less from itself.
const IMAGES: [(&str, &str, &str, usize); 3] = [
    ("small", "busybox, one layer", "2G", 20),
    ("debian", "Debian, 300 MB in five layers", "2G", 8),
    ("many", "200,000 small files", "4G", 4),
];

/// Milliseconds of each arm.
#[derive(Default)]
struct Arms {
    warren: Vec<f64>,
    by_hand: Vec<f64>,
    hashing: Vec<f64>,
}

pub(crate) async fn measure(pairs: usize, report: &mut Report) -> anyhow::Result<()> {
    let layouts = layouts()?;
    let server = BenchServer::start(Machines::Fake).await?;
    // What one of the measured images is made of must not be here.
    server.cli(&["rmi", "bench"])?;
    server.cli(&["prune"])?;
    for (name, what, size, most) in IMAGES {
        let layout = layouts.join(name);
        let work = tempfile::Builder::new().prefix("wrnb").tempdir()?;
        let (rounds, mut arms) = (pairs.min(most), Arms::default());
        let once = |arm: usize, arms: &mut Arms| -> anyhow::Result<()> {
            // No arm pays for what another has written.
            rustix::fs::sync();
            match arm {
                0 => arms.warren.push(load(&server, &layout)?),
                1 => arms
                    .by_hand
                    .push(unpack_and_make(&layout, size, work.path())?),
                _ => arms.hashing.push(decompress_and_hash(&layout)?),
            }
            Ok(())
        };
        for arm in 0..3 {
            once(arm, &mut Arms::default())?;
        }
        for round in 0..rounds {
            let order = [round % 3, (round + 1) % 3, (round + 2) % 3];
            for arm in order {
                once(arm, &mut arms)?;
            }
            eprint!("\rimages: {name}, {} of {rounds} rounds", round + 1);
        }
        eprintln!();
        report.rows.push(Row::of_pairs(
            &format!("image-{name}"),
            &format!("{what}: OCI layout → bootable disk"),
            "ms",
            "`umoci raw unpack`, `mke2fs -d`",
            Aim::AtMost(0.25),
            &arms.warren,
            &arms.by_hand,
        ));
        report.rows.push(Row::of_pairs(
            &format!("image-{name}-hash"),
            &format!("{what}: OCI layout → bootable disk"),
            "ms",
            "`zcat | sha256sum` of its layers",
            Aim::AtMost(1.2),
            &arms.warren,
            &arms.hashing,
        ));
    }
    server.stop().await
}

/// Makes the images where they are not made yet; where they are.
pub(crate) fn layouts() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/make-bench-images");
    let made = Command::new(script).stderr(Stdio::inherit()).output()?;
    anyhow::ensure!(made.status.success(), "the images could not be made");
    Ok(String::from_utf8(made.stdout)?.trim_end().into())
}

/// As a user does it: `warren load`, which ends when everything is on the disk. The store is empty before.
fn load(server: &BenchServer, layout: &Path) -> anyhow::Result<f64> {
    let start = Instant::now();
    let layout = layout.to_str().context("a path that is not UTF-8")?;
    server.cli(&["load", layout, "--name", "measured"])?;
    let took = millis(start);
    server.cli(&["rmi", "measured"])?;
    server.cli(&["prune"])?;
    Ok(took)
}

fn unpack_and_make(layout: &Path, size: &str, work: &Path) -> anyhow::Result<f64> {
    let (root, disk) = (work.join("root"), work.join("disk.ext4"));
    let start = Instant::now();
    let image = format!("{}:{}", layout.display(), tag(layout)?);
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image", &image])
        .arg(&root))?;
    run(Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .args([disk.as_os_str(), size.as_ref()]))?;
    let took = millis(start);
    std::fs::remove_dir_all(&root)?;
    std::fs::remove_file(&disk)?;
    Ok(took)
}

fn decompress_and_hash(layout: &Path) -> anyhow::Result<f64> {
    let layers = layers(layout)?;
    let start = Instant::now();
    for layer in layers {
        run(Command::new("sh")
            .args(["-c", "zcat \"$0\" | sha256sum"])
            .arg(layer))?;
    }
    Ok(millis(start))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn document(path: &Path) -> anyhow::Result<serde_json::Value> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn blob(layout: &Path, descriptor: &serde_json::Value) -> anyhow::Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("no digest")?;
    let hex = digest.strip_prefix("sha256:").context("another digest")?;
    Ok(layout.join("blobs/sha256").join(hex))
}

fn tag(layout: &Path) -> anyhow::Result<String> {
    let index = document(&layout.join("index.json"))?;
    let tag = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    Ok(tag.as_str().context("the image has no tag")?.to_owned())
}

fn layers(layout: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let index = document(&layout.join("index.json"))?;
    let manifest = document(&blob(layout, &index["manifests"][0])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    layers.iter().map(|layer| blob(layout, layer)).collect()
}

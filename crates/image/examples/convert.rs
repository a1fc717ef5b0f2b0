//! Converts an OCI layout, an archive or a tarball into a disk: `convert SOURCE OUT.erofs`. For measurements.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use warren_core::ports::Images as _;
use warren_core::ports::images::LoadRequest;
use warren_image::{ImageStore, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(source), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert SOURCE OUT.erofs".into());
    };
    let beside = out
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let data = tempfile::tempdir_in(beside)?;
    let store = ImageStore::open(data.path(), Options::default())?;
    let started = Instant::now();
    let request = LoadRequest {
        path: source,
        name: Some("localhost/convert".into()),
        ..LoadRequest::default()
    };
    let records = store.load(request, Arc::new(|_| {})).await?;
    println!("{:?} {} bytes", started.elapsed(), records[0].size_bytes);
    std::fs::rename(store.disk(&records[0].digest).await?, &out)?;
    Ok(())
}

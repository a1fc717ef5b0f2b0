//! Images written as disks that other machines can have.

use super::delivery::{Arriving, Ended, NewFile, about, deliver, is_stream};
use super::{Outcome, Session};
use crate::cli::args::{ExportArgs, ExportFormat, OutputFormat};
use crate::cli::failure::CliError;
use crate::cli::output::Output;
use crate::cli::progress::transfer;
use crate::cli::session::signal_code;
use crate::cli::text::bytes;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use warren_api::image::{DiskFormat, ExportImageRequest};
use warren_tar::{EntryKind, Reader, Segment};

/// Bytes that the map of a disk's holes may take.
const MAP: u64 = 16 << 20;
/// Bytes that are copied at once.
const COPY: usize = 256 << 10;
const CONVERTER: &str = "qemu-img";

/// What was written, for scripts.
#[derive(Serialize)]
struct Exported<'a> {
    file: &'a Path,
    format: ExportFormat,
    /// As the machine sees it that gets the disk.
    size_bytes: u64,
}

/// `warren image export`
pub(super) async fn export(session: &Session, args: ExportArgs) -> Outcome {
    if args.file.as_os_str() == "-" || is_stream(&args.file) {
        return Err(CliError::refused(
            format!("{} is no file", args.file.display()),
            "a disk has holes, and is copied to a device from a file: name one",
        ));
    }
    let format = args
        .format
        .unwrap_or_else(|| ExportFormat::by_ending(&args.file));
    if format == ExportFormat::Qcow2 {
        find_converter().await?;
    }
    let request = ExportImageRequest {
        name: args.image.clone(),
        format: match format {
            ExportFormat::Raw | ExportFormat::Qcow2 => DiskFormat::Raw,
            ExportFormat::Ext4 => DiskFormat::Ext4,
        },
        size_bytes: args.size.map(|size| size.0),
    };
    let download = session.client.export_image(&request).await?;
    let new = NewFile::at(&args.file)?;
    let what = format!("exporting {}", args.image);
    let bar = transfer(&session.out, &what, download.size());
    let (file, named) = (new.file()?, args.file.clone());
    let ended = deliver(download, &bar, move |from| unpack(from, &file, &named)).await;
    bar.finish_and_clear();
    let size_bytes = match ended? {
        Ended::Whole(size) => size,
        Ended::Interrupted(signal) => return Ok(signal_code(signal)),
    };
    let whole = match format {
        ExportFormat::Raw | ExportFormat::Ext4 => new,
        ExportFormat::Qcow2 => {
            let converted = NewFile::at(&args.file)?;
            match convert(&session.out, new.path(), converted.path()).await? {
                Ended::Whole(()) => converted,
                Ended::Interrupted(signal) => return Ok(signal_code(signal)),
            }
        }
    };
    whole.finish()?;
    let exported = Exported {
        file: &args.file,
        format,
        size_bytes,
    };
    session.out.note(format!(
        "exported {} to {} ({})",
        args.image,
        args.file.display(),
        bytes(size_bytes)
    ));
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&exported)?,
        OutputFormat::Yaml => session.out.yaml(&exported)?,
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {
            session.out.line(args.file.display().to_string())?;
        }
    }
    Ok(0)
}

/// Unpacks the one sparse file that comes into `to`; gives its size.
fn unpack(from: &mut Arriving, to: &File, named: &Path) -> Result<u64, CliError> {
    let failed = about(named);
    let malformed = |error| CliError::plain(format!("what the server sent is no disk: {error}"));
    let mut archive = Reader::new(from, MAP);
    let entry = archive.next_entry().map_err(malformed)?;
    let Some(EntryKind::File { size, segments }) = entry.map(|entry| entry.kind) else {
        return Err(CliError::plain("what the server sent is no disk"));
    };
    to.set_len(size).map_err(&failed)?;
    let all = vec![Segment {
        offset: 0,
        length: size,
    }];
    let mut buffer = vec![0; COPY];
    for segment in segments.unwrap_or(all) {
        let (mut at, end) = (segment.offset, segment.offset + segment.length);
        while at < end {
            let length = buffer.len().min((end - at) as usize);
            archive.read_exact(&mut buffer[..length]).map_err(&failed)?;
            to.write_all_at(&buffer[..length], at).map_err(&failed)?;
            at += length as u64;
        }
    }
    // Its end is what tells a whole archive from one that broke off.
    match archive.next_entry().map_err(malformed)? {
        None => Ok(size),
        Some(_) => Err(CliError::plain("the server sent more than one disk")),
    }
}

async fn find_converter() -> Result<(), CliError> {
    let found = Command::new(CONVERTER)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    match found {
        Ok(status) if status.success() => Ok(()),
        Ok(_) | Err(_) => Err(CliError::refused(
            format!("qcow2 needs the program {CONVERTER}, which does not run on this machine"),
            "install it (Debian and Ubuntu have it in qemu-utils), or take --format raw",
        )),
    }
}

/// Converts a disk into the file that is at `to` already.
async fn convert(out: &Output, from: &Path, to: &Path) -> Result<Ended<()>, CliError> {
    let on = |kind| signal(kind).map_err(CliError::Signals);
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    let bar = transfer(out, "converting", None);
    let mut command = Command::new(CONVERTER);
    command
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([from, to])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::select! {
        output = command.output() => Ok(output),
        _ = interrupt.recv() => Err(2),
        _ = terminate.recv() => Err(15),
    };
    bar.finish_and_clear();
    let output = match ended {
        Ok(output) => output.map_err(about(Path::new(CONVERTER)))?,
        Err(signal) => return Ok(Ended::Interrupted(signal)),
    };
    if output.status.success() {
        return Ok(Ended::Whole(()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(CliError::File {
        what: CONVERTER.to_owned(),
        source: io::Error::other(said.trim().to_owned()),
    })
}

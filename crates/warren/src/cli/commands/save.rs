//! Images written to a file, a directory or a pipe.

use super::delivery::{Ended, NewFile, about, deliver, is_stream};
use super::{Outcome, Session};
use crate::cli::args::{OutputFormat, SaveArgs, SaveFormat};
use crate::cli::failure::CliError;
use crate::cli::progress::transfer;
use crate::cli::session::signal_code;
use crate::cli::text::bytes;
use indicatif::ProgressBar;
use serde::Serialize;
use std::fs::{File, Permissions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use warren_api::client::Download;
use warren_api::{ArchiveFormat, SaveImagesRequest};

/// What was written, for scripts.
#[derive(Serialize)]
struct Saved<'a> {
    file: &'a Path,
    bytes: u64,
}

/// `warren save`
pub(super) async fn save(session: &Session, args: SaveArgs) -> Outcome {
    let file = args.file.filter(|path| path.as_os_str() != "-");
    let place = place(args.format, file)?;
    let request = SaveImagesRequest {
        names: args.images,
        format: match args.format {
            SaveFormat::OciArchive | SaveFormat::OciDir => ArchiveFormat::OciArchive,
            SaveFormat::DockerArchive => ArchiveFormat::DockerArchive,
        },
    };
    let download = session.client.save_images(&request).await?;
    let bar = transfer(&session.out, "saving", download.size());
    let ended = match &place {
        Place::Stdout => through(download, &bar, &mut io::stdout().lock()).await,
        Place::Stream(path) => {
            let mut file = File::create(path).map_err(about(path))?;
            through(download, &bar, &mut file).await
        }
        Place::File(path) => to_file(download, &bar, path).await,
        Place::Directory(path) => to_directory(download, &bar, path).await,
    };
    bar.finish_and_clear();
    let written = match ended? {
        Ended::Whole(written) => written,
        Ended::Interrupted(signal) => return Ok(signal_code(signal)),
    };
    let (Place::File(path) | Place::Directory(path)) = &place else {
        return Ok(0);
    };
    session
        .out
        .note(format!("saved to {} ({})", path.display(), bytes(written)));
    let saved = Saved {
        file: path,
        bytes: written,
    };
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&saved)?,
        OutputFormat::Yaml => session.out.yaml(&saved)?,
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {
            session.out.line(path.display().to_string())?;
        }
    }
    Ok(0)
}

/// Where images go.
enum Place {
    Stdout,
    /// A pipe or a device: written as it is.
    Stream(PathBuf),
    File(PathBuf),
    Directory(PathBuf),
}

fn place(format: SaveFormat, file: Option<PathBuf>) -> Result<Place, CliError> {
    match (format, file) {
        (SaveFormat::OciDir, None) => Err(CliError::refused(
            "a directory cannot go to standard output",
            "name it with --file",
        )),
        (SaveFormat::OciDir, Some(path)) => {
            let is_taken =
                std::fs::read_dir(&path).map_or(path.exists(), |mut it| it.next().is_some());
            if is_taken {
                return Err(CliError::refused(
                    format!("{} is there already", path.display()),
                    "choose another name, or remove it",
                ));
            }
            Ok(Place::Directory(path))
        }
        (SaveFormat::OciArchive | SaveFormat::DockerArchive, None)
            if io::stdout().is_terminal() =>
        {
            Err(CliError::refused(
                "an archive is nothing for a terminal",
                "name a file with --file, or send it through a pipe",
            ))
        }
        (SaveFormat::OciArchive | SaveFormat::DockerArchive, None) => Ok(Place::Stdout),
        (SaveFormat::OciArchive | SaveFormat::DockerArchive, Some(path)) if is_stream(&path) => {
            Ok(Place::Stream(path))
        }
        (SaveFormat::OciArchive | SaveFormat::DockerArchive, Some(path)) => Ok(Place::File(path)),
    }
}

/// Bytes as they come. There is nothing to take away, so that a signal may end the process.
async fn through(
    mut download: Download,
    bar: &ProgressBar,
    to: &mut impl Write,
) -> Result<Ended<u64>, CliError> {
    let mut written = 0;
    while let Some(piece) = download.chunk().await? {
        to.write_all(&piece).map_err(CliError::Output)?;
        written += piece.len() as u64;
        bar.set_position(written);
    }
    to.flush().map_err(CliError::Output)?;
    match download.size() {
        Some(size) if size != written => Err(CliError::plain(format!(
            "the answer broke off after {written} of {size} bytes"
        ))),
        _ => Ok(Ended::Whole(written)),
    }
}

async fn to_file(
    download: Download,
    bar: &ProgressBar,
    path: &Path,
) -> Result<Ended<u64>, CliError> {
    let new = NewFile::at(path)?;
    let (mut file, named) = (new.file()?, path.to_owned());
    let ended = deliver(download, bar, move |from| {
        io::copy(from, &mut file).map_err(about(&named))
    })
    .await?;
    if let Ended::Whole(_) = ended {
        new.finish()?;
    }
    Ok(ended)
}

async fn to_directory(
    download: Download,
    bar: &ProgressBar,
    path: &Path,
) -> Result<Ended<u64>, CliError> {
    let beside = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let new = tempfile::Builder::new()
        .prefix(".warren-part-")
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(beside)
        .map_err(about(path))?;
    let (root, named) = (new.path().to_owned(), path.to_owned());
    let ended = deliver(download, bar, move |from| unpack(from, &root, &named)).await?;
    if let Ended::Whole(_) = ended {
        std::fs::rename(new.path(), path).map_err(about(path))?;
        // It is no longer where it would be taken away.
        let _ = new.keep();
    }
    Ok(ended)
}

/// Unpacks a layout's archive below `root`; gives the bytes of its files.
fn unpack(from: &mut impl BufRead, root: &Path, named: &Path) -> Result<u64, CliError> {
    let failed = about(named);
    let mut archive = tar::Archive::new(from);
    let mut written = 0;
    for entry in archive.entries().map_err(&failed)? {
        let mut entry = entry.map_err(&failed)?;
        let name = entry.path().map_err(&failed)?.into_owned();
        if !is_of_a_layout(&name) {
            return Err(CliError::plain(format!(
                "the server sent {}, which is no part of an OCI layout",
                name.display()
            )));
        }
        let at = root.join(&name);
        match entry.header().entry_type() {
            tar::EntryType::Directory => std::fs::create_dir_all(&at).map_err(&failed)?,
            tar::EntryType::Regular => {
                let mut file = File::create_new(&at).map_err(&failed)?;
                written += io::copy(&mut entry, &mut file).map_err(&failed)?;
                file.sync_all().map_err(&failed)?;
            }
            other => {
                return Err(CliError::plain(format!(
                    "the server sent {} as {other:?}, which is in no OCI layout",
                    name.display()
                )));
            }
        }
    }
    // What the archive ends with, so that a transfer that broke off is told from one that is complete.
    io::copy(&mut archive.into_inner().take(1 << 20), &mut io::sink()).map_err(&failed)?;
    Ok(written)
}

/// `oci-layout`, `index.json`, and what is below `blobs` (image-spec v1.1, `image-layout.md`).
fn is_of_a_layout(name: &Path) -> bool {
    let parts: Option<Vec<&str>> = name
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect();
    matches!(
        parts.as_deref(),
        Some(["oci-layout" | "index.json" | "blobs"] | ["blobs", _] | ["blobs", _, _])
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn archive(name: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(4);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, b"blob".as_slice()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_server_cannot_write_anywhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for hostile in ["../outside", "/outside", "blobs/../../outside", "other"] {
            let bytes = archive(hostile);
            let error = unpack(&mut bytes.as_slice(), &root, &root).unwrap_err();
            assert!(error.sentence().contains("no part"), "{hostile}: {error}");
        }
        assert!(!directory.path().join("outside").exists());
        let bytes = archive("index.json");
        assert_eq!(unpack(&mut bytes.as_slice(), &root, &root).unwrap(), 4);
    }
}

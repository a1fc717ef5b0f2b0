//! What a server sends as one long answer, put where it belongs: whole, or not at all.
//!
//! Whoever takes the bytes runs on a thread of its own, so that it can be written as a plain reader of them. A signal ends the
//! transfer first and then the taker, which therefore never leaves anything behind what its caller takes away.

use crate::cli::failure::CliError;
use bytes::Bytes;
use indicatif::ProgressBar;
use std::fs::{File, Permissions};
use std::io::{self, BufRead, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use warren_api::client::{ClientError, CopyDownload, Download};

/// Pieces that wait for their taker.
const WAITING: usize = 16;

/// What comes piece by piece.
pub(super) trait Incoming {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError>;

    /// How much it is, where that was said before.
    fn size(&self) -> Option<u64>;
}

impl Incoming for Download {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.chunk().await
    }

    fn size(&self) -> Option<u64> {
        Download::size(self)
    }
}

impl Incoming for CopyDownload {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        CopyDownload::next(self).await
    }

    /// Its end is said.
    fn size(&self) -> Option<u64> {
        None
    }
}

/// How a transfer ended that did not fail.
pub(super) enum Ended<T> {
    /// Everything came.
    Whole(T),
    /// By this signal.
    Interrupted(i32),
}

/// What came, as a reader.
pub(super) struct Arriving {
    from: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl From<mpsc::Receiver<Bytes>> for Arriving {
    fn from(from: mpsc::Receiver<Bytes>) -> Self {
        Arriving {
            from,
            piece: Bytes::new(),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Arriving {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        drop(self.piece.split_to(count));
    }
}

/// Names what an I/O error is about.
pub(super) fn about(path: &Path) -> impl Fn(io::Error) -> CliError + '_ {
    move |source| CliError::File {
        what: path.display().to_string(),
        source,
    }
}

/// Hands everything that comes to `take`, which removes nothing: what it made is taken away by the caller when this fails or was
/// interrupted.
pub(super) async fn deliver<T: Send + 'static>(
    mut download: impl Incoming,
    bar: &ProgressBar,
    take: impl FnOnce(&mut Arriving) -> Result<T, CliError> + Send + 'static,
) -> Result<Ended<T>, CliError> {
    let on = |kind| signal(kind).map_err(CliError::Signals);
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    let (to, from) = mpsc::channel(WAITING);
    let taker = tokio::task::spawn_blocking(move || take(&mut Arriving::from(from)));
    let fed = tokio::select! {
        fed = feed(&mut download, &to, bar) => fed.map(|()| None),
        _ = interrupt.recv() => Ok(Some(2)),
        _ = terminate.recv() => Ok(Some(15)),
    };
    drop(to);
    let taken = taker
        .await
        .map_err(|error| CliError::plain(error.to_string()))?;
    match fed? {
        Some(signal) => Ok(Ended::Interrupted(signal)),
        None => taken.map(Ended::Whole),
    }
}

async fn feed(
    download: &mut impl Incoming,
    to: &mpsc::Sender<Bytes>,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let mut came = 0;
    while let Some(piece) = download.next().await? {
        came += piece.len() as u64;
        bar.set_position(came);
        // A taker that went away has an error to tell.
        if to.send(piece).await.is_err() {
            return Ok(());
        }
    }
    match download.size() {
        Some(size) if size != came => Err(CliError::plain(format!(
            "the answer broke off after {came} of {size} bytes"
        ))),
        _ => Ok(()),
    }
}

/// A file that is made beside the place it is for, and stands there only when it is whole.
pub(super) struct NewFile {
    part: NamedTempFile,
    to: PathBuf,
}

impl NewFile {
    /// What is at `to` stays until [`NewFile::finish`]; a symbolic link is followed.
    ///
    /// # Errors
    /// A directory in which nothing can be made.
    pub(super) fn at(to: &Path) -> Result<Self, CliError> {
        let place = std::fs::canonicalize(to).unwrap_or_else(|_| to.to_owned());
        let directory = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let part = tempfile::Builder::new()
            .prefix(".warren-part-")
            // As for any other file: what the umask leaves.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)
            .map_err(about(to))?;
        Ok(NewFile { part, to: place })
    }

    /// To write to.
    ///
    /// # Errors
    /// Too many open files.
    pub(super) fn file(&self) -> Result<File, CliError> {
        self.part.as_file().try_clone().map_err(about(&self.to))
    }

    /// Where it is until it is finished.
    pub(super) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// A disk that could not keep it.
    pub(super) fn finish(self) -> Result<(), CliError> {
        self.part.as_file().sync_all().map_err(about(&self.to))?;
        self.part
            .persist(&self.to)
            .map_err(|error| about(&self.to)(error.error))?;
        Ok(())
    }
}

/// Whether a path is a pipe, a terminal or a device, which cannot be replaced by a new file.
pub(super) fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_new_file_replaces_what_a_link_leads_to_and_only_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        drop(NewFile::at(&link).unwrap());
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "old");
        let new = NewFile::at(&link).unwrap();
        io::Write::write_all(&mut new.file().unwrap(), b"new").unwrap();
        new.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "new");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}

//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = ".tmp-";

/// A file that is being written, under a name of its own, locked. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Temporary {
    file: File,
    path: PathBuf,
    published: bool,
}

/// A name for a temporary file in the directory of `target`, which nothing has with the utmost likelihood.
fn name_beside(target: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{now:x}-{number}", std::process::id());
    Ok(directory.join(name))
}

impl Temporary {
    /// Makes one in the directory of the file it will become.
    pub(crate) fn beside(target: &Path) -> io::Result<Self> {
        loop {
            let path = name_beside(target)?;
            match OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
            {
                Ok(file) => {
                    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                    return Ok(Temporary {
                        file,
                        path,
                        published: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it durable, then visible, then its name durable.
    pub(crate) fn publish(self, target: &Path) -> io::Result<()> {
        self.sync()?;
        self.show(target)?;
        sync_directory(target)
    }

    /// Makes its bytes durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Makes it visible; its bytes are durable already. Its name may be lost with the power until [`sync_directory`]: for
    /// many that are needed together, that is done once.
    pub(crate) fn show(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.published = true;
        Ok(())
    }

    /// Makes its bytes durable, then visible, unless something has the name already, which then stays; then the name
    /// durable.
    pub(crate) fn publish_new(self, target: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        match std::fs::hard_link(&self.path, target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            // Dropping this removes the temporary name.
            Ok(()) | Err(_) => sync_directory(target),
        }
    }
}

/// Makes the bytes of files durable and the names that are beside others. At the same time, which costs the disk's journal
/// about as much as one.
pub(crate) fn sync_together<'a>(
    files: impl IntoIterator<Item = &'a Temporary>,
    beside: &[PathBuf],
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let files = files.into_iter().map(|file| scope.spawn(|| file.sync()));
        let files: Vec<_> = files.collect();
        let mut outcome = beside.iter().try_for_each(|of| sync_directory(of));
        for other in files {
            let done = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(done);
        }
        outcome
    })
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is removed when the store is opened next.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes a file's name away, so that nobody finds it any more, and gives it one under which it is removed when the
/// directory is cleaned. `None` when it is not there.
pub(crate) fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let doomed = name_beside(path)?;
    match std::fs::rename(path, &doomed) {
        Ok(()) => Ok(Some(doomed)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file durably; nothing to do when it is not there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the temporary files of a directory that no process holds.
pub(crate) fn clean(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes the names durable that are beside this one.
pub(crate) fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

//! A file that is written beside the place it is for, and stands there only when it is whole.

use std::ffi::OsString;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::root::Spot;

/// What files are called that are not whole. One that a crash leaves behind is in nobody's way.
pub const PART_PREFIX: &str = ".warren-part-";
/// Names that are tried before the directory is taken for a strange one.
const NAMES: usize = 16;

/// The file; dropped before [`NewFile::publish`], nothing of it stays.
#[derive(Debug)]
pub struct NewFile {
    to: Spot,
    part: Option<OsString>,
    file: File,
}

impl NewFile {
    /// An empty file beside `to`, which nobody else may read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(to: Spot) -> Result<Self, Errno> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut tries = 0;
        loop {
            let part = part_name();
            match rustix::fs::openat(&to.directory, &part, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => {
                    return Ok(NewFile {
                        to,
                        part: Some(part),
                        file: file.into(),
                    });
                }
                Err(Errno::EXIST) if tries < NAMES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// To write to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place, and in that of what was there. It is durable once file and directory are synced.
    ///
    /// # Errors
    /// The kernel's; ISDIR where there is a directory.
    pub fn publish(mut self) -> Result<(), Errno> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        rustix::fs::renameat(&self.to.directory, part, &self.to.directory, &self.to.name)?;
        self.part = None;
        Ok(())
    }

    /// As [`NewFile::publish`], and durable when it returns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn publish_durably(self) -> Result<(), Errno> {
        rustix::fs::fsync(&self.file)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.to.directory, ".", flags, Mode::empty())?;
        self.publish()?;
        rustix::fs::fsync(&directory)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // What cannot be removed is not under its final name all the same.
            let _ = rustix::fs::unlinkat(&self.to.directory, part, AtFlags::empty());
        }
    }
}

/// Hardly ever the same twice; where it is, the kernel says so.
pub(crate) fn part_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    format!("{PART_PREFIX}{}-{nanos:x}-{count:x}", std::process::id()).into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::root::{Links, Root};
    use std::io::Write;
    use std::path::Path;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path(), Links::Refused).unwrap();
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        std::fs::write(directory.path().join("name"), "old").unwrap();
        let given_up = NewFile::at(root.spot(Path::new("name")).unwrap()).unwrap();
        given_up.file().write_all(b"half").unwrap();
        assert_eq!(names().len(), 2);
        drop(given_up);
        assert_eq!(names(), ["name"]);
        assert_eq!(
            std::fs::read_to_string(directory.path().join("name")).unwrap(),
            "old"
        );
        let whole = NewFile::at(root.spot(Path::new("name")).unwrap()).unwrap();
        whole.file().write_all(b"new").unwrap();
        whole.publish_durably().unwrap();
        assert_eq!(names(), ["name"]);
        assert_eq!(
            std::fs::read_to_string(directory.path().join("name")).unwrap(),
            "new"
        );
        std::fs::create_dir(directory.path().join("dir")).unwrap();
        let blocked = NewFile::at(root.spot(Path::new("dir")).unwrap()).unwrap();
        assert_eq!(blocked.publish().unwrap_err(), Errno::ISDIR);
        assert_eq!(names(), ["dir", "name"]);
    }
}

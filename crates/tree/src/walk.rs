//! Everything in a directory, met one by one: nothing is collected, links are not followed, and each directory is opened from
//! the one it was found in, so that whoever moves them meanwhile gains nothing. One descriptor is open for each level.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What the kernel makes up as it is read: the numbers of proc, sysfs, cgroup2, devpts, mqueue, debugfs, tracefs, securityfs
/// and bpf (linux/magic.h).
const KERNEL_FILE_SYSTEMS: [i64; 9] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// What was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// Something: [`Walk::name`] in [`Walk::parent`]. A directory is entered by [`Walk::enter`], or not.
    Entry,
    /// A directory that was entered holds nothing more.
    Left,
}

#[derive(Debug)]
struct Level {
    entries: Dir,
    directory: OwnedFd,
    /// Length of the path of this directory.
    path: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Walk {
    levels: Vec<Level>,
    path: Vec<u8>,
    name: CString,
}

impl Walk {
    /// Everything in `directory`, which must be open for reading.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(directory: OwnedFd) -> Result<Self, Errno> {
        let mut walk = Walk {
            levels: Vec::new(),
            path: Vec::new(),
            name: CString::default(),
        };
        walk.descend(directory)?;
        Ok(walk)
    }

    fn descend(&mut self, directory: OwnedFd) -> Result<(), Errno> {
        self.levels.push(Level {
            entries: Dir::read_from(&directory)?,
            directory,
            path: self.path.len(),
        });
        Ok(())
    }

    /// Goes on; `None` at the end.
    ///
    /// # Errors
    /// The kernel's; the directory that could not be read is the one of [`Walk::path`].
    #[expect(
        clippy::should_implement_trait,
        reason = "what was met is asked of the walk itself"
    )]
    pub fn next(&mut self) -> Option<Result<Met, Errno>> {
        loop {
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path);
            match level.entries.read() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if name == c"." || name == c".." {
                        continue;
                    }
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(name.to_bytes());
                    name.clone_into(&mut self.name);
                    return Some(Ok(Met::Entry));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.levels.pop();
                    if self.levels.is_empty() {
                        return None;
                    }
                    let start = self.path.iter().rposition(|byte| *byte == b'/');
                    let name = &self.path[start.map_or(0, |slash| slash + 1)..];
                    self.name = CString::new(name).unwrap_or_default();
                    return Some(Ok(Met::Left));
                }
            }
        }
    }

    /// Goes into the directory that was just met.
    ///
    /// # Errors
    /// The kernel's; NOTDIR for what is none.
    pub fn enter(&mut self) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.parent(), &self.name, flags, Mode::empty())?;
        self.descend(directory)
    }

    /// The directory of what was just met or left.
    ///
    /// # Panics
    /// After the end.
    #[must_use]
    pub fn parent(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        let level = self.levels.last().expect("nothing is met after the end");
        level.directory.as_fd()
    }

    /// The name of what was just met or left.
    #[must_use]
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Its path, relative to where the walk began.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// What was just met.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::statat(self.parent(), &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether the directory that was just entered is one that the kernel makes up: of no worth to anybody elsewhere.
    #[must_use]
    pub fn is_made_up(&self) -> bool {
        rustix::fs::fstatfs(self.parent())
            .is_ok_and(|system| KERNEL_FILE_SYSTEMS.contains(&system.f_type))
    }

    /// Comes back from the directory that was just entered, without having met anything in it.
    pub fn turn_back(&mut self) {
        if self.levels.len() > 1 {
            self.levels.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::root::{Links, Root};
    use std::fs;

    #[test]
    fn everything_is_met_once_and_left_after_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b/c")).unwrap();
        fs::write(directory.path().join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        let root = Root::open(directory.path(), Links::Refused).unwrap();
        let open = root.open_path(Path::new("."), OFlags::RDONLY).unwrap();
        let mut walk = Walk::new(open).unwrap();
        let (mut met, mut left) = (Vec::new(), Vec::new());
        while let Some(step) = walk.next() {
            let path = walk.path().to_str().unwrap().to_owned();
            match step.unwrap() {
                Met::Entry => {
                    let is_directory = walk.stat().unwrap().st_mode & 0o170_000 == 0o040_000;
                    met.push(path);
                    if is_directory {
                        walk.enter().unwrap();
                    }
                }
                Met::Left => {
                    assert!(path.ends_with(walk.name().to_str().unwrap()));
                    left.push(path);
                }
            }
        }
        assert!(!met.iter().any(|path| path.starts_with("link/")), "{met:?}");
        met.sort();
        assert_eq!(met, ["a", "a/b", "a/b/c", "a/b/file", "link"]);
        assert_eq!(left, ["a/b/c", "a/b", "a"]);
    }
}

//! A directory that paths are resolved within. The kernel does it (openat2(2), Linux 5.6): nothing is checked first and used
//! later, so that whoever moves directories or plants links meanwhile gains nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links that lead to links, at most: what the kernel allows (MAXSYMLINKS).
const LINKS: usize = 40;
/// A resolution that races with renames is asked for again this often.
const RACES: usize = 64;

/// What becomes of symbolic links on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// They are followed as if the directory were the root of everything: `/` and `..` lead no further.
    Within,
    /// They are an error (ELOOP), and so is every way out (EXDEV).
    Refused,
}

/// The directory.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    links: Links,
}

/// A name in a directory, which may be there or not.
#[derive(Debug)]
pub struct Spot {
    /// The directory.
    pub directory: Arc<OwnedFd>,
    /// One name without a slash, or `.` for the directory itself.
    pub name: OsString,
}

impl Root {
    /// The directory at `path`, which is followed wherever it leads.
    ///
    /// # Errors
    /// Not there, or no directory.
    pub fn open(path: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Root { directory, links })
    }

    /// This directory.
    #[must_use]
    pub fn of(directory: OwnedFd, links: Links) -> Self {
        Root { directory, links }
    }

    /// Opens what a path leads to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_path(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = match self.links {
            Links::Within => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        let path = relative(path);
        let mut tries = 0;
        loop {
            let opened = rustix::fs::openat2(
                &self.directory,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            );
            match opened {
                // Something was renamed on the way: the kernel cannot say where it is.
                Err(Errno::AGAIN | Errno::INTR) if tries < RACES => tries += 1,
                result => return result,
            }
        }
    }

    /// Opens a directory on the way to somewhere: only good for going on from.
    ///
    /// # Errors
    /// The kernel's.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_path(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The place that a path names. The directory must be there; a link at the end is not followed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spot(&self, path: &Path) -> Result<Spot, Errno> {
        let path = relative(path);
        match path.components().next_back() {
            Some(Component::Normal(name)) => Ok(Spot {
                directory: Arc::new(self.directory(path.parent().unwrap_or(Path::new("")))?),
                name: name.to_owned(),
            }),
            // The root itself, or a directory that ends in `..`.
            _ => Ok(Spot {
                directory: Arc::new(self.directory(path)?),
                name: ".".into(),
            }),
        }
    }

    /// As [`Root::spot`], but where there is a link at the end, the place that it leads to.
    ///
    /// # Errors
    /// The kernel's; LOOP after too many links.
    pub fn followed_spot(&self, path: &Path) -> Result<Spot, Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let spot = self.spot(&path)?;
            let Some(target) = spot.link()? else {
                return Ok(spot);
            };
            if self.links == Links::Refused {
                return Err(Errno::LOOP);
            }
            path = path.parent().unwrap_or(Path::new("")).join(target);
        }
        Err(Errno::LOOP)
    }

    /// Makes the directories of a path that are missing, with mode 0755 whatever the umask says.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_directories(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        match self.directory(path) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        let Some(parent) = path.parent() else {
            return Err(Errno::NOENT);
        };
        self.make_directories(parent)?;
        let spot = self.spot(path)?;
        match rustix::fs::mkdirat(&spot.directory, &spot.name, Mode::from_raw_mode(0o755)) {
            // Somebody else was quicker; what it is shows when it is opened.
            Ok(()) | Err(Errno::EXIST) => self.directory(path),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The kernel takes `/x` for a way out of a directory, unless told that the directory is the root.
fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

impl Spot {
    /// What is there, without following it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat(&self) -> Result<rustix::fs::Stat, Errno> {
        rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Where the link that is there leads; `None` where there is none, or nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(&self) -> Result<Option<PathBuf>, Errno> {
        match self.stat() {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                self.read_link().map(Some)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the link that is there leads.
    ///
    /// # Errors
    /// The kernel's; INVAL for what is no link.
    pub fn read_link(&self) -> Result<PathBuf, Errno> {
        let target = rustix::fs::readlinkat(&self.directory, &self.name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }
}

/// One name that a directory may have.
#[must_use]
pub fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn world() -> (tempfile::TempDir, PathBuf) {
        let world = tempfile::tempdir().unwrap();
        let inside = world.path().join("inside");
        fs::create_dir_all(inside.join("real/deep")).unwrap();
        fs::write(world.path().join("canary"), "outside").unwrap();
        fs::write(inside.join("real/file"), "inside").unwrap();
        symlink("/real", inside.join("absolute")).unwrap();
        symlink("../../..", inside.join("up")).unwrap();
        symlink(world.path(), inside.join("out")).unwrap();
        symlink("around", inside.join("around")).unwrap();
        (world, inside)
    }

    #[test]
    fn links_and_dots_lead_no_further_than_the_root() {
        let (_world, inside) = world();
        let root = Root::open(&inside, Links::Within).unwrap();
        for there in [
            "/real/file",
            "absolute/file",
            "../../real/file",
            "up/real/file",
        ] {
            assert!(
                root.open_path(Path::new(there), OFlags::RDONLY).is_ok(),
                "{there}"
            );
        }
        for nowhere in ["out/canary", "../canary", "/../canary", "up/canary"] {
            let opened = root.open_path(Path::new(nowhere), OFlags::RDONLY);
            assert_eq!(opened.unwrap_err(), Errno::NOENT, "{nowhere}");
        }
        assert_eq!(
            root.followed_spot(Path::new("around")).unwrap_err(),
            Errno::LOOP
        );
    }

    #[test]
    fn where_links_are_refused_no_path_with_one_leads_anywhere() {
        let (_world, inside) = world();
        let root = Root::open(&inside, Links::Refused).unwrap();
        assert!(
            root.open_path(Path::new("real/file"), OFlags::RDONLY)
                .is_ok()
        );
        for refused in [
            "absolute/file",
            "out/canary",
            "../canary",
            "real/../../canary",
            "up",
        ] {
            let opened = root.open_path(Path::new(refused), OFlags::RDONLY);
            assert!(
                matches!(opened, Err(Errno::LOOP | Errno::XDEV)),
                "{refused}: {opened:?}"
            );
        }
        assert_eq!(
            root.followed_spot(Path::new("absolute")).unwrap_err(),
            Errno::LOOP
        );
    }

    #[test]
    fn missing_directories_are_made_where_links_lead() {
        let (world, inside) = world();
        let root = Root::open(&inside, Links::Within).unwrap();
        root.make_directories(Path::new("/absolute/a/b")).unwrap();
        assert!(inside.join("real/a/b").is_dir());
        root.make_directories(Path::new("../../c")).unwrap();
        assert!(inside.join("c").is_dir() && !world.path().join("c").exists());
        assert_eq!(
            root.make_directories(Path::new("real/file/x")).unwrap_err(),
            Errno::NOTDIR
        );
    }

    #[test]
    fn names_are_one_step_that_leads_down() {
        assert!(is_name(OsStr::new("a")) && is_name(OsStr::new("...")));
        for bad in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(!is_name(OsStr::new(bad)), "{bad:?}");
        }
    }
}

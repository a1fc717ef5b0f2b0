//! What is where: looking, listing, making directories, removing.

use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use warren_tree::{Met, Spot, Walk};

use super::content::dress;
use super::{Exchange, Failure, Files, Outgoing};
use crate::protocol::files::{
    Depth, FileFault, FileInfo, FileKind, FileReply, LISTED_TOGETHER, LastLink, ListedFile, Parents,
};

const DIRECTORY_MODE: u32 = 0o755;

impl Files {
    pub(super) fn stat(&self, path: &Path, last: LastLink) -> Result<FileInfo, Failure> {
        let flags = match last {
            LastLink::Followed => OFlags::PATH,
            LastLink::Kept => OFlags::PATH | OFlags::NOFOLLOW,
        };
        let fail = |error: Errno| Failure::of(path, error);
        let file = self.root.open_path(path, flags).map_err(fail)?;
        let stat = rustix::fs::fstat(&file).map_err(fail)?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&file, "", Vec::new()).map_err(fail)?;
                Some(target.to_string_lossy().into_owned())
            }
            _ => None,
        };
        Ok(info_of(&stat, target))
    }

    pub(super) fn make_directory(
        &self,
        path: &Path,
        mode: Option<u32>,
        owner: Option<(u32, u32)>,
        parents: Parents,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        if parents == Parents::Created
            && let Some(parent) = path.parent()
        {
            self.root.make_directories(parent).map_err(fail)?;
        }
        let spot = self.root.spot(path).map_err(fail)?;
        match rustix::fs::mkdirat(&spot.directory, &spot.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST)
                if parents == Parents::Created && self.root.directory(path).is_ok() =>
            {
                return Ok(0);
            }
            Err(error) => return Err(fail(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&spot.directory, &spot.name, flags, Mode::empty())
            .and_then(|made| dress(made, mode.unwrap_or(DIRECTORY_MODE), owner))
            .map_err(fail)?;
        Ok(0)
    }

    pub(super) fn remove(
        &self,
        path: &Path,
        depth: Depth,
        exchange: &Exchange,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        let spot = self.root.spot(path).map_err(fail)?;
        if spot.name == "." {
            return Err(Failure::new(
                FileFault::InvalidPath,
                path,
                "the root itself, or a path that ends in ..",
            ));
        }
        let removed = rustix::fs::unlinkat(&spot.directory, &spot.name, AtFlags::empty());
        // POSIX has PERM for directories, Linux ISDIR.
        let is_directory = matches!(removed, Err(Errno::ISDIR | Errno::PERM))
            && spot.stat().is_ok_and(|stat| is_directory(&stat));
        if !is_directory {
            return removed.map(|()| 0).map_err(fail);
        }
        if depth == Depth::Recursive {
            empty(&spot, path, exchange)?;
        }
        rustix::fs::unlinkat(&spot.directory, &spot.name, AtFlags::REMOVEDIR)
            .map(|()| 0)
            .map_err(fail)
    }

    pub(super) fn list(
        &self,
        path: &Path,
        depth: Depth,
        exchange: &Exchange,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        let directory = self
            .root
            .open_path(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(fail)?;
        let mut walk = Walk::new(directory).map_err(fail)?;
        let mut files = Vec::new();
        while let Some(met) = walk.next() {
            let inside = |error: Errno| Failure::of(&path.join(walk.path()), error);
            if met.map_err(inside)? == Met::Left {
                continue;
            }
            let stat = match walk.stat() {
                Ok(stat) => stat,
                // Gone since its name was read.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(inside(error)),
            };
            let target = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    rustix::fs::readlinkat(walk.parent(), walk.name(), Vec::new()).ok()
                }
                _ => None,
            };
            files.push(ListedFile {
                path: walk.path().to_string_lossy().into_owned(),
                info: info_of(
                    &stat,
                    target.map(|target| target.to_string_lossy().into_owned()),
                ),
            });
            if files.len() == LISTED_TOGETHER {
                let files = std::mem::take(&mut files);
                exchange.send(Outgoing::Reply(FileReply::Listed { files }))?;
            }
            if depth == Depth::Recursive && is_directory(&stat) {
                match walk.enter() {
                    Ok(()) if walk.is_made_up() => walk.turn_back(),
                    Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(Failure::of(&path.join(walk.path()), error)),
                }
            }
        }
        if !files.is_empty() {
            exchange.send(Outgoing::Reply(FileReply::Listed { files }))?;
        }
        Ok(0)
    }
}

/// Removes what is in a directory. Other file systems that are mounted in it are not emptied: that they are there is an error.
fn empty(spot: &Spot, path: &Path, exchange: &Exchange) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fail = |error: Errno| Failure::of(path, error);
    let directory =
        rustix::fs::openat(&spot.directory, &spot.name, flags, Mode::empty()).map_err(fail)?;
    let device = rustix::fs::fstat(&directory).map_err(fail)?.st_dev;
    let mut walk = Walk::new(directory).map_err(fail)?;
    while let Some(met) = walk.next() {
        let inside = |error: Errno| Failure::of(&path.join(walk.path()), error);
        let how = match met.map_err(inside)? {
            Met::Left => AtFlags::REMOVEDIR,
            Met::Entry => match walk.stat() {
                Ok(stat) if is_directory(&stat) => {
                    exchange.still_wanted()?;
                    if stat.st_dev != device {
                        return Err(Failure::new(
                            FileFault::NotPermitted,
                            &path.join(walk.path()),
                            "another file system is mounted there",
                        ));
                    }
                    match walk.enter() {
                        Ok(()) | Err(Errno::NOENT) => continue,
                        Err(error) => return Err(Failure::of(&path.join(walk.path()), error)),
                    }
                }
                Ok(_) => AtFlags::empty(),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(inside(error)),
            },
        };
        match rustix::fs::unlinkat(walk.parent(), walk.name(), how) {
            // Somebody else removed it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(inside(error)),
        }
    }
    Ok(())
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn info_of(stat: &Stat, link_target: Option<String>) -> FileInfo {
    FileInfo {
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Other,
        },
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified_seconds: stat.st_mtime,
        modified_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        link_target,
    }
}

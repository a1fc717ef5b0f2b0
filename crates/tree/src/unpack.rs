//! An archive becomes a tree. The archive is hostile: its entries land beneath the directory they are for, or nowhere.
//!
//! - A path is a list of names: one with `..` in it, or that begins with a slash, is refused.
//! - Its directories are opened by the kernel within the root, never followed by hand; nothing is ever written through a link.
//! - A file stands under its name when it is whole, and takes the place of a file or link, never that of a directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;
use warren_tar::{Entry, EntryKind, Reader, Segment, TarError, Timestamp};

use crate::new_file::{NewFile, part_name};
use crate::root::{Root, Spot, is_name};

/// For the headers of one entry: attributes above all, of which Linux takes 64 KiB each.
const HEADERS: u64 = 1 << 20;
/// Directories in each other that are remembered until everything in them is there.
const DEPTH: usize = 256;
/// Things left out that are told by name.
const TOLD: usize = 16;

/// Who is to own what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Those of the archive, with setuid, setgid and every extended attribute.
    Archived,
    /// This user and group, without setuid and setgid, and with attributes of users alone.
    All(u32, u32),
    /// Whoever unpacks, in the same way.
    Own,
}

/// What becomes of devices, named pipes and links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are made.
    Made,
    /// They are left out, and counted.
    LeftOut,
}

/// How to unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Owners.
    pub owners: Owners,
    /// Devices and named pipes.
    pub specials: Specials,
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Something cannot be made.
    #[error("{}: {source}", .path.display())]
    File {
        /// As the archive has it.
        path: PathBuf,
        /// The kernel's words.
        source: std::io::Error,
    },
    /// An entry that wants to be where it may not.
    #[error("{:?} leads out of the place that the archive is for", .path)]
    Outside {
        /// As the archive has it.
        path: PathBuf,
    },
    /// The archive.
    #[error(transparent)]
    Archive(#[from] TarError),
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories, links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What was left out: devices, and attributes that cannot be kept here.
    pub left_out: u64,
    /// Some of it, by path.
    pub named: Vec<PathBuf>,
}

/// A directory that gets its mode and time when everything in it is there.
struct Pending {
    path: PathBuf,
    directory: OwnedFd,
    entry: Entry,
}

struct Unpacking<'r> {
    root: &'r Root,
    base: &'r Path,
    rules: Rules,
    pending: Vec<Pending>,
    /// The directory of the last entry.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
    done: Unpacked,
}

/// Reads an archive to its end and makes what is in it at `base` within `root`. An entry `.` is `base` itself; without one,
/// `base` must be a directory that is there, or is made.
///
/// # Errors
/// See [`UnpackError`]; what was whole by then stays.
pub fn unpack(
    root: &Root,
    base: &Path,
    rules: Rules,
    input: impl BufRead,
) -> Result<Unpacked, UnpackError> {
    let mut archive = Reader::new(input, HEADERS);
    let mut unpacking = Unpacking {
        root,
        base,
        rules,
        pending: Vec::new(),
        last: None,
        done: Unpacked::default(),
    };
    let unpacked = loop {
        match archive.next_entry() {
            Ok(Some(entry)) => {
                if let Err(error) = unpacking.entry(entry, &mut archive) {
                    break Err(error);
                }
            }
            Ok(None) if archive.is_whole() => break Ok(()),
            Ok(None) => break Err(truncated()),
            Err(error) => break Err(error.into()),
        }
    };
    // Also after an error: what is there is left as it should be.
    let finished = unpacking.leave_all();
    unpacked.and(finished)?;
    let done = unpacking.done;
    // Whoever writes it may have filled it up.
    let mut rest = archive.into_inner();
    loop {
        match rest.fill_buf().map_err(TarError::Read)?.len() {
            0 => return Ok(done),
            length => rest.consume(length),
        }
    }
}

fn truncated() -> UnpackError {
    TarError::Read(ErrorKind::UnexpectedEof.into()).into()
}

fn failed(path: &Path) -> impl Fn(Errno) -> UnpackError + Copy + '_ {
    move |error| UnpackError::File {
        path: path.to_owned(),
        source: error.into(),
    }
}

/// The names that a path is made of; `None` for one that leads anywhere but down.
fn steps(path: &[u8]) -> Option<PathBuf> {
    if path.first() == Some(&b'/') {
        return None;
    }
    let mut steps = PathBuf::new();
    for step in path.split(|byte| *byte == b'/') {
        match step {
            b"" | b"." => {}
            name if is_name(OsStr::from_bytes(name)) => steps.push(OsStr::from_bytes(name)),
            _ => return None,
        }
    }
    Some(steps)
}

impl Unpacking<'_> {
    fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let path = self.place(&entry.path)?;
        let shown = PathBuf::from(OsStr::from_bytes(&entry.path));
        let fail = failed(&shown);
        self.leave(&path)?;
        if path == self.base && entry.kind == EntryKind::Directory {
            return self.top(entry, &path, &shown);
        }
        let spot = self.spot(&path).map_err(fail)?;
        if spot.name == "." {
            return Err(UnpackError::Outside {
                path: shown.clone(),
            });
        }
        match &entry.kind {
            EntryKind::File { size, segments } => {
                let new = NewFile::at(spot).map_err(fail)?;
                let written = self.content(&shown, new.file(), *size, segments.as_deref(), archive);
                self.done.bytes += written?;
                self.dress(&entry, new.file().as_fd(), &shown)?;
                new.publish().map_err(fail)?;
            }
            EntryKind::Directory => {
                let opened = self.directory(&spot).map_err(fail)?;
                self.enter(entry, path, opened, &shown)?;
            }
            EntryKind::Symlink(target) => {
                place_special(&spot, |name| {
                    rustix::fs::symlinkat(target.as_slice(), &spot.directory, name)?;
                    self.dress_special(&entry, &spot, name)
                })
                .map_err(fail)?;
            }
            EntryKind::HardLink(target) => {
                let target = self.place(target)?;
                let first = self.root.spot(&target).map_err(fail)?;
                place_special(&spot, |name| {
                    let (from, to) = (&first.directory, &spot.directory);
                    rustix::fs::linkat(from, &first.name, to, name, AtFlags::empty())
                })
                .map_err(fail)?;
            }
            EntryKind::Fifo | EntryKind::Character(..) | EntryKind::Block(..)
                if self.rules.specials == Specials::LeftOut =>
            {
                self.leave_out(shown.clone());
                return Ok(());
            }
            EntryKind::Fifo => {
                self.special(&entry, &spot, FileType::Fifo, 0)
                    .map_err(fail)?;
            }
            EntryKind::Character(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.special(&entry, &spot, FileType::CharacterDevice, device)
                    .map_err(fail)?;
            }
            EntryKind::Block(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                self.special(&entry, &spot, FileType::BlockDevice, device)
                    .map_err(fail)?;
            }
        }
        self.done.entries += 1;
        Ok(())
    }

    /// Where in the root an entry belongs.
    fn place(&self, path: &[u8]) -> Result<PathBuf, UnpackError> {
        let steps = steps(path).ok_or_else(|| UnpackError::Outside {
            path: OsStr::from_bytes(path).into(),
        })?;
        Ok(match steps.as_os_str().is_empty() {
            true => self.base.to_owned(),
            false => self.base.join(steps),
        })
    }

    /// The archive's own directory. One that is there already keeps its mode and its owner.
    fn top(&mut self, entry: Entry, path: &Path, shown: &Path) -> Result<(), UnpackError> {
        if self.root.directory(path).is_ok() {
            return Ok(());
        }
        let spot = self.root.followed_spot(path).map_err(failed(shown))?;
        let opened = self.directory(&spot).map_err(failed(shown))?;
        self.enter(entry, path.to_owned(), opened, shown)
    }

    /// A place for an entry, in a directory that is made where it is missing.
    fn spot(&mut self, path: &Path) -> Result<Spot, Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.root.spot(path);
        };
        if path == self.base {
            // The user's own word, and not the archive's.
            return self.root.followed_spot(path);
        }
        let directory = match &self.last {
            Some((last, directory)) if last == parent => Arc::clone(directory),
            _ => {
                let directory = Arc::new(self.root.make_directories(parent)?);
                self.last = Some((parent.to_owned(), Arc::clone(&directory)));
                directory
            }
        };
        Ok(Spot {
            directory,
            name: name.to_owned(),
        })
    }

    /// Makes a directory, or takes the one that is there, and opens it.
    fn directory(&self, spot: &Spot) -> Result<OwnedFd, Errno> {
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&spot.directory, &spot.name, flags, Mode::empty())
        };
        match rustix::fs::mkdirat(&spot.directory, &spot.name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => open(),
            Err(error) => Err(error),
        }
    }

    /// Remembers a directory until it is left.
    fn enter(
        &mut self,
        entry: Entry,
        path: PathBuf,
        directory: OwnedFd,
        shown: &Path,
    ) -> Result<(), UnpackError> {
        self.done.entries += 1;
        if self.pending.len() >= DEPTH {
            return self.dress(&entry, directory.as_fd(), shown);
        }
        self.pending.push(Pending {
            path,
            directory,
            entry,
        });
        Ok(())
    }

    /// Leaves the directories that `path` is not in.
    fn leave(&mut self, path: &Path) -> Result<(), UnpackError> {
        while let Some(left) = self.pending.pop_if(|last| !path.starts_with(&last.path)) {
            self.dress(&left.entry, left.directory.as_fd(), &left.path)?;
        }
        Ok(())
    }

    fn leave_all(&mut self) -> Result<(), UnpackError> {
        let mut first = Ok(());
        while let Some(left) = self.pending.pop() {
            let dressed = self.dress(&left.entry, left.directory.as_fd(), &left.path);
            first = first.and(dressed);
        }
        first
    }

    fn content<R: BufRead>(
        &mut self,
        shown: &Path,
        file: &File,
        size: u64,
        segments: Option<&[Segment]>,
        archive: &mut Reader<R>,
    ) -> Result<u64, UnpackError> {
        let whole = [Segment {
            offset: 0,
            length: size,
        }];
        let mut written = 0;
        for segment in segments.unwrap_or(&whole) {
            let mut done = 0;
            while done < segment.length {
                let left = segment.length - done;
                let piece = archive.fill_buf().map_err(TarError::Read)?;
                let length =
                    usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                if length == 0 {
                    return Err(truncated());
                }
                file.write_all_at(&piece[..length], segment.offset + done)
                    .map_err(|source| UnpackError::File {
                        path: shown.to_owned(),
                        source,
                    })?;
                archive.consume(length);
                done += length as u64;
            }
            written += segment.length;
        }
        if segments.is_some() {
            rustix::fs::ftruncate(file, size).map_err(failed(shown))?;
        }
        Ok(written)
    }

    /// Owner, mode, attributes and time of a file or directory, the time last.
    fn dress(
        &mut self,
        entry: &Entry,
        file: BorrowedFd<'_>,
        shown: &Path,
    ) -> Result<(), UnpackError> {
        let fail = failed(shown);
        if let Some((user, group)) = self.owner(entry).map_err(fail)? {
            rustix::fs::fchown(file, Some(user), Some(group)).map_err(fail)?;
        }
        let mode = match self.rules.owners {
            Owners::Archived => u32::from(entry.mode),
            Owners::All(..) | Owners::Own => u32::from(entry.mode & 0o1777),
        };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(fail)?;
        let mut refused = false;
        for (name, value) in &entry.xattrs {
            if !self.keeps(name) {
                continue;
            }
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not on this file system, or not by this user.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {
                    refused = true;
                }
                Err(error) => return Err(fail(error)),
            }
        }
        if refused {
            self.leave_out(shown.to_owned());
        }
        rustix::fs::futimens(file, &times(entry.mtime)).map_err(fail)
    }

    fn owner(&self, entry: &Entry) -> Result<Option<(Uid, Gid)>, Errno> {
        // Linux has no larger ones, and takes the largest for none.
        let id = |id: u64| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Errno::INVAL),
        };
        let (user, group) = match self.rules.owners {
            Owners::Archived => (id(entry.uid)?, id(entry.gid)?),
            Owners::All(user, group) => (user, group),
            Owners::Own => return Ok(None),
        };
        Ok(Some((Uid::from_raw(user), Gid::from_raw(group))))
    }

    /// Whether an attribute is one to keep. What an overlay has written for itself would mislead another one.
    fn keeps(&self, name: &[u8]) -> bool {
        match self.rules.owners {
            Owners::Archived => !name.starts_with(b"trusted.overlay."),
            Owners::All(..) | Owners::Own => name.starts_with(b"user."),
        }
    }

    fn special(
        &self,
        entry: &Entry,
        spot: &Spot,
        kind: FileType,
        device: u64,
    ) -> Result<(), Errno> {
        place_special(spot, |name| {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(&spot.directory, name, kind, mode, device)?;
            self.dress_special(entry, spot, name)?;
            // Nobody but us has it under this name, and it is no link.
            let mode = Mode::from_raw_mode(u32::from(entry.mode & 0o777));
            rustix::fs::chmodat(&spot.directory, name, mode, AtFlags::empty())
        })
    }

    /// Owner and time of what cannot be opened.
    fn dress_special(&self, entry: &Entry, spot: &Spot, name: &OsStr) -> Result<(), Errno> {
        if let Some((user, group)) = self.owner(entry)? {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&spot.directory, name, Some(user), Some(group), flags)?;
        }
        let times = times(entry.mtime);
        rustix::fs::utimensat(&spot.directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn leave_out(&mut self, path: PathBuf) {
        self.done.left_out += 1;
        if self.done.named.len() < TOLD {
            self.done.named.push(path);
        }
    }
}

/// Makes something beside its place and puts it there, in the place of what was there.
fn place_special(spot: &Spot, make: impl FnOnce(&OsStr) -> Result<(), Errno>) -> Result<(), Errno> {
    let part = part_name();
    let placed = make(&part)
        .and_then(|()| rustix::fs::renameat(&spot.directory, &part, &spot.directory, &spot.name));
    // Two names of one file are not renamed into each other (rename(2)): one of them may be left.
    let left = rustix::fs::unlinkat(&spot.directory, &part, AtFlags::empty());
    match left {
        Ok(()) | Err(Errno::NOENT) => placed,
        Err(error) => placed.and(Err(error)),
    }
}

fn times(modified: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: modified.seconds,
            tv_nsec: i64::from(modified.nanoseconds.min(999_999_999)),
        },
    }
}

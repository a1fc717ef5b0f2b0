//! A tree becomes an archive: read once from top to bottom, nothing of it collected but the names of files that have several.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use warren_tar::{Entry, EntryKind, Segment, Timestamp, Writer};

use crate::root::Spot;
use crate::walk::{Met, Walk};

/// Bytes that are read of a file at a time.
const PIECE: usize = 256 * 1024;
/// Pieces of a sparse file that are told apart: what lies behind so many of them counts as written.
const SEGMENTS: usize = 16 * 1024;

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something in it cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// Relative to what was packed.
        path: PathBuf,
        /// The kernel's words.
        source: std::io::Error,
    },
    /// A file became shorter while it was read.
    #[error("{}: it became shorter while it was read", .path.display())]
    Shrunk {
        /// Relative to what was packed.
        path: PathBuf,
    },
    /// The stream that the archive goes to.
    #[error("the archive cannot be written")]
    Archive(#[from] std::io::Error),
}

/// What went into an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories, links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Sockets, which nothing can be made of elsewhere, and attributes with a name that no archive can hold.
    pub skipped: u64,
}

/// Name and value.
type Attribute = (Vec<u8>, Vec<u8>);

struct Packing<W> {
    archive: Writer<W>,
    name: Vec<u8>,
    /// Paths of files that have more names, by device and inode, and how many names are still to come.
    linked: HashMap<(u64, u64), (Vec<u8>, u64)>,
    buffer: Vec<u8>,
    packed: Packed,
}

/// Writes what is at `spot`, with everything in it, as an archive to `out`; it is called `name` there. Links are packed as
/// links. Of file systems that the kernel makes up, there are only their directories.
///
/// # Errors
/// See [`PackError`].
pub fn pack<W: Write>(spot: &Spot, name: &[u8], out: W) -> Result<(Packed, W), PackError> {
    let mut packing = Packing {
        archive: Writer::new(out),
        name: name.to_vec(),
        linked: HashMap::new(),
        buffer: vec![0; PIECE],
        packed: Packed::default(),
    };
    let top = Path::new("");
    let stat = spot.stat().map_err(failed(top))?;
    packing.one(spot.directory.as_fd(), spot.name.as_ref(), top, &stat)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let directory = open(
            spot.directory.as_fd(),
            spot.name.as_ref(),
            OFlags::DIRECTORY,
        );
        packing.inside(directory.map_err(failed(top))?)?;
    }
    let mut out = packing.archive.finish()?;
    out.flush()?;
    Ok((packing.packed, out))
}

fn failed(path: &Path) -> impl Fn(Errno) -> PackError + Copy + '_ {
    move |error| PackError::File {
        path: path.to_owned(),
        source: error.into(),
    }
}

fn open(directory: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

impl<W: Write> Packing<W> {
    fn inside(&mut self, directory: OwnedFd) -> Result<(), PackError> {
        let mut walk = Walk::new(directory).map_err(failed(Path::new("")))?;
        if walk.is_made_up() {
            return Ok(());
        }
        while let Some(met) = walk.next() {
            if met.map_err(failed(walk.path()))? == Met::Left {
                continue;
            }
            let stat = match walk.stat() {
                Ok(stat) => stat,
                // Gone since its name was read.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(walk.path())(error)),
            };
            let name = std::ffi::OsStr::from_bytes(walk.name().to_bytes());
            self.one(walk.parent(), Path::new(name), walk.path(), &stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                match walk.enter() {
                    Ok(()) if walk.is_made_up() => walk.turn_back(),
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(failed(walk.path())(error)),
                }
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &Path,
        path: &Path,
        stat: &Stat,
    ) -> Result<(), PackError> {
        let fail = failed(path);
        let mut entry = Entry {
            path: self.name_of(path),
            kind: EntryKind::Fifo,
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            mtime: Timestamp {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            xattrs: Vec::new(),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory
            && stat.st_nlink > 1
            && let Some(target) = self.earlier_name(&entry.path, stat)
        {
            entry.kind = EntryKind::HardLink(target);
            return self.write(&entry);
        }
        entry.kind = match kind {
            FileType::RegularFile => {
                let file = match open(directory, name, OFlags::empty()) {
                    Ok(file) => File::from(file),
                    Err(Errno::NOENT) => return Ok(()),
                    Err(error) => return Err(fail(error)),
                };
                return self.file(&file, entry, path);
            }
            FileType::Directory => {
                let opened = open(directory, name, OFlags::DIRECTORY).map_err(fail)?;
                entry.xattrs = self.attributes(&opened).map_err(fail)?;
                entry.path.push(b'/');
                EntryKind::Directory
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(fail)?;
                EntryKind::Symlink(target.into_bytes())
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => {
                let device = stat.st_rdev;
                let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
                match kind {
                    FileType::BlockDevice => EntryKind::Block(major, minor),
                    _ => EntryKind::Character(major, minor),
                }
            }
            _ => {
                self.packed.skipped += 1;
                return Ok(());
            }
        };
        self.write(&entry)
    }

    fn write(&mut self, entry: &Entry) -> Result<(), PackError> {
        self.packed.entries += 1;
        Ok(self.archive.entry(entry)?)
    }

    fn name_of(&self, path: &Path) -> Vec<u8> {
        let mut name = self.name.clone();
        if !path.as_os_str().is_empty() {
            name.push(b'/');
            name.extend_from_slice(path.as_os_str().as_bytes());
        }
        name
    }

    /// The name under which a file with several was packed already.
    fn earlier_name(&mut self, path: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        let inode = (stat.st_dev, stat.st_ino);
        let names = stat.st_nlink;
        match self.linked.get_mut(&inode) {
            None => {
                self.linked.insert(inode, (path.to_vec(), names - 1));
                None
            }
            Some((_, left)) if *left <= 1 => self.linked.remove(&inode).map(|(first, _)| first),
            Some((first, left)) => {
                *left -= 1;
                Some(first.clone())
            }
        }
    }

    fn attributes(&mut self, file: impl AsFd) -> Result<Vec<Attribute>, Errno> {
        let mut found = attributes(file)?;
        let before = found.len();
        found.retain(|(name, _)| !name.contains(&b'='));
        self.packed.skipped += (before - found.len()) as u64;
        Ok(found)
    }

    fn file(&mut self, file: &File, mut entry: Entry, path: &Path) -> Result<(), PackError> {
        let fail = failed(path);
        // Of what was opened, not of what had its name before.
        let stat = rustix::fs::fstat(file).map_err(fail)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let segments = match on_disk < size {
            true => data_of(file, size).map_err(fail)?,
            false => None,
        };
        entry.xattrs = self.attributes(file).map_err(fail)?;
        let whole = [Segment {
            offset: 0,
            length: size,
        }];
        let pieces = segments.clone();
        entry.kind = EntryKind::File { size, segments };
        self.write(&entry)?;
        for segment in pieces.as_deref().unwrap_or(&whole) {
            self.content(file, *segment, path)?;
        }
        Ok(())
    }

    fn content(&mut self, file: &File, segment: Segment, path: &Path) -> Result<(), PackError> {
        let mut done = 0;
        while done < segment.length {
            let left = segment.length - done;
            let room = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let read = match file.read_at(&mut self.buffer[..room], segment.offset + done) {
                Ok(0) => {
                    return Err(PackError::Shrunk {
                        path: path.to_owned(),
                    });
                }
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(PackError::File {
                        path: path.to_owned(),
                        source,
                    });
                }
            };
            self.archive.write_all(&self.buffer[..read])?;
            done += read as u64;
            self.packed.bytes += read as u64;
        }
        Ok(())
    }
}

/// What of a file is no hole; `None` where that is all of it, or nobody can tell.
fn data_of(file: &File, size: u64) -> Result<Option<Vec<Segment>>, Errno> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin.min(size),
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Too many to tell apart: the rest counts as data.
        let end = match segments.len() + 1 {
            SEGMENTS.. => size,
            _ => rustix::fs::seek(file, SeekFrom::Hole(begin))?.min(size),
        };
        if end <= begin {
            break;
        }
        segments.push(Segment {
            offset: begin,
            length: end - begin,
        });
        at = end;
    }
    let whole = Segment {
        offset: 0,
        length: size,
    };
    Ok((segments != [whole]).then_some(segments))
}

/// All extended attributes; none where the file system has none.
fn attributes(file: impl AsFd) -> Result<Vec<Attribute>, Errno> {
    let mut names = Vec::new();
    match grown(&mut names, |buffer| rustix::fs::flistxattr(&file, buffer)) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut found = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = Vec::new();
        match grown(&mut value, |buffer| {
            rustix::fs::fgetxattr(&file, name, buffer)
        }) {
            Ok(()) => found.push((name.to_vec(), value)),
            // Taken away since, or not for us to see.
            Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

/// Asks with more and more room, up to what Linux has at most (XATTR_SIZE_MAX, XATTR_LIST_MAX).
fn grown(
    into: &mut Vec<u8>,
    mut ask: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    for room in [256, 4096, 65536] {
        into.resize(room, 0);
        match ask(into) {
            Ok(length) => {
                into.truncate(length);
                return Ok(());
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::TOOBIG)
}

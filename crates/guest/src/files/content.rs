//! What is in files: reading, and writing whole or not at all.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::BytesMut;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use warren_tree::NewFile;

use super::places::info_of;
use super::{Exchange, Failure, Files, Incoming, Outgoing};
use crate::protocol::files::{FileFault, FileReply, Parents, UNSIZED_LIMIT};
use crate::protocol::message::DATA_LIMIT;

/// What files are made with where nobody says.
const USUAL_MODE: u32 = 0o644;

impl Files {
    pub(super) fn read(
        &self,
        path: &Path,
        offset: u64,
        length: Option<u64>,
        exchange: &Exchange,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        // Without waiting for somebody at the other end of a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file: File = self.root.open_path(path, flags).map_err(fail)?.into();
        let stat = rustix::fs::fstat(&file).map_err(fail)?;
        suitable(path, &stat)?;
        let info = info_of(&stat, None);
        let size = info.size;
        exchange.send(Outgoing::Reply(FileReply::Found { info }))?;
        // What the kernel makes up (/proc) has no size before it is read.
        let most = match size {
            0 => UNSIZED_LIMIT + 1,
            size => size.saturating_sub(offset),
        };
        let wanted = length.unwrap_or(u64::MAX).min(most);
        let mut sent = 0;
        while sent < wanted {
            let room =
                usize::try_from(wanted - sent).map_or(DATA_LIMIT, |left| left.min(DATA_LIMIT));
            let mut piece = BytesMut::zeroed(room);
            let read = file
                .read_at(&mut piece, offset.saturating_add(sent))
                .map_err(|error| Failure::of(path, error))?;
            if read == 0 {
                break;
            }
            sent += read as u64;
            if size == 0 && sent > UNSIZED_LIMIT {
                return Err(Failure::new(FileFault::TooLarge, path, "it has no end"));
            }
            piece.truncate(read);
            exchange.send(Outgoing::Data(piece.freeze()))?;
        }
        Ok(sent)
    }

    pub(super) fn write(
        &self,
        path: &Path,
        mode: Option<u32>,
        owner: Option<(u32, u32)>,
        parents: Parents,
        exchange: &mut Exchange,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        if parents == Parents::Created
            && let Some(parent) = path.parent()
        {
            self.root.make_directories(parent).map_err(fail)?;
        }
        let spot = self.root.followed_spot(path).map_err(fail)?;
        let present = match spot.stat() {
            Ok(stat) => {
                suitable(path, &stat)?;
                Some(stat)
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(fail(error)),
        };
        let new = NewFile::at(spot).map_err(fail)?;
        let mut written = 0;
        loop {
            match exchange.incoming.blocking_recv() {
                Some(Incoming::Data(data)) => {
                    new.file()
                        .write_all(&data)
                        .map_err(|error| Failure::of(path, error))?;
                    written += data.len() as u64;
                }
                Some(Incoming::End) => break,
                // What was written so far goes with `new`.
                None => return Err(Failure::nobody()),
            }
        }
        let owner = owner.or(present.map(|stat| (stat.st_uid, stat.st_gid)));
        let mode = mode
            .or(present.map(|stat| stat.st_mode))
            .unwrap_or(USUAL_MODE);
        dress(new.file(), mode, owner).map_err(fail)?;
        new.publish_durably().map_err(fail)?;
        Ok(written)
    }
}

/// Owner first: a change of it takes setuid away.
pub(super) fn dress(
    file: impl std::os::fd::AsFd,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), Errno> {
    if let Some((user, group)) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))
}

fn suitable(path: &Path, stat: &Stat) -> Result<(), Failure> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Failure::of(path, Errno::ISDIR)),
        _ => Err(Failure::new(
            FileFault::Unsuitable,
            path,
            "not an ordinary file",
        )),
    }
}

//! Trees as tar streams, in and out. The frames of the channel are the only thing between the stream and the disk.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::path::Path;

use bytes::{Buf, Bytes, BytesMut};
use rustix::fs::OFlags;
use rustix::io::Errno;
use warren_tar::TarError;
use warren_tree::{Owners, PackError, Rules, Specials, UnpackError, pack, unpack};

use super::places::info_of;
use super::{Exchange, Failure, Files, Incoming, Outgoing};
use crate::protocol::files::{FileFault, FileReply, LastLink, TreeOwners};
use crate::protocol::message::DATA_LIMIT;

impl Files {
    pub(super) fn pack(
        &self,
        path: &Path,
        last: LastLink,
        name: &str,
        exchange: &Exchange,
    ) -> Result<u64, Failure> {
        let fail = |error: Errno| Failure::of(path, error);
        let spot = match last {
            LastLink::Followed => self.root.followed_spot(path),
            LastLink::Kept => self.root.spot(path),
        }
        .map_err(fail)?;
        let info = info_of(&spot.stat().map_err(fail)?, None);
        exchange.send(Outgoing::Reply(FileReply::Found { info }))?;
        let outlet = Outlet {
            exchange,
            piece: BytesMut::with_capacity(DATA_LIMIT),
            sent: 0,
        };
        match pack(&spot, name.as_bytes(), outlet) {
            Ok((_, outlet)) => Ok(outlet.sent),
            Err(PackError::File { path: at, source }) => Err(Failure::of(&path.join(at), source)),
            Err(error @ PackError::Shrunk { .. }) => {
                Err(Failure::new(FileFault::Failed, path, error))
            }
            Err(PackError::Archive(_)) => Err(Failure::nobody()),
        }
    }

    pub(super) fn unpack(
        &self,
        path: &Path,
        owners: TreeOwners,
        exchange: &mut Exchange,
    ) -> Result<u64, Failure> {
        let rules = Rules {
            owners: match owners {
                TreeOwners::Archived => Owners::Archived,
                TreeOwners::All { uid, gid } => Owners::All(uid, gid),
            },
            specials: Specials::Made,
        };
        let mut inlet = Inlet {
            exchange,
            piece: Bytes::new(),
            received: 0,
            ended: false,
        };
        match unpack(&self.root, path, rules, &mut inlet) {
            Ok(_) => {}
            Err(UnpackError::File { path: at, source }) => {
                return Err(Failure::of(&path.join(at), source));
            }
            Err(error @ UnpackError::Outside { .. }) => {
                return Err(Failure::new(FileFault::Unsuitable, path, error));
            }
            Err(UnpackError::Archive(TarError::Read(error)))
                if error.kind() == ErrorKind::ConnectionAborted =>
            {
                return Err(Failure::nobody());
            }
            Err(error @ UnpackError::Archive(_)) => {
                return Err(Failure::new(FileFault::Unsuitable, path, error));
            }
        }
        let received = inlet.received;
        // Once for all of it.
        let above = path.parent().unwrap_or(path);
        self.root
            .open_path(above, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(rustix::fs::syncfs)
            .map_err(|error| Failure::of(above, error))?;
        Ok(received)
    }
}

struct Outlet<'e> {
    exchange: &'e Exchange,
    piece: BytesMut,
    sent: u64,
}

impl Write for Outlet<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let take = data.len().min(DATA_LIMIT - self.piece.len());
        self.piece.extend_from_slice(&data[..take]);
        if self.piece.len() == DATA_LIMIT {
            self.flush()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let next = BytesMut::with_capacity(DATA_LIMIT);
        let piece = std::mem::replace(&mut self.piece, next).freeze();
        self.sent += piece.len() as u64;
        let sent = self.exchange.send(Outgoing::Data(piece));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct Inlet<'e> {
    exchange: &'e mut Exchange,
    piece: Bytes,
    received: u64,
    ended: bool,
}

impl BufRead for Inlet<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && !self.ended {
            match self.exchange.incoming.blocking_recv() {
                Some(Incoming::Data(data)) => {
                    self.received += data.len() as u64;
                    self.piece = data;
                }
                Some(Incoming::End) => self.ended = true,
                None => return Err(ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for Inlet<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let taken = self.fill_buf()?.read(into)?;
        self.consume(taken);
        Ok(taken)
    }
}

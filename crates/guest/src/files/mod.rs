//! What is done with files, on a thread that may wait for disks: by the agent within the workload's root, by the test double
//! within a directory of its own. Links lead no further than that root.

mod content;
mod failure;
mod places;
mod trees;

pub use failure::Failure;

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;
use warren_tree::{Links, Root};

use crate::protocol::files::FileFault;
use crate::protocol::files::{FileReply, FileRequest, PATH_LIMIT};

/// What a host sends beside its request.
#[derive(Debug)]
pub enum Incoming {
    /// Bytes.
    Data(Bytes),
    /// That was all.
    End,
}

/// What it is sent.
#[derive(Debug)]
pub enum Outgoing {
    /// Words.
    Reply(FileReply),
    /// Bytes.
    Data(Bytes),
}

/// Both ends of an operation. A host that has gone shows as a closed channel, and ends what is done for it.
#[derive(Debug)]
pub struct Exchange {
    /// From the host.
    pub incoming: mpsc::Receiver<Incoming>,
    /// To it.
    pub outgoing: mpsc::Sender<Outgoing>,
}

impl Exchange {
    fn send(&self, message: Outgoing) -> Result<(), Failure> {
        let sent = self.outgoing.blocking_send(message);
        sent.map_err(|_| Failure::nobody())
    }

    /// Fails once nobody waits for the outcome.
    fn still_wanted(&self) -> Result<(), Failure> {
        match self.outgoing.is_closed() {
            true => Err(Failure::nobody()),
            false => Ok(()),
        }
    }
}

/// The files of one root.
#[derive(Debug)]
pub struct Files {
    root: Root,
}

impl Files {
    /// Those below `root`.
    ///
    /// # Errors
    /// It is not there, or no directory.
    pub fn within(root: &Path) -> io::Result<Self> {
        Ok(Files {
            root: Root::open(root, Links::Within)?,
        })
    }

    /// Does what a request says, and tells how many bytes of data went through. Blocks.
    ///
    /// # Errors
    /// A fault and what it is about, in words.
    pub fn carry_out(
        &self,
        request: FileRequest,
        exchange: &mut Exchange,
    ) -> Result<Option<u64>, Failure> {
        match request {
            FileRequest::Stat { path, last } => {
                let info = self.stat(checked(&path)?, last)?;
                exchange.send(Outgoing::Reply(FileReply::Found { info }))?;
                return Ok(None);
            }
            FileRequest::Read {
                path,
                offset,
                length,
            } => self.read(checked(&path)?, offset, length, exchange),
            FileRequest::Write {
                path,
                mode,
                owner,
                parents,
            } => self.write(checked(&path)?, mode, owner, parents, exchange),
            FileRequest::Remove { path, depth } => self.remove(checked(&path)?, depth, exchange),
            FileRequest::List { path, depth } => self.list(checked(&path)?, depth, exchange),
            FileRequest::MakeDirectory {
                path,
                mode,
                owner,
                parents,
            } => self.make_directory(checked(&path)?, mode, owner, parents),
            FileRequest::Pack { path, last, name } => {
                self.pack(checked(&path)?, last, &name, exchange)
            }
            FileRequest::Unpack { path, owners } => self.unpack(checked(&path)?, owners, exchange),
        }
        .map(Some)
    }
}

fn checked(path: &str) -> Result<&Path, Failure> {
    let problem = match path {
        _ if !path.starts_with('/') => "is not absolute",
        _ if path.contains('\0') => "contains a NUL",
        _ if path.len() > PATH_LIMIT => "is too long",
        _ => return Ok(Path::new(path)),
    };
    Err(Failure::new(
        FileFault::InvalidPath,
        Path::new(path),
        problem,
    ))
}

//! Directory blocks, and the walk through all of them.

use super::{Data, Node, ReadError, Reader, u16_at, u64_at};
use crate::erofs::format::{BLOCK, DIRENT_SIZE, FileType};

/// Directories in directories. Names longer than `PATH_MAX` lie at half of this already.
const MAX_DEPTH: usize = 4096;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name: not empty, without `/` and NUL.
    pub name: Vec<u8>,
    /// The node number of what it names; see [`Reader::node`].
    pub nid: u64,
    /// What it names.
    pub file_type: FileType,
}

/// The entries of one directory, a block of it in memory at a time.
#[derive(Debug)]
pub struct Entries<'a> {
    data: Data<'a>,
    directory: u64,
    parent: Option<u64>,
    /// Where the next block starts in the directory.
    offset: u64,
    block: Vec<u8>,
    next: usize,
    count: usize,
    last: Vec<u8>,
    seen_self: bool,
    seen_parent: bool,
    ended: bool,
}

impl<'a> Entries<'a> {
    /// `parent` is what `..` must name, where that is known.
    pub(super) fn new(
        reader: &'a Reader,
        directory: &Node,
        parent: Option<u64>,
    ) -> Result<Self, ReadError> {
        if directory.file_type != FileType::Directory {
            return Err(super::damaged(directory, "it is no directory"));
        }
        Ok(Entries {
            data: Data::new(reader, directory),
            directory: directory.nid,
            parent,
            offset: 0,
            block: Vec::new(),
            next: 0,
            count: 0,
            last: Vec::new(),
            seen_self: false,
            seen_parent: false,
            ended: false,
        })
    }

    fn wrong(&self, what: &'static str) -> ReadError {
        ReadError::Directory {
            nid: self.directory,
            what,
        }
    }

    /// `None` at the directory's end.
    fn advance(&mut self) -> Result<Option<DirectoryEntry>, ReadError> {
        loop {
            if self.next == self.count && !self.load()? {
                return match (self.seen_self, self.seen_parent) {
                    (true, true) => Ok(None),
                    _ => Err(self.wrong("it has no . or no ..")),
                };
            }
            let entry = self.entry()?;
            match entry.name.as_slice() {
                b"." if entry.nid == self.directory => self.seen_self = true,
                b"." => return Err(self.wrong("its . is another directory")),
                b".." if self.parent.is_none_or(|parent| parent == entry.nid) => {
                    self.seen_parent = true;
                }
                b".." => return Err(self.wrong("its .. is not the directory it is in")),
                _ => return Ok(Some(entry)),
            }
        }
    }

    /// Reads the next block; whether there was one.
    fn load(&mut self) -> Result<bool, ReadError> {
        let left = self.data.size().saturating_sub(self.offset);
        if left == 0 {
            return Ok(false);
        }
        self.block.resize(left.min(BLOCK) as usize, 0);
        self.data.fill(self.offset, &mut self.block)?;
        self.offset += self.block.len() as u64;
        // The first name lies behind the last entry.
        let names = match self.block.get(..DIRENT_SIZE) {
            Some(first) => usize::from(u16_at(first, 8)),
            None => 0,
        };
        if names == 0 || names % DIRENT_SIZE != 0 || names >= self.block.len() {
            return Err(self.wrong("a block has no entries"));
        }
        (self.next, self.count) = (0, names / DIRENT_SIZE);
        Ok(true)
    }

    fn entry(&mut self) -> Result<DirectoryEntry, ReadError> {
        let at = self.next * DIRENT_SIZE;
        let raw = &self.block[at..at + DIRENT_SIZE];
        let start = usize::from(u16_at(raw, 8));
        self.next += 1;
        let end = if self.next < self.count {
            u16_at(&self.block, at + DIRENT_SIZE + 8).into()
        } else {
            self.block.len()
        };
        let name = self
            .block
            .get(start..end)
            .filter(|_| start >= self.count * DIRENT_SIZE)
            .ok_or_else(|| self.wrong("a name lies outside its block"))?;
        // Behind the last name of a block there may be padding.
        let name = match name.iter().position(|byte| *byte == 0) {
            Some(length) if self.next == self.count => &name[..length],
            _ => name,
        };
        if name.is_empty() || name.len() > 255 || name.contains(&0) || name.contains(&b'/') {
            return Err(self.wrong("a name is not possible"));
        }
        // The kernel looks names up by bisection.
        if self.last.as_slice() >= name && !self.last.is_empty() {
            return Err(self.wrong("its names are not in order"));
        }
        let entry = DirectoryEntry {
            name: name.to_vec(),
            nid: u64_at(raw, 0),
            file_type: FileType::from_entry(raw[10])
                .ok_or_else(|| self.wrong("an entry's type is unknown"))?,
        };
        self.last.clone_from(&entry.name);
        Ok(entry)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<DirectoryEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Something in an image.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its path from the root, without a slash at the front; empty for the root itself.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
}

/// A walk through an image. Ends after the first error.
#[derive(Debug)]
pub struct Walk<'a> {
    reader: &'a Reader,
    /// The open directories from the root down, with the length of each one's path.
    open: Vec<(Entries<'a>, u64, usize)>,
    path: Vec<u8>,
    /// Bytes of directories that may still be met: together they cannot be larger than the image.
    left: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Under,
    Ended,
}

impl<'a> Walk<'a> {
    pub(super) fn new(reader: &'a Reader) -> Self {
        Walk {
            reader,
            open: Vec::new(),
            path: Vec::new(),
            left: reader.end,
            state: State::Start,
        }
    }

    fn advance(&mut self) -> Result<Option<Found>, ReadError> {
        if self.state == State::Start {
            self.state = State::Under;
            let root = self.reader.root()?;
            self.enter(&root, root.nid)?;
            return Ok(Some(Found {
                path: Vec::new(),
                node: root,
            }));
        }
        let (entry, directory) = loop {
            let Some((entries, nid, length)) = self.open.last_mut() else {
                return Ok(None);
            };
            self.path.truncate(*length);
            match entries.next().transpose()? {
                Some(entry) => break (entry, *nid),
                None => self.open.pop(),
            };
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&entry.name);
        let node = self.reader.node(entry.nid)?;
        if node.file_type != entry.file_type {
            return Err(super::damaged(&node, "it is not what its directory says"));
        }
        if node.file_type == FileType::Directory {
            self.enter(&node, directory)?;
        }
        Ok(Some(Found {
            path: self.path.clone(),
            node,
        }))
    }

    fn enter(&mut self, directory: &Node, parent: u64) -> Result<(), ReadError> {
        let wrong = |what| ReadError::Directory {
            nid: directory.nid,
            what,
        };
        if self.open.len() >= MAX_DEPTH {
            return Err(wrong("it is nested too deeply"));
        }
        self.left = self
            .left
            .checked_sub(directory.size)
            .ok_or_else(|| wrong("it is in more than one directory"))?;
        let entries = Entries::new(self.reader, directory, Some(parent))?;
        self.open.push((entries, directory.nid, self.path.len()));
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Found, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Ended {
            return None;
        }
        let next = self.advance().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.state = State::Ended;
            self.open.clear();
        }
        next
    }
}

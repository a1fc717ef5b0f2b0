//! One entry after the other is applied to the tree; files go to the writer.

use std::fs::File;
use std::io::BufRead;

use super::path::{self, Last};
use super::tree::{InodeId, Kind, NodeId, ROOT, Tree};
use crate::erofs::{
    Attributes, Content, ErofsError, FileData, FileType, Summary, Writer, Xattrs, XattrsBuilder,
};
use crate::limits::{LimitExceeded, Limits};
use warren_tar::{Entry, EntryKind, Reader, TarError};

/// As many links as Linux follows in one path.
const MAX_SYMLINKS: usize = 40;

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The image.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// Too much of something.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A name that leads out of the image, is empty or has a NUL.
    #[error("the name {0:?} is not allowed in an image")]
    HostileName(String),
    /// A hard link to what is not there, or to a directory.
    #[error("{path:?} is a hard link to {target:?}, which is not a file of the image")]
    HardLink {
        /// The link.
        path: String,
        /// What it should be another name of.
        target: String,
    },
    /// An entry below something that is not a directory.
    #[error("{0:?} lies below something that is not a directory")]
    NotADirectory(String),
    /// Symbolic links that lead to each other.
    #[error("the parents of {0:?} have too many symbolic links")]
    SymlinkLoop(String),
    /// The root can only be a directory.
    #[error("the image's root must be a directory")]
    Root,
}

impl MergeError {
    pub(super) fn hostile(path: &[u8]) -> Self {
        MergeError::HostileName(lossy(path))
    }
}

/// What a merge gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Sizes and counts of the image.
    pub image: Summary,
    /// Entries read from all layers.
    pub entries: u64,
    /// Attributes in namespaces that EROFS cannot hold.
    pub dropped_xattrs: u64,
}

/// Merges layers into one image.
#[derive(Debug)]
pub struct Merge {
    tree: Tree,
    writer: Writer,
    limits: Limits,
    layers: u16,
    entries: u64,
    dropped_xattrs: u64,
}

/// Where a path leads.
struct Place {
    /// The last directory on the way that exists.
    at: NodeId,
    /// The names below it that are no directories.
    missing: Vec<Vec<u8>>,
    /// What has the first of these names.
    obstacle: Option<NodeId>,
}

impl Place {
    fn existing(&self) -> Option<NodeId> {
        self.missing.is_empty().then_some(self.at)
    }
}

impl Merge {
    /// Starts an image in `file`, which is empty.
    pub fn new(file: File, limits: Limits) -> Self {
        Merge {
            tree: Tree::new(),
            writer: Writer::new(file, limits.image_bytes),
            limits,
            layers: 0,
            entries: 0,
            dropped_xattrs: 0,
        }
    }

    /// Applies the next layer, up to the end of its archive.
    ///
    /// # Errors
    /// See [`MergeError`]. The image is then of no use.
    pub fn layer<R: BufRead>(&mut self, archive: R) -> Result<R, MergeError> {
        if usize::from(self.layers) >= self.limits.layers.min(usize::from(u16::MAX) - 1) {
            return Err(LimitExceeded::Layers(self.limits.layers).into());
        }
        self.layers += 1;
        let mut reader = Reader::new(archive, self.limits.header_bytes);
        while let Some(entry) = reader.next_entry()? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(LimitExceeded::Entries(self.limits.entries).into());
            }
            self.apply(entry, &mut reader)?;
            if self.tree.memory() + self.writer.memory() > self.limits.tree_memory {
                return Err(LimitExceeded::TreeMemory(self.limits.tree_memory).into());
            }
        }
        Ok(reader.into_inner())
    }

    /// Writes what is left and seals the image. Nothing is synced.
    ///
    /// # Errors
    /// See [`MergeError`].
    pub fn finish(mut self, uuid: [u8; 16]) -> Result<(File, Merged), MergeError> {
        let mut alive = 0;
        for inode in self.tree.inodes() {
            alive += u64::from(inode.links > 0);
            if inode.links > 1 {
                self.writer.set_links(inode.nid, inode.links)?;
            }
        }
        let (file, image) = self.writer.finish(&mut self.tree, alive, uuid)?;
        let merged = Merged {
            image,
            entries: self.entries,
            dropped_xattrs: self.dropped_xattrs,
        };
        Ok((file, merged))
    }

    fn apply(&mut self, mut entry: Entry, data: &mut dyn BufRead) -> Result<(), MergeError> {
        let path = std::mem::take(&mut entry.path);
        let components = path::components(&path, &self.limits)?;
        let Some((name, parents)) = components.split_last() else {
            return self.apply_root(&entry);
        };
        match path::last(name, &path)? {
            Last::Ignored => Ok(()),
            Last::Opaque => {
                if let Some(directory) = self.resolve(parents, &path)?.existing() {
                    self.hide_children(directory);
                }
                Ok(())
            }
            Last::Whiteout(hidden) => {
                let found = self.resolve(parents, &path)?.existing();
                if let Some(node) = found.and_then(|directory| self.tree.lookup(directory, hidden))
                {
                    self.hide(node);
                }
                Ok(())
            }
            Last::Name(name) => {
                let place = self.resolve(parents, &path)?;
                let parent = self.ensure(place, &path)?;
                self.put(parent, name, &path, entry, data)
            }
        }
    }

    fn apply_root(&mut self, entry: &Entry) -> Result<(), MergeError> {
        let (EntryKind::Directory, Kind::Directory(root)) = (&entry.kind, self.tree.kind(ROOT))
        else {
            return Err(MergeError::Root);
        };
        let attributes = self.attributes(entry)?;
        self.tree.describe(root, attributes, self.layers);
        Ok(())
    }

    /// Puts an entry at a name, whatever was there.
    fn put(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        entry: Entry,
        data: &mut dyn BufRead,
    ) -> Result<(), MergeError> {
        let old = self.tree.lookup(parent, name);
        if let EntryKind::HardLink(target) = &entry.kind {
            return self.put_link(parent, name, path, target);
        }
        let attributes = self.attributes(&entry)?;
        if let (EntryKind::Directory, Some(node)) = (&entry.kind, old)
            && let Kind::Directory(directory) = self.tree.kind(node)
        {
            self.tree.describe(directory, attributes, self.layers);
            self.tree.touch(node, self.layers);
            return Ok(());
        }
        // Written first: a symbolic link's target or a file's data must be good before the old one goes.
        let mut target = None;
        let content = match &entry.kind {
            EntryKind::Directory => None,
            EntryKind::HardLink(_) => unreachable!("hard links went another way above"),
            EntryKind::File { size, segments } => {
                if *size > self.limits.file_bytes {
                    return Err(LimitExceeded::FileBytes(self.limits.file_bytes).into());
                }
                Some(Content::File(FileData {
                    size: *size,
                    segments: segments.as_deref(),
                    bytes: data,
                }))
            }
            EntryKind::Symlink(to) => {
                if to.is_empty() || to.contains(&0) {
                    return Err(MergeError::hostile(path));
                }
                if to.len() >= 4096 {
                    return Err(LimitExceeded::PathBytes(4095).into());
                }
                target = Some(to.as_slice());
                Some(Content::Symlink(to))
            }
            EntryKind::Character(major, minor) => Some(Content::Character(*major, *minor)),
            EntryKind::Block(major, minor) => Some(Content::Block(*major, *minor)),
            EntryKind::Fifo => Some(Content::Fifo),
        };
        let inode = match content {
            Some(content) => Some(self.writer.add(&attributes, content)?),
            None => None,
        };
        if let Some(node) = old {
            self.remove_all(node);
        }
        let node = match inode {
            Some(inode) => self.tree.add_inode(parent, name, inode, target),
            None => self.tree.add_directory(parent, name),
        };
        if let Kind::Directory(directory) = self.tree.kind(node) {
            self.tree.describe(directory, attributes, self.layers);
        }
        self.tree.touch(node, self.layers);
        Ok(())
    }

    fn put_link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        target: &[u8],
    ) -> Result<(), MergeError> {
        let wrong = || MergeError::HardLink {
            path: lossy(path),
            target: lossy(target),
        };
        let components = path::components(target, &self.limits)?;
        let (last, parents) = components.split_last().ok_or_else(wrong)?;
        let found = self
            .resolve(parents, path)?
            .existing()
            .and_then(|directory| self.tree.lookup(directory, last))
            .ok_or_else(wrong)?;
        let Kind::Inode(inode) = self.tree.kind(found) else {
            return Err(wrong());
        };
        let old = self.tree.lookup(parent, name);
        if old == Some(found) {
            self.tree.touch(found, self.layers);
            return Ok(());
        }
        self.tree.hold(inode);
        if let Some(node) = old {
            self.remove_all(node);
        }
        let node = self.tree.link(parent, name, inode);
        self.tree.unlink(inode);
        self.tree.touch(node, self.layers);
        Ok(())
    }

    /// Where a path's parents lead, symbolic links followed inside the image. What does not exist is passed by its
    /// name alone, `..` behind it takes it back: nothing is made on the way.
    fn resolve(&self, parents: &[&[u8]], path: &[u8]) -> Result<Place, MergeError> {
        let mut place = Place {
            at: ROOT,
            missing: Vec::new(),
            obstacle: None,
        };
        // Components still to go, last first; owned only once a link was met.
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let mut plain = parents.iter();
        let mut followed = 0;
        loop {
            let owned = rest.pop();
            let name: &[u8] = match (&owned, owned.is_none().then(|| plain.next()).flatten()) {
                (Some(name), _) => name,
                (None, Some(name)) => name,
                (None, None) => return Ok(place),
            };
            if name == b".." {
                match place.missing.pop() {
                    None => place.at = self.tree.parent(place.at),
                    Some(_) if place.missing.is_empty() => place.obstacle = None,
                    Some(_) => {}
                }
                continue;
            }
            if !place.missing.is_empty() {
                place.missing.push(name.to_vec());
                continue;
            }
            let Some(node) = self.tree.lookup(place.at, name) else {
                place.missing.push(name.to_vec());
                continue;
            };
            let Kind::Inode(inode) = self.tree.kind(node) else {
                place.at = node;
                continue;
            };
            if self.tree.inode(inode).file_type != FileType::Symlink {
                place.obstacle = Some(node);
                place.missing.push(name.to_vec());
                continue;
            }
            followed += 1;
            if followed > MAX_SYMLINKS {
                return Err(MergeError::SymlinkLoop(lossy(path)));
            }
            let target = self.tree.target(inode);
            if target.starts_with(b"/") {
                place.at = ROOT;
            }
            for part in target.split(|b| *b == b'/').rev() {
                if !matches!(part, b"" | b".") {
                    path::check_name(part)?;
                    rest.push(part.to_vec());
                }
            }
        }
    }

    /// Makes the directories that are missing on the way to a place. A file of a layer below that stands in the way
    /// gives way.
    fn ensure(&mut self, place: Place, path: &[u8]) -> Result<NodeId, MergeError> {
        let mut at = place.at;
        if place.missing.is_empty() {
            return Ok(at);
        }
        if self.depth(at) + place.missing.len() > self.limits.depth {
            return Err(LimitExceeded::Depth(self.limits.depth).into());
        }
        if let Some(node) = place.obstacle {
            if self.tree.layer(node) == self.layers {
                return Err(MergeError::NotADirectory(lossy(path)));
            }
            self.remove_all(node);
        }
        for name in &place.missing {
            at = self.tree.add_directory(at, name);
        }
        self.tree.touch(at, self.layers);
        Ok(at)
    }

    /// Links can make paths longer than the names in any archive are.
    fn depth(&self, mut node: NodeId) -> usize {
        let mut depth = 0;
        while node != ROOT {
            node = self.tree.parent(node);
            depth += 1;
        }
        depth
    }

    /// A whiteout: what the layers below have there goes, what this layer has put there stays.
    fn hide(&mut self, node: NodeId) {
        if self.tree.layer(node) != self.layers {
            self.remove_all(node);
            return;
        }
        if let Kind::Directory(directory) = self.tree.kind(node) {
            self.tree.forget_below(directory, self.layers);
            self.hide_children(node);
        }
    }

    fn hide_children(&mut self, top: NodeId) {
        let mut pending = vec![top];
        while let Some(node) = pending.pop() {
            let Kind::Directory(directory) = self.tree.kind(node) else {
                continue;
            };
            if node != top {
                // It is this layer's now, and no entry of this layer may have described it.
                self.tree.forget_below(directory, self.layers);
            }
            let children: Vec<NodeId> = self.tree.children_of(directory).collect();
            for child in children {
                if self.tree.layer(child) == self.layers {
                    pending.push(child);
                } else {
                    self.remove_all(child);
                }
            }
        }
    }

    /// Removes a node and all below it, without recursion: the depth is the archive's choice.
    fn remove_all(&mut self, top: NodeId) {
        let mut at = top;
        loop {
            if let Kind::Directory(directory) = self.tree.kind(at)
                && let Some(child) = self.tree.children_of(directory).next()
            {
                at = child;
                continue;
            }
            let parent = self.tree.parent(at);
            if let Some(inode) = self.tree.remove(at) {
                self.drop_name(inode);
            }
            if at == top {
                return;
            }
            at = parent;
        }
    }

    fn drop_name(&mut self, inode: InodeId) {
        if self.tree.unlink(inode) == 0 {
            self.writer.release(self.tree.inode(inode).extent);
        }
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes, MergeError> {
        let id = |value: u64, field| u32::try_from(value).map_err(|_| TarError::Field(field));
        Ok(Attributes {
            permissions: entry.mode,
            uid: id(entry.uid, "uid")?,
            gid: id(entry.gid, "gid")?,
            mtime: entry.mtime,
            xattrs: self.xattrs(&entry.xattrs)?,
        })
    }

    fn xattrs(&mut self, given: &[(Vec<u8>, Vec<u8>)]) -> Result<Xattrs, MergeError> {
        use crate::erofs::Insert;
        if given.is_empty() {
            return Ok(Xattrs::default());
        }
        let limit = self.limits.xattr_bytes;
        let mut builder = XattrsBuilder::default();
        for (name, value) in given {
            match builder.insert(name, value) {
                Insert::Taken => {}
                Insert::UnknownNamespace => self.dropped_xattrs += 1,
                Insert::TooLong => return Err(LimitExceeded::XattrBytes(limit).into()),
            }
            if builder.size() > limit {
                return Err(LimitExceeded::XattrBytes(limit).into());
            }
        }
        Ok(builder.build())
    }
}

/// A name for a message: cut to a length a person reads.
fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(256)]).into_owned()
}

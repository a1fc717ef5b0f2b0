//! From the tree of a disk to the entries of a layer: what each name becomes, and the bytes of its file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};

use super::overlay::{Below, Notes, Origin, is_whiteout, take_notes};
use super::{Changed, ChangesError};
use crate::erofs::{self, FileType, Segment, Timestamp};
use crate::ext4::{Ext4, Inode, Xattrs};
use crate::limits::{LimitExceeded, Limits};
use warren_tar::{Entry, EntryKind, Writer};

/// What every boot writes anew, and the names it has until it is whole.
const OWN_FILES: [&[u8]; 6] = [
    b"etc/hosts",
    b"etc/hostname",
    b"etc/resolv.conf",
    b"etc/.hosts.warren",
    b"etc/.hostname.warren",
    b"etc/.resolv.conf.warren",
];
/// Directories that a boot makes where an image has none, and their permissions.
const OWN_DIRECTORIES: [(&[u8], u16); 6] = [
    (b"proc", 0o755),
    (b"sys", 0o755),
    (b"dev", 0o755),
    (b"run", 0o755),
    (b"tmp", 0o1777),
    (b"etc", 0o755),
];
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Holes shorter than this are written as the zeros they are.
const SHORTEST_HOLE: u64 = 64 << 10;
/// More pieces of a sparse file than this are joined.
const MOST_SEGMENTS: usize = 1 << 14;
const BUFFER: usize = 256 << 10;
/// What a whiteout has for a time.
const NEVER: Timestamp = Timestamp {
    seconds: 0,
    nanoseconds: 0,
};

/// What a name of the upper directory becomes.
enum Verdict {
    /// Nothing.
    LeftOut,
    /// A whiteout.
    Removed,
    /// A directory, with what is in it.
    Directory {
        inode: Inode,
        xattrs: Xattrs,
        below: Below,
        children: Names,
    },
    /// Anything else.
    File { inode: Inode, xattrs: Xattrs },
}

/// Names and numbers of inodes.
type Names = Vec<(Vec<u8>, u32)>;

/// Whether there is nothing that a layer would hold.
///
/// # Errors
/// See [`ChangesError`].
pub(crate) fn is_empty(changed: &Changed) -> Result<bool, ChangesError> {
    let tree = Tree::open(changed)?;
    let Some((upper, names)) = tree.upper()? else {
        return Ok(true);
    };
    if tree.root(&upper)?.is_some() {
        return Ok(false);
    }
    for (name, number) in &names {
        if !matches!(
            tree.judge(b"", name, *number, Below::Shown)?,
            Verdict::LeftOut
        ) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the layer.
///
/// # Errors
/// See [`ChangesError`].
pub(crate) fn write_layer<W: Write>(changed: &Changed, to: W) -> Result<W, ChangesError> {
    let tree = Tree::open(changed)?;
    let mut layer = Layer {
        archive: Writer::new(to),
        names: HashMap::new(),
        entries: 0,
        tree,
    };
    if let Some((upper, names)) = layer.tree.upper()? {
        if let Some(root) = layer.tree.root(&upper)? {
            layer.entry(&root)?;
        }
        layer.below(b"", &names, Below::Shown, 1)?;
    }
    layer.archive.finish().map_err(ChangesError::Write)
}

/// The disk and the image below it.
struct Tree<'a> {
    ext4: Ext4<&'a File>,
    base: Option<&'a erofs::Reader>,
    limits: &'a Limits,
}

impl<'a> Tree<'a> {
    fn open(changed: &'a Changed) -> Result<Self, ChangesError> {
        Ok(Tree {
            ext4: Ext4::open(&changed.disk)?,
            base: changed.base.as_ref(),
            limits: &changed.limits,
        })
    }

    fn children(&self, directory: &Inode) -> Result<Names, ChangesError> {
        let most = usize::try_from(self.limits.entries).unwrap_or(usize::MAX);
        Ok(self.ext4.entries(directory, most)?)
    }

    /// The upper directory and what is in it. A disk that no guest has booted from has none.
    fn upper(&self) -> Result<Option<(Inode, Names)>, ChangesError> {
        let top = self.children(&self.ext4.root()?)?;
        let Some((_, number)) = top.into_iter().find(|(name, _)| name == b"upper") else {
            return Ok(None);
        };
        let upper = self.ext4.inode(number)?;
        let names = self.children(&upper)?;
        Ok(Some((upper, names)))
    }

    /// An entry for the root itself, where it is not as the agent makes it for every instance.
    fn root(&self, upper: &Inode) -> Result<Option<Entry>, ChangesError> {
        let (xattrs, _) = self.xattrs(b"/", upper)?;
        let untouched = as_made(upper, &xattrs, 0o755);
        Ok((!untouched).then(|| entry(b"./".to_vec(), EntryKind::Directory, upper, xattrs)))
    }

    fn xattrs(&self, path: &[u8], inode: &Inode) -> Result<(Xattrs, Notes), ChangesError> {
        let mut xattrs = self.ext4.xattrs(inode)?;
        let notes = take_notes(inode, &mut xattrs).map_err(|why| unspeakable(path, why))?;
        if xattrs.keys().any(|name| name.contains(&b'=')) {
            return Err(unspeakable(path, "an attribute has `=` in its name"));
        }
        Ok((xattrs, notes))
    }

    /// What becomes of a name; `below` tells whether anything of the image shows through its directory.
    fn judge(
        &self,
        parent: &[u8],
        name: &[u8],
        number: u32,
        below: Below,
    ) -> Result<Verdict, ChangesError> {
        let path = join(parent, name);
        if OWN_FILES.contains(&path.as_slice()) {
            return Ok(Verdict::LeftOut);
        }
        let inode = self.ext4.inode(number)?;
        if is_whiteout(&inode) {
            return Ok(match below {
                Below::Shown => Verdict::Removed,
                Below::Hidden => Verdict::LeftOut,
            });
        }
        if name.starts_with(WHITEOUT) {
            return Err(unspeakable(
                &path,
                "names that begin with `.wh.` mean removed files there",
            ));
        }
        let (xattrs, notes) = self.xattrs(&path, &inode)?;
        match inode.file_type {
            FileType::Directory => {
                let children = self.children(&inode)?;
                if self.is_own_directory(&path, &inode, &xattrs, notes, &children)? {
                    return Ok(Verdict::LeftOut);
                }
                Ok(Verdict::Directory {
                    inode,
                    xattrs,
                    below: notes.below,
                    children,
                })
            }
            FileType::Socket => {
                let hides = below == Below::Shown && self.in_base(&path)?.is_some();
                Ok(if hides {
                    Verdict::Removed
                } else {
                    Verdict::LeftOut
                })
            }
            FileType::Regular
            | FileType::Symlink
            | FileType::Character
            | FileType::Block
            | FileType::Fifo => Ok(Verdict::File { inode, xattrs }),
        }
    }

    /// Whether a directory is only there, or only newer, because of a boot.
    fn is_own_directory(
        &self,
        path: &[u8],
        inode: &Inode,
        xattrs: &Xattrs,
        notes: Notes,
        children: &Names,
    ) -> Result<bool, ChangesError> {
        let own = OWN_DIRECTORIES.iter().find(|(own, _)| *own == path);
        let Some((_, permissions)) = own else {
            return Ok(false);
        };
        let strange = |name: &[u8]| !OWN_FILES.contains(&join(path, name).as_slice());
        if notes.below == Below::Hidden || children.iter().any(|(name, _)| strange(name)) {
            return Ok(false);
        }
        match (notes.origin, path) {
            (Origin::Instance, _) => Ok(as_made(inode, xattrs, *permissions)),
            // Its time is that of the files that a boot puts there.
            (Origin::Image, b"etc") => self.is_as_in_base(path, inode, xattrs),
            (Origin::Image, _) => Ok(false),
        }
    }

    /// Whether nothing but its time tells a directory from the image's.
    fn is_as_in_base(
        &self,
        path: &[u8],
        inode: &Inode,
        xattrs: &Xattrs,
    ) -> Result<bool, ChangesError> {
        let (Some(base), Some(node)) = (self.base, self.in_base(path)?) else {
            return Ok(false);
        };
        let attributes: Xattrs = base.xattrs(&node)?.into_iter().collect();
        Ok(node.file_type == inode.file_type
            && (node.permissions, node.uid, node.gid) == (inode.permissions, inode.uid, inode.gid)
            && attributes == *xattrs)
    }

    /// What the image has at a path, links not followed.
    fn in_base(&self, path: &[u8]) -> Result<Option<erofs::Node>, ChangesError> {
        let Some(base) = self.base else {
            return Ok(None);
        };
        let mut node = base.root()?;
        for name in path.split(|byte| *byte == b'/') {
            if node.file_type != FileType::Directory {
                return Ok(None);
            }
            let mut found = None;
            for entry in base.entries(&node)? {
                let entry = entry?;
                if entry.name == name {
                    found = Some(entry.nid);
                    break;
                }
            }
            let Some(nid) = found else {
                return Ok(None);
            };
            node = base.node(nid)?;
        }
        Ok(Some(node))
    }
}

/// A layer that is being written.
struct Layer<'a, W: Write> {
    tree: Tree<'a>,
    archive: Writer<W>,
    /// The first name of each file that has several.
    names: HashMap<u32, Vec<u8>>,
    entries: u64,
}

impl<W: Write> Layer<'_, W> {
    fn entry(&mut self, entry: &Entry) -> Result<(), ChangesError> {
        self.entries += 1;
        if self.entries > self.tree.limits.entries {
            return Err(LimitExceeded::Entries(self.tree.limits.entries).into());
        }
        if entry.path.len() > self.tree.limits.path_bytes {
            return Err(LimitExceeded::PathBytes(self.tree.limits.path_bytes).into());
        }
        self.archive.entry(entry).map_err(ChangesError::Write)
    }

    /// A file of no content whose name says something.
    fn mark(&mut self, path: Vec<u8>) -> Result<(), ChangesError> {
        let kind = EntryKind::File {
            size: 0,
            segments: None,
        };
        self.entry(&Entry {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: NEVER,
            xattrs: Vec::new(),
        })
    }

    fn below(
        &mut self,
        parent: &[u8],
        names: &Names,
        below: Below,
        depth: usize,
    ) -> Result<(), ChangesError> {
        if depth > self.tree.limits.depth {
            return Err(LimitExceeded::Depth(self.tree.limits.depth).into());
        }
        for (name, number) in names {
            match self.tree.judge(parent, name, *number, below)? {
                Verdict::LeftOut => {}
                Verdict::Removed => {
                    self.mark(join(parent, &[WHITEOUT, name.as_slice()].concat()))?;
                }
                Verdict::Directory {
                    inode,
                    xattrs,
                    below: own,
                    children,
                } => {
                    let path = join(parent, name);
                    let shown = [path.as_slice(), b"/"].concat();
                    self.entry(&entry(shown, EntryKind::Directory, &inode, xattrs))?;
                    if own == Below::Hidden && below == Below::Shown {
                        self.mark(join(&path, OPAQUE))?;
                    }
                    let through = match (below, own) {
                        (Below::Shown, Below::Shown) => Below::Shown,
                        (Below::Hidden, _) | (_, Below::Hidden) => Below::Hidden,
                    };
                    self.below(&path, &children, through, depth + 1)?;
                }
                Verdict::File { inode, xattrs } => {
                    self.file(join(parent, name), &inode, xattrs)?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: Vec<u8>, inode: &Inode, xattrs: Xattrs) -> Result<(), ChangesError> {
        if inode.links > 1 {
            if let Some(first) = self.names.get(&inode.number) {
                let kind = EntryKind::HardLink(first.clone());
                // Attributes belong to the file, and its first name has told them.
                return self.entry(&entry(path, kind, inode, Xattrs::new()));
            }
            self.names.insert(inode.number, path.clone());
        }
        let (major, minor) = inode.device.unwrap_or_default();
        let kind = match inode.file_type {
            FileType::Regular => return self.data(path, inode, xattrs),
            FileType::Symlink => EntryKind::Symlink(self.tree.ext4.symlink(inode)?),
            FileType::Character => EntryKind::Character(major, minor),
            FileType::Block => EntryKind::Block(major, minor),
            FileType::Fifo => EntryKind::Fifo,
            FileType::Directory | FileType::Socket => {
                return Err(unspeakable(&path, "it is of no kind that layers have"));
            }
        };
        self.entry(&entry(path, kind, inode, xattrs))
    }

    fn data(&mut self, path: Vec<u8>, inode: &Inode, xattrs: Xattrs) -> Result<(), ChangesError> {
        if inode.size > self.tree.limits.file_bytes {
            return Err(LimitExceeded::FileBytes(self.tree.limits.file_bytes).into());
        }
        let stored = self.tree.ext4.segments(inode)?;
        let pieces = pieces(
            stored.iter().map(|segment| Segment {
                offset: segment.offset,
                length: segment.bytes,
            }),
            inode.size,
        );
        let kind = EntryKind::File {
            size: inode.size,
            segments: pieces.clone(),
        };
        self.entry(&entry(path, kind, inode, xattrs))?;
        let whole = vec![Segment {
            offset: 0,
            length: inode.size,
        }];
        let mut buffer = vec![0; BUFFER];
        let mut segments = stored.iter().peekable();
        for piece in pieces.unwrap_or(whole) {
            let (mut at, end) = (piece.offset, piece.offset + piece.length);
            while at < end {
                while segments
                    .next_if(|one| one.offset + one.bytes <= at)
                    .is_some()
                {}
                let room = (end - at).min(BUFFER as u64);
                let count = match segments.peek() {
                    Some(one) if one.offset <= at => {
                        let count = room.min(one.offset + one.bytes - at);
                        let into = &mut buffer[..count as usize];
                        self.tree.ext4.read_segment(one, at - one.offset, into)?;
                        count
                    }
                    next => {
                        let gap = next.map_or(room, |one| one.offset - at).min(room);
                        buffer[..gap as usize].fill(0);
                        gap
                    }
                };
                self.archive
                    .write_all(&buffer[..count as usize])
                    .map_err(ChangesError::Write)?;
                at += count;
            }
        }
        Ok(())
    }
}

/// The pieces of a file that are worth telling from the holes between them; `None` where it has no such holes.
fn pieces(stored: impl Iterator<Item = Segment>, size: u64) -> Option<Vec<Segment>> {
    let mut pieces: Vec<Segment> = Vec::new();
    let join = |pieces: &mut Vec<Segment>, one: Segment, shortest: u64| {
        let end = one.offset + one.length;
        match pieces.last_mut() {
            Some(last) if one.offset - (last.offset + last.length) < shortest => {
                last.length = end - last.offset;
            }
            None if one.offset < shortest => pieces.push(Segment {
                offset: 0,
                length: end,
            }),
            Some(_) | None => pieces.push(one),
        }
    };
    for one in stored {
        join(&mut pieces, one, SHORTEST_HOLE);
    }
    let mut shortest = SHORTEST_HOLE;
    while pieces.len() > MOST_SEGMENTS {
        shortest *= 2;
        let mut joined = Vec::new();
        for one in pieces {
            join(&mut joined, one, shortest);
        }
        pieces = joined;
    }
    if let Some(last) = pieces.last_mut()
        && size - (last.offset + last.length) < SHORTEST_HOLE
    {
        last.length = size - last.offset;
    }
    match pieces.as_slice() {
        [] if size < SHORTEST_HOLE => None,
        [only] if only.offset == 0 && only.length == size => None,
        _ => Some(pieces),
    }
}

fn entry(path: Vec<u8>, kind: EntryKind, inode: &Inode, xattrs: Xattrs) -> Entry {
    Entry {
        path,
        kind,
        mode: inode.permissions,
        uid: u64::from(inode.uid),
        gid: u64::from(inode.gid),
        mtime: inode.mtime,
        xattrs: xattrs.into_iter().collect(),
    }
}

/// Whether a directory is as the guest's agent makes one.
fn as_made(inode: &Inode, xattrs: &Xattrs, permissions: u16) -> bool {
    (inode.permissions, inode.uid, inode.gid) == (permissions, 0, 0) && xattrs.is_empty()
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent {
        b"" => name.to_vec(),
        parent => [parent, name].join(&b'/'),
    }
}

fn unspeakable(path: &[u8], why: &'static str) -> ChangesError {
    ChangesError::Unspeakable {
        path: String::from_utf8_lossy(path).into_owned(),
        why,
    }
}

impl From<ChangesError> for io::Error {
    fn from(error: ChangesError) -> Self {
        io::Error::other(error)
    }
}

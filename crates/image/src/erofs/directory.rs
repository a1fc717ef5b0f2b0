//! Directories: sorted entries in blocks, a name area behind the entries of each block.

use std::io;
use std::ops::Range;

use super::format::{
    BLOCK, DIRENT_SIZE, FileType, INODE_SIZE, InodeFields, Layout, ROOT_NID, SLOT,
};
use super::output::Output;
use super::writer::Attributes;

/// The final tree, as `merge` holds it. Numbers are the tree's own node numbers.
pub(crate) trait DirectoryTree {
    /// The root directory.
    fn root(&self) -> u32;
    /// Owner, mode, times and xattrs of a directory.
    fn attributes(&self, directory: u32) -> &Attributes;
    /// The children of a directory, in any order.
    fn children(&self, directory: u32, into: &mut Vec<u32>);
    /// Name, type and, for what is not a directory, the inode's node number.
    fn entry(&self, node: u32) -> (&[u8], FileType, u64);
    /// The node number given to a directory by `set_nid`.
    fn nid(&self, directory: u32) -> u64;
    /// Remembers a directory's node number.
    fn set_nid(&mut self, directory: u32, nid: u64);
}

/// A directory, laid out but not yet written.
#[derive(Debug, Clone, Copy)]
struct Plan {
    directory: u32,
    /// Index of the parent's plan; the root is its own parent.
    parent: u32,
    full_blocks: u32,
    tail: u16,
    placing: Placing,
    subdirectories: u32,
    /// First block of its entries, when it has any.
    start: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placing {
    TailInline,
    TailInBlock,
}

impl Plan {
    fn blocks(&self) -> u64 {
        let last = self.placing == Placing::TailInBlock && self.tail > 0;
        u64::from(self.full_blocks) + u64::from(last)
    }

    fn size(&self) -> u64 {
        u64::from(self.full_blocks) * BLOCK + u64::from(self.tail)
    }
}

/// Lays out and writes all directories. Returns the root's inode (with xattrs), which belongs into block 0, and the
/// number of directories.
pub(crate) fn write_all(
    tree: &mut dyn DirectoryTree,
    out: &mut Output,
    next_ino: &mut u32,
    root_room: usize,
) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut plans = plan_all(tree);
    if INODE_SIZE + tree.attributes(tree.root()).xattrs.bytes().len() > root_room {
        return Ok(None);
    }
    let inodes_at = out.align()? * BLOCK;
    let mut offset = inodes_at;
    for (index, plan) in plans.iter().enumerate() {
        if index == 0 {
            tree.set_nid(plan.directory, u64::from(ROOT_NID));
            continue;
        }
        offset = fit(offset, inode_length(tree, plan));
        tree.set_nid(plan.directory, offset / SLOT);
        offset += inode_length(tree, plan).next_multiple_of(SLOT);
    }
    let mut block = offset.div_ceil(BLOCK);
    for plan in &mut plans {
        if plan.blocks() > 0 {
            plan.start = u32::try_from(block).map_err(|_| io::ErrorKind::FileTooLarge)?;
            block += plan.blocks();
        }
    }
    let mut scratch = Entries::default();
    let mut root = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let inode = encode_inode(tree, plan, *next_ino);
        *next_ino += 1;
        if index == 0 {
            root = inode;
            continue;
        }
        let at = tree.nid(plan.directory) * SLOT;
        out.append_zeros(at - out.position())?;
        out.append(&inode)?;
        if plan.placing == Placing::TailInline && plan.tail > 0 {
            let last = plan.full_blocks..plan.full_blocks + 1;
            scratch.write(tree, plan, &plans, last, out)?;
        }
    }
    out.align()?;
    for plan in plans.iter().filter(|plan| plan.blocks() > 0) {
        scratch.write(tree, plan, &plans, 0..plan.blocks() as u32, out)?;
        out.align()?;
    }
    Ok(Some((root, plans.len() as u64)))
}

/// Where something of `length` bytes may start at or behind `offset` without crossing a block needlessly.
fn fit(offset: u64, length: u64) -> u64 {
    let left = BLOCK - offset % BLOCK;
    if length <= left {
        offset
    } else {
        offset + left
    }
}

fn inode_length(tree: &dyn DirectoryTree, plan: &Plan) -> u64 {
    let head = INODE_SIZE + tree.attributes(plan.directory).xattrs.bytes().len();
    let tail = match plan.placing {
        Placing::TailInline => usize::from(plan.tail),
        Placing::TailInBlock => 0,
    };
    (head + tail) as u64
}

/// Breadth first, children sorted, so that what is listed together lies together.
fn plan_all(tree: &dyn DirectoryTree) -> Vec<Plan> {
    let mut plans = vec![Plan {
        directory: tree.root(),
        parent: 0,
        full_blocks: 0,
        tail: 0,
        placing: Placing::TailInBlock,
        subdirectories: 0,
        start: 0,
    }];
    let mut names = Vec::new();
    let mut next = 0;
    while next < plans.len() {
        let Plan { directory, .. } = plans[next];
        sorted(tree, directory, &mut names);
        let mut subdirectories = 0;
        for &node in names.iter().filter(|node| ![DOT, DOT_DOT].contains(node)) {
            if tree.entry(node).1 == FileType::Directory {
                subdirectories += 1;
                plans.push(Plan {
                    directory: node,
                    parent: next as u32,
                    ..plans[next]
                });
            }
        }
        let (mut full_blocks, mut used) = (0, 0);
        for &node in &names {
            let need = DIRENT_SIZE + name(tree, node).len();
            if used + need > BLOCK as usize {
                full_blocks += 1;
                used = 0;
            }
            used += need;
        }
        let head = INODE_SIZE + tree.attributes(directory).xattrs.bytes().len();
        let plan = &mut plans[next];
        plan.subdirectories = subdirectories;
        plan.full_blocks = full_blocks;
        plan.tail = used as u16;
        plan.placing = if next > 0 && head + used <= BLOCK as usize {
            Placing::TailInline
        } else {
            Placing::TailInBlock
        };
        next += 1;
    }
    plans
}

/// Stand-ins for `.` and `..` among node numbers: they sort by their names like everything else.
const DOT: u32 = u32::MAX;
const DOT_DOT: u32 = u32::MAX - 1;

fn name(tree: &dyn DirectoryTree, node: u32) -> &[u8] {
    match node {
        DOT => b".",
        DOT_DOT => b"..",
        node => tree.entry(node).0,
    }
}

fn sorted(tree: &dyn DirectoryTree, directory: u32, into: &mut Vec<u32>) {
    into.clear();
    into.extend([DOT, DOT_DOT]);
    tree.children(directory, into);
    into.sort_unstable_by(|a, b| name(tree, *a).cmp(name(tree, *b)));
}

fn encode_inode(tree: &dyn DirectoryTree, plan: &Plan, ino: u32) -> Vec<u8> {
    let attributes = tree.attributes(plan.directory);
    let xattrs = attributes.xattrs.bytes();
    let mut inode = InodeFields {
        file_type: FileType::Directory,
        permissions: attributes.permissions,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        size: plan.size(),
        links: 2 + plan.subdirectories,
        ino,
        xattr_bytes: xattrs.len(),
        layout: match plan.placing {
            Placing::TailInline => Layout::Inline {
                raw_blkaddr: plan.start,
            },
            Placing::TailInBlock => Layout::Plain {
                raw_blkaddr: plan.start,
            },
        },
    }
    .encode()
    .to_vec();
    inode.extend_from_slice(xattrs);
    inode
}

/// Writes entries, a block in memory at a time: the largest directory may have all the names of an image.
#[derive(Debug, Default)]
struct Entries {
    nodes: Vec<u32>,
    block: Vec<u8>,
}

impl Entries {
    /// Writes these blocks of a directory, the last one of them without padding.
    fn write(
        &mut self,
        tree: &dyn DirectoryTree,
        plan: &Plan,
        plans: &[Plan],
        wanted: Range<u32>,
        out: &mut Output,
    ) -> io::Result<()> {
        sorted(tree, plan.directory, &mut self.nodes);
        let parent = tree.nid(plans[plan.parent as usize].directory);
        let mut rest = self.nodes.as_slice();
        let mut number = 0;
        while !rest.is_empty() && number < wanted.end {
            let mut used = 0;
            let count = rest
                .iter()
                .take_while(|node| {
                    used += DIRENT_SIZE + name(tree, **node).len();
                    used <= BLOCK as usize
                })
                .count();
            let (now, later) = rest.split_at(count);
            rest = later;
            if number >= wanted.start {
                encode(tree, now, (plan.directory, parent), &mut self.block);
                out.append(&self.block)?;
                if number + 1 < wanted.end {
                    out.align()?;
                }
            }
            number += 1;
        }
        Ok(())
    }
}

/// One block: entries, then their names. `parents` are what `.` and `..` name: a directory's number, a node number.
fn encode(
    tree: &dyn DirectoryTree,
    entries: &[u32],
    (directory, parent): (u32, u64),
    block: &mut Vec<u8>,
) {
    block.clear();
    let mut name_at = entries.len() * DIRENT_SIZE;
    for &node in entries {
        let (nid, file_type) = match node {
            DOT => (tree.nid(directory), FileType::Directory),
            DOT_DOT => (parent, FileType::Directory),
            node => match tree.entry(node) {
                (_, FileType::Directory, _) => (tree.nid(node), FileType::Directory),
                (_, file_type, nid) => (nid, file_type),
            },
        };
        block.extend_from_slice(&nid.to_le_bytes());
        block.extend_from_slice(&(name_at as u16).to_le_bytes());
        block.extend_from_slice(&[file_type as u8, 0]);
        name_at += name(tree, node).len();
    }
    for &node in entries {
        block.extend_from_slice(name(tree, node));
    }
}

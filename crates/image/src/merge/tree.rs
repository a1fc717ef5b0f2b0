//! The tree in memory, kept small: a node is 36 bytes, names lie in one arena, children are linked lists, and one
//! hash table over (parent, name) finds them all.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::erofs::{Attributes, DirectoryTree, FileType, Inode};

/// Index of a node.
pub(super) type NodeId = u32;
/// Index of an inode that is not a directory.
pub(super) type InodeId = u32;

pub(super) const ROOT: NodeId = 0;
const NONE: u32 = u32::MAX;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Free for reuse.
    Free,
    /// A directory; the number is its index among the directories.
    Directory(u32),
    /// Anything else.
    Inode(InodeId),
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    previous: u32,
    next: u32,
    name: u32,
    kind: Kind,
    /// The layer that touched it last, or that has something below it.
    layer: u16,
    name_length: u8,
}

#[derive(Debug, Default)]
struct Directory {
    attributes: Attributes,
    first: u32,
    nid: u64,
    /// The layer whose entry gave it its attributes; none has the number 0.
    described_by: u16,
}

/// An inode with its number of names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linked {
    pub(super) nid: u64,
    pub(super) extent: u32,
    pub(super) links: u32,
    pub(super) file_type: FileType,
    /// Index of the target, for symbolic links.
    target: u32,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    names: Vec<u8>,
    directories: Vec<Directory>,
    free_directories: Vec<u32>,
    inodes: Vec<Linked>,
    targets: Vec<Box<[u8]>>,
    by_name: HashTable<NodeId>,
    hasher: DefaultHashBuilder,
    /// Bytes of targets and xattrs.
    heap: u64,
}

impl Tree {
    /// A tree of one directory, as an image without an entry for its root has it.
    pub(super) fn new() -> Self {
        let mut tree = Tree {
            nodes: Vec::new(),
            free: Vec::new(),
            names: Vec::new(),
            directories: Vec::new(),
            free_directories: Vec::new(),
            inodes: Vec::new(),
            targets: Vec::new(),
            by_name: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            heap: 0,
        };
        let kind = tree.new_directory();
        tree.nodes.push(Node {
            parent: ROOT,
            previous: NONE,
            next: NONE,
            name: 0,
            kind,
            layer: 0,
            name_length: 0,
        });
        tree
    }

    /// Memory held, in bytes, as far as it grows with the image.
    pub(super) fn memory(&self) -> u64 {
        let fixed = self.nodes.len() * size_of::<Node>()
            + self.names.len()
            + self.directories.len() * size_of::<Directory>()
            + self.inodes.len() * size_of::<Linked>()
            + self.targets.len() * size_of::<Box<[u8]>>()
            + self.by_name.len() * 8;
        fixed as u64 + self.heap
    }

    pub(super) fn kind(&self, node: NodeId) -> Kind {
        self.nodes[node as usize].kind
    }

    pub(super) fn parent(&self, node: NodeId) -> NodeId {
        self.nodes[node as usize].parent
    }

    pub(super) fn layer(&self, node: NodeId) -> u16 {
        self.nodes[node as usize].layer
    }

    pub(super) fn inode(&self, inode: InodeId) -> &Linked {
        &self.inodes[inode as usize]
    }

    /// All inodes; those without a name are dead.
    pub(super) fn inodes(&self) -> &[Linked] {
        &self.inodes
    }

    pub(super) fn target(&self, inode: InodeId) -> &[u8] {
        &self.targets[self.inodes[inode as usize].target as usize]
    }

    /// Marks a node and all above it as touched by a layer.
    pub(super) fn touch(&mut self, mut node: NodeId, layer: u16) {
        while self.nodes[node as usize].layer != layer {
            self.nodes[node as usize].layer = layer;
            node = self.nodes[node as usize].parent;
        }
    }

    pub(super) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let hash = self.hasher.hash_one((parent, name));
        self.by_name
            .find(hash, |node| self.is(*node, parent, name))
            .copied()
    }

    fn is(&self, node: NodeId, parent: NodeId, name: &[u8]) -> bool {
        self.nodes[node as usize].parent == parent && self.name(node) == name
    }

    pub(super) fn name(&self, node: NodeId) -> &[u8] {
        let node = &self.nodes[node as usize];
        &self.names[node.name as usize..node.name as usize + usize::from(node.name_length)]
    }

    /// Adds a directory, of which nothing has been said, under a name that is free.
    pub(super) fn add_directory(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        let kind = self.new_directory();
        self.add_node(parent, name, kind)
    }

    /// Adds an inode, with its first name, which is free. `target` for symbolic links.
    pub(super) fn add_inode(
        &mut self,
        parent: NodeId,
        name: &[u8],
        inode: Inode,
        target: Option<&[u8]>,
    ) -> NodeId {
        let target = target.map_or(NONE, |target| {
            self.heap += target.len() as u64;
            self.targets.push(target.into());
            self.targets.len() as u32 - 1
        });
        self.inodes.push(Linked {
            nid: inode.nid,
            extent: inode.extent,
            links: 0,
            file_type: inode.file_type,
            target,
        });
        self.link(parent, name, self.inodes.len() as InodeId - 1)
    }

    /// Adds another name, which is free, for an inode.
    pub(super) fn link(&mut self, parent: NodeId, name: &[u8], inode: InodeId) -> NodeId {
        self.inodes[inode as usize].links += 1;
        self.add_node(parent, name, Kind::Inode(inode))
    }

    /// Takes a name from an inode that is not in the tree under it; the number of names left.
    pub(super) fn unlink(&mut self, inode: InodeId) -> u32 {
        let links = &mut self.inodes[inode as usize].links;
        *links -= 1;
        *links
    }

    /// Keeps an inode alive while its names change.
    pub(super) fn hold(&mut self, inode: InodeId) {
        self.inodes[inode as usize].links += 1;
    }

    /// Gives a directory what a layer's entry says of it.
    pub(super) fn describe(&mut self, directory: u32, attributes: Attributes, layer: u16) {
        self.heap += attributes.xattrs.bytes().len() as u64;
        let directory = &mut self.directories[directory as usize];
        directory.described_by = layer;
        let old = std::mem::replace(&mut directory.attributes, attributes);
        self.heap -= old.xattrs.bytes().len() as u64;
    }

    /// Takes from a directory what layers below have said of it.
    pub(super) fn forget_below(&mut self, directory: u32, layer: u16) {
        if self.directories[directory as usize].described_by != layer {
            self.describe(directory, Attributes::unsaid(), 0);
        }
    }

    /// The children of a directory, newest first.
    pub(super) fn children_of(&self, directory: u32) -> impl Iterator<Item = NodeId> {
        let first = self.directories[directory as usize].first;
        std::iter::successors((first != NONE).then_some(first), |node| {
            let next = self.nodes[*node as usize].next;
            (next != NONE).then_some(next)
        })
    }

    /// Removes one node, a directory only when it is empty; the inode it was a name of.
    pub(super) fn remove(&mut self, node: NodeId) -> Option<InodeId> {
        let hash = self.hasher.hash_one((self.parent(node), self.name(node)));
        if let Ok(entry) = self.by_name.find_entry(hash, |other| *other == node) {
            entry.remove();
        }
        let Node {
            parent,
            previous,
            next,
            kind,
            ..
        } = self.nodes[node as usize];
        match previous {
            NONE => {
                if let Kind::Directory(directory) = self.nodes[parent as usize].kind {
                    self.directories[directory as usize].first = next;
                }
            }
            previous => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        self.nodes[node as usize].kind = Kind::Free;
        self.free.push(node);
        match kind {
            Kind::Directory(directory) => {
                let old = std::mem::take(&mut self.directories[directory as usize]);
                debug_assert_eq!(old.first, NONE, "directories are emptied before they go");
                self.heap -= old.attributes.xattrs.bytes().len() as u64;
                self.free_directories.push(directory);
                None
            }
            Kind::Inode(inode) => Some(inode),
            Kind::Free => None,
        }
    }

    fn new_directory(&mut self) -> Kind {
        let directory = Directory {
            attributes: Attributes::unsaid(),
            first: NONE,
            nid: 0,
            described_by: 0,
        };
        Kind::Directory(match self.free_directories.pop() {
            Some(index) => {
                self.directories[index as usize] = directory;
                index
            }
            None => {
                self.directories.push(directory);
                self.directories.len() as u32 - 1
            }
        })
    }

    fn add_node(&mut self, parent: NodeId, name: &[u8], kind: Kind) -> NodeId {
        let Kind::Directory(directory) = self.nodes[parent as usize].kind else {
            unreachable!("nodes are added to directories only");
        };
        let node = self.free.pop().unwrap_or(self.nodes.len() as NodeId);
        let next = std::mem::replace(&mut self.directories[directory as usize].first, node);
        if next != NONE {
            self.nodes[next as usize].previous = node;
        }
        let new = Node {
            parent,
            previous: NONE,
            next,
            name: self.names.len() as u32,
            kind,
            // No layer has this number: touching it reaches its parents too.
            layer: u16::MAX,
            name_length: name.len() as u8,
        };
        self.names.extend_from_slice(name);
        match self.nodes.get_mut(node as usize) {
            Some(place) => *place = new,
            None => self.nodes.push(new),
        }
        let Tree {
            nodes,
            names,
            by_name,
            hasher,
            ..
        } = self;
        let key = |node: &NodeId| {
            let node = &nodes[*node as usize];
            let at = node.name as usize;
            (node.parent, &names[at..at + usize::from(node.name_length)])
        };
        let hash = hasher.hash_one((parent, name));
        match by_name.entry(hash, |_| false, |other| hasher.hash_one(key(other))) {
            Entry::Vacant(place) => {
                place.insert(node);
            }
            Entry::Occupied(_) => unreachable!("nothing is equal to a new node"),
        }
        node
    }
}

impl DirectoryTree for Tree {
    fn root(&self) -> u32 {
        ROOT
    }

    fn attributes(&self, node: u32) -> &Attributes {
        &self.directory(node).attributes
    }

    fn children(&self, node: u32, into: &mut Vec<u32>) {
        if let Kind::Directory(directory) = self.kind(node) {
            into.extend(self.children_of(directory));
        }
    }

    fn entry(&self, node: u32) -> (&[u8], FileType, u64) {
        match self.kind(node) {
            Kind::Inode(inode) => {
                let inode = self.inode(inode);
                (self.name(node), inode.file_type, inode.nid)
            }
            Kind::Directory(_) | Kind::Free => (self.name(node), FileType::Directory, 0),
        }
    }

    fn nid(&self, node: u32) -> u64 {
        self.directory(node).nid
    }

    fn set_nid(&mut self, node: u32, nid: u64) {
        if let Kind::Directory(directory) = self.kind(node) {
            self.directories[directory as usize].nid = nid;
        }
    }
}

impl Tree {
    fn directory(&self, node: NodeId) -> &Directory {
        match self.kind(node) {
            Kind::Directory(directory) => &self.directories[directory as usize],
            Kind::Inode(_) | Kind::Free => {
                unreachable!("only directories are asked for what directories have")
            }
        }
    }
}

//! What an image is after its layers, in the plainest way there is: a tree of maps, paths taken apart anew each time.
//!
//! Source: OCI image-spec v1.1 `layer.md`. Whiteouts of a layer are applied before its entries, wherever they stand in
//! the archive; symbolic links in the parents of a path are followed inside the root, and what does not exist on the
//! way is passed by its name (as umoci's and Docker's `SecureJoin` do).

use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) type Name = Vec<u8>;

/// Owner, mode, time and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Of a directory that no entry describes.
    pub(crate) fn implied() -> Self {
        Meta {
            permissions: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    File(Rc<Vec<u8>>),
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Everything but a directory; names of one file share one.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) meta: Meta,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory(Directory),
    /// The layer that gave it this name.
    Inode(Rc<Inode>, usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Directory {
    pub(crate) meta: Meta,
    pub(crate) children: BTreeMap<Name, Node>,
}

impl Directory {
    fn implied() -> Self {
        Directory {
            meta: Meta::implied(),
            children: BTreeMap::new(),
        }
    }
}

/// What an entry puts at its name.
#[derive(Debug, Clone)]
pub(crate) enum New {
    Directory(Meta),
    Inode(Rc<Inode>),
    HardLink(Vec<Name>),
}

/// Why a layer with this entry would be refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    TooManyLinks,
    NotADirectory,
    HardLink,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) root: Directory,
}

impl Model {
    pub(crate) fn new() -> Self {
        Model {
            root: Directory::implied(),
        }
    }

    /// The path without symbolic links and `..` of what may not exist.
    pub(crate) fn canonical(&self, path: &[Name]) -> Result<Vec<Name>, Refused> {
        let mut left: Vec<Name> = path.iter().rev().cloned().collect();
        let mut done: Vec<Name> = Vec::new();
        let mut followed = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            done.push(name);
            let Some(Node::Inode(inode, _)) = self.get(&done) else {
                continue;
            };
            let Content::Symlink(target) = &inode.content else {
                continue;
            };
            followed += 1;
            if followed > 40 {
                return Err(Refused::TooManyLinks);
            }
            done.pop();
            if target.first() == Some(&b'/') {
                done.clear();
            }
            for part in target.split(|byte| *byte == b'/').rev() {
                if !part.is_empty() && part != b"." {
                    left.push(part.to_vec());
                }
            }
        }
        Ok(done)
    }

    /// What has this canonical path; `None` for the root too.
    pub(crate) fn get(&self, path: &[Name]) -> Option<&Node> {
        let (name, parents) = path.split_last()?;
        self.directory(parents)?.children.get(name)
    }

    fn directory(&self, path: &[Name]) -> Option<&Directory> {
        let mut at = &self.root;
        for name in path {
            match at.children.get(name)? {
                Node::Directory(directory) => at = directory,
                Node::Inode(..) => return None,
            }
        }
        Some(at)
    }

    fn directory_mut(&mut self, path: &[Name]) -> Option<&mut Directory> {
        let mut at = &mut self.root;
        for name in path {
            match at.children.get_mut(name)? {
                Node::Directory(directory) => at = directory,
                Node::Inode(..) => return None,
            }
        }
        Some(at)
    }

    /// Hides what the layers below have at a path.
    pub(crate) fn whiteout(&mut self, parents: &[Name], name: &Name) -> Result<(), Refused> {
        let parents = self.canonical(parents)?;
        if let Some(directory) = self.directory_mut(&parents) {
            directory.children.remove(name);
        }
        Ok(())
    }

    /// Hides what the layers below have in a directory.
    pub(crate) fn opaque(&mut self, path: &[Name]) -> Result<(), Refused> {
        let path = self.canonical(path)?;
        if let Some(directory) = self.directory_mut(&path) {
            directory.children.clear();
        }
        Ok(())
    }

    /// Puts an entry of a layer at its path. Nothing has changed if it is refused.
    pub(crate) fn put(&mut self, path: &[Name], new: New, layer: usize) -> Result<(), Refused> {
        let Some((name, parents)) = path.split_last() else {
            if let New::Directory(meta) = new {
                self.root.meta = meta;
            }
            return Ok(());
        };
        let parents = self.canonical(parents)?;
        let mut after = self.clone();
        let directory = after.ensure(&parents, layer)?;
        let old = directory.children.get_mut(name);
        match new {
            New::Directory(meta) => match old {
                Some(Node::Directory(directory)) => directory.meta = meta,
                Some(Node::Inode(..)) | None => {
                    let children = BTreeMap::new();
                    let node = Node::Directory(Directory { meta, children });
                    directory.children.insert(name.clone(), node);
                }
            },
            New::Inode(inode) => {
                directory
                    .children
                    .insert(name.clone(), Node::Inode(inode, layer));
            }
            New::HardLink(target) => {
                let (last, above) = target.split_last().ok_or(Refused::HardLink)?;
                let mut target = after.canonical(above)?;
                target.push(last.clone());
                let Some(Node::Inode(inode, _)) = after.get(&target) else {
                    return Err(Refused::HardLink);
                };
                let node = Node::Inode(Rc::clone(inode), layer);
                after
                    .ensure(&parents, layer)?
                    .children
                    .insert(name.clone(), node);
            }
        }
        *self = after;
        Ok(())
    }

    fn ensure(&mut self, path: &[Name], layer: usize) -> Result<&mut Directory, Refused> {
        let mut at = &mut self.root;
        for name in path {
            let implied = || Node::Directory(Directory::implied());
            let child = at.children.entry(name.clone()).or_insert_with(implied);
            if let Node::Inode(_, of) = child {
                if *of == layer {
                    return Err(Refused::NotADirectory);
                }
                *child = implied();
            }
            match child {
                Node::Directory(directory) => at = directory,
                Node::Inode(..) => unreachable!("it was made a directory above"),
            }
        }
        Ok(at)
    }

    /// Everything by its path, the root by the empty one.
    pub(crate) fn walk(&self) -> Vec<(Vec<Name>, Option<&Node>)> {
        fn into<'a>(
            directory: &'a Directory,
            path: &mut Vec<Name>,
            found: &mut Vec<(Vec<Name>, Option<&'a Node>)>,
        ) {
            for (name, node) in &directory.children {
                path.push(name.clone());
                found.push((path.clone(), Some(node)));
                if let Node::Directory(directory) = node {
                    into(directory, path, found);
                }
                path.pop();
            }
        }
        let mut found = vec![(Vec::new(), None)];
        into(&self.root, &mut Vec::new(), &mut found);
        found
    }
}

//! File systems made of images, and what others see of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use warren_image::Digest;
use warren_image::erofs::{FileType, Reader};
use warren_image::ext4::{Ext4, Ext4Error, Identity, Inode, Plan, Source, WriteError};

/// A tree in the words of [`super::scan`].
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Writes an image's tree as an ext4 into a sparse file.
pub fn write(image: &Path, to: &Path, size: Option<u64>) -> Result<Plan, WriteError> {
    let reader = Reader::open(File::open(image).unwrap()).unwrap();
    let identity = Identity {
        uuid: [0x42; 16],
        hash_seed: [0x17; 16],
    };
    let plan = Plan::of(&reader, size, identity)?;
    let file = File::create(to).unwrap();
    file.set_len(size.unwrap_or(plan.bytes())).unwrap();
    let mut bytes = Vec::new();
    plan.write(&reader, &mut bytes).unwrap();
    let (mut from, mut end) = (0, 0);
    for segment in plan.segments() {
        assert!(segment.offset >= end, "in the order of their places");
        end = segment.offset + segment.length;
        let upto = from + segment.length as usize;
        file.write_all_at(&bytes[from..upto], segment.offset)
            .unwrap();
        from = upto;
    }
    assert_eq!(from, bytes.len(), "nothing but what the segments name");
    Ok(plan)
}

/// What `e2fsck` has to say against it.
pub fn complaints(disk: &Path) -> Option<String> {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(disk)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    // It ends well where it only would like something else, too.
    let dislikes = said
        .lines()
        .any(|line| line.ends_with("no") || line.contains('?'));
    (!output.status.success() || dislikes).then(|| format!("{said}{told}"))
}

/// What an image has more of as an ext4: a directory, and one more link of the root by it.
pub fn without_lost_and_found(mut tree: Tree, image: &Tree) -> Tree {
    if image.contains_key(&b"lost+found"[..]) {
        return tree;
    }
    assert!(tree.remove(&b"lost+found"[..]).is_some());
    let root = tree.get_mut(&b""[..]).unwrap();
    let links = root.split_once("links=").unwrap().1;
    let links: u32 = links.split(' ').next().unwrap().parse().unwrap();
    *root = root.replace(&format!("links={links}"), &format!("links={}", links - 1));
    tree
}

/// As the kernel shows a file system that it may write to; `None` (and a skip) where mounting is not allowed.
pub fn mounted(test: &str, disk: &Path, at: &Path) -> Option<Tree> {
    std::fs::create_dir_all(at).unwrap();
    let options = ["-t", "ext4", "-o", "loop,noatime"];
    if !super::mount(test, &options, disk, at) {
        return None;
    }
    let shown = super::scan(at);
    super::run(Command::new("umount").arg(at));
    Some(shown)
}

/// Writes an image's tree, and asserts that a check, the crate's own reader and the kernel find in it what is wanted.
pub fn assert_exact(test: &str, image: &Path, work: &Path, size: Option<u64>, wanted: &Tree) {
    let disk = work.join("disk.ext4");
    write(image, &disk, size).unwrap();
    assert_eq!(complaints(&disk), None);
    let read = scan_disk(File::open(&disk).unwrap()).unwrap();
    let read = without_lost_and_found(read, wanted);
    super::reading::assert_same_tree("as it is read here", &read, wanted);
    if let Some(shown) = mounted(test, &disk, &work.join("mounted")) {
        let shown = without_lost_and_found(shown, wanted);
        super::reading::assert_same_tree("as the kernel shows it", &shown, wanted);
        assert_eq!(complaints(&disk), None, "after a mount");
    }
    std::fs::remove_file(&disk).unwrap();
}

/// All that a disk holds, in the words in which [`scan`] tells what the kernel shows.
pub fn scan_disk<S: Source>(disk: S) -> Result<BTreeMap<Vec<u8>, String>, Ext4Error> {
    let ext4 = Ext4::open(disk)?;
    let mut found = BTreeMap::new();
    let mut groups: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let mut pending = vec![(Vec::new(), ext4.root()?)];
    while let Some((path, inode)) = pending.pop() {
        if inode.file_type == FileType::Directory {
            for (name, number) in ext4.entries(&inode, 1 << 20)? {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&name);
                pending.push((below, ext4.inode(number)?));
            }
        } else {
            groups.entry(inode.number).or_default().push(path.clone());
        }
        let line = describe(&ext4, &inode)?;
        found.insert(path, line);
    }
    super::tell_links(&mut found, groups.into_values());
    Ok(found)
}

fn describe<S: Source>(ext4: &Ext4<S>, inode: &Inode) -> Result<String, Ext4Error> {
    let mut line = format!(
        "{:o} {}:{} {}.{:09} links={}",
        super::mode(inode.file_type, inode.permissions),
        inode.uid,
        inode.gid,
        inode.mtime.seconds,
        inode.mtime.nanoseconds,
        inode.links
    );
    if inode.file_type == FileType::Regular {
        let length = inode.size.min(super::READ_AT_MOST) as usize;
        let mut bytes = vec![0; length];
        // Hard links are read once: no two files have a block in common.
        for segment in ext4.segments(inode)? {
            let (at, end) = (segment.offset as usize, segment.offset + segment.bytes);
            if at < length {
                let end = end.min(length as u64) as usize;
                ext4.read_segment(&segment, 0, &mut bytes[at..end])?;
            }
        }
        line += &format!(" size={} {}", inode.size, Digest::of(&bytes));
    }
    if inode.file_type == FileType::Symlink {
        let target = ext4.symlink(inode)?;
        line += &format!(" -> {:?}", Path::new(OsStr::from_bytes(&target)));
    }
    if let Some((major, minor)) = inode.device {
        line += &format!(" rdev={:x}", rustix::fs::makedev(major, minor));
    }
    let xattrs: BTreeMap<String, Vec<u8>> = ext4
        .xattrs(inode)?
        .into_iter()
        .map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value))
        .collect();
    Ok(line + &format!(" {xattrs:?}"))
}

//! What the crate's own reader sees of an image, in the words in which [`super::scan`] tells what the kernel shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use warren_image::Digest;
use warren_image::erofs::{FileType, Node, Reader};

/// All that an image holds, by path; hard links by the first of their names.
pub fn scan_image(image: &Path) -> BTreeMap<Vec<u8>, String> {
    let reader = Reader::open(std::fs::File::open(image).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    let mut groups: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for entry in reader.walk() {
        let entry = entry.unwrap();
        if entry.node.file_type != FileType::Directory {
            let names = groups.entry(entry.node.nid).or_default();
            names.push(entry.path.clone());
        }
        assert!(
            found
                .insert(entry.path, describe(&reader, &entry.node))
                .is_none()
        );
    }
    super::tell_links(&mut found, groups.into_values());
    found
}

fn describe(reader: &Reader, node: &Node) -> String {
    let mut line = format!(
        "{:o} {}:{} {}.{:09} links={}",
        super::mode(node.file_type, node.permissions),
        node.uid,
        node.gid,
        node.mtime.seconds,
        node.mtime.nanoseconds,
        node.links
    );
    if node.file_type == FileType::Regular {
        let mut bytes = Vec::new();
        let data = reader.data(node).unwrap();
        data.take(super::READ_AT_MOST)
            .read_to_end(&mut bytes)
            .unwrap();
        line += &format!(" size={} {}", node.size, Digest::of(&bytes));
    }
    if node.file_type == FileType::Symlink {
        let target = reader.target(node).unwrap();
        line += &format!(" -> {:?}", Path::new(OsStr::from_bytes(&target)));
    }
    if let Some((major, minor)) = node.device {
        line += &format!(" rdev={:x}", rustix::fs::makedev(major, minor));
    }
    let xattrs: BTreeMap<String, Vec<u8>> = reader
        .xattrs(node)
        .unwrap()
        .into_iter()
        .map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value))
        .collect();
    line + &format!(" {xattrs:?}")
}

/// Says which lines differ.
pub fn assert_same_tree(
    what: &str,
    ours: &BTreeMap<Vec<u8>, String>,
    theirs: &BTreeMap<Vec<u8>, String>,
) {
    let names = ours.keys().chain(theirs.keys());
    let names: std::collections::BTreeSet<_> = names.collect();
    for name in names {
        let shown = String::from_utf8_lossy(name);
        assert_eq!(ours.get(name), theirs.get(name), "{what}: {shown}");
    }
}

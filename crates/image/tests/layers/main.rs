//! Whatever layers say, the image is what a plain model of them is. `WARREN_CASES` and `WARREN_SEED` choose how many
//! stacks of layers, and which.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod model;
mod plan;
mod spelling;
#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::rc::Rc;

use model::{Content, Directory, Meta, Model, Node};
use plan::{LayerPlan, Wrapping};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use support::{gzip, layer};
use warren_image::erofs::{FileType, Reader};
use warren_image::ext4::WriteError;
use warren_image::pipeline::LayerInput;
use warren_image::{Digest, Limits};

/// One of so many images is also given to fsck.erofs.
const CHECKED_BY_FSCK: u32 = 25;
/// One of so many is also made a disk for others.
const EXPORTED: u32 = 4;

fn from_environment(name: &str, default: u32) -> u32 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

#[test]
fn random_layers_give_what_the_model_says() {
    let test = "random_layers_give_what_the_model_says";
    let with_fsck = support::have(test, &["fsck.erofs"]);
    let with_e2fsck = support::have(test, &["e2fsck"]);
    let mut runner = TestRunner::new(Config {
        cases: from_environment("WARREN_CASES", 500),
        rng_seed: RngSeed::Fixed(from_environment("WARREN_SEED", 1).into()),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    });
    let (number, exported) = (Cell::new(0u32), Cell::new(0));
    let result = runner.run(&plan::stack(), |layers| {
        number.set(number.get() + 1);
        let fsck = with_fsck && number.get().is_multiple_of(CHECKED_BY_FSCK);
        let export = with_e2fsck && number.get().is_multiple_of(EXPORTED);
        check(&layers, fsck, export.then_some(&exported)).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => assert!(!with_e2fsck || exported.get() > number.get() / 20),
        Err(TestError::Fail(reason, layers)) => panic!("{reason}\n{}", plan::describe(&layers)),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

fn check(plans: &[LayerPlan], fsck: bool, export: Option<&Cell<u32>>) -> Result<(), String> {
    let mut model = Model::new();
    let mut layers = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        let archive = plan::carry_out(plan, number + 1, &mut model);
        layers.push(LayerInput {
            diff_id: Some(Digest::of(&archive)),
            ..layer(wrap(&archive, plan.wrapping))
        });
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("image");
    let converted = support::convert_layers(layers, &image, &Limits::default())
        .map_err(|error| format!("{error:?}"))?;
    drop(converted);
    compare(&model, File::open(&image).unwrap())?;
    if fsck {
        let checked = Command::new("fsck.erofs").arg(&image).output().unwrap();
        if !checked.status.success() {
            return Err(String::from_utf8_lossy(&checked.stderr).into_owned());
        }
    }
    if let Some(exported) = export {
        let was = exporting(&image, &work.path().join("disk.ext4"))?;
        exported.set(exported.get() + u32::from(was == Exported::Yes));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exported {
    Yes,
    /// Some layers have access control lists that are none, or more attributes than ext4 has room for.
    Refused,
}

/// The file system that is made of the image is what the image is, in the eyes of a check and of a reader.
fn exporting(image: &std::path::Path, disk: &std::path::Path) -> Result<Exported, String> {
    match support::ext4::write(image, disk, None) {
        Ok(_) => {}
        Err(WriteError::File { .. }) => return Ok(Exported::Refused),
        Err(error) => return Err(error.to_string()),
    }
    if let Some(complaints) = support::ext4::complaints(disk) {
        return Err(complaints);
    }
    let mut wanted = support::reading::scan_image(image);
    // The year 3058 is later than the latest that ext4 knows.
    for line in wanted.values_mut() {
        *line = line.replace(" 34359738360.", " 15032385535.");
    }
    let read = File::open(disk).map_err(|error| error.to_string())?;
    let read = support::ext4::scan_disk(read).map_err(|error| error.to_string())?;
    let read = support::ext4::without_lost_and_found(read, &wanted);
    let differing = wanted
        .iter()
        .find(|(name, line)| read.get(*name) != Some(line));
    match differing {
        None if read.len() == wanted.len() => Ok(Exported::Yes),
        None => Err("the file system has more than the image".to_owned()),
        Some((name, line)) => Err(format!("{line}\nis {:?}", read.get(name))),
    }
}

fn wrap(archive: &[u8], wrapping: Wrapping) -> Vec<u8> {
    let (front, back) = archive.split_at(archive.len() / 3);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    match wrapping {
        Wrapping::Plain => archive.to_vec(),
        Wrapping::Gzip => gzip(archive),
        Wrapping::GzipMembers => [gzip(front), gzip(back)].concat(),
        Wrapping::Zstd => zstd(archive),
        Wrapping::ZstdFrames => {
            let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
            [&skipped, zstd(front).as_slice(), &skipped, &zstd(back)].concat()
        }
    }
}

/// Names, metadata, contents, and which names are of one file.
fn compare(model: &Model, image: File) -> Result<(), String> {
    let reader = Reader::open(image).map_err(|error| error.to_string())?;
    let expected = model.walk();
    let mut names: BTreeMap<*const model::Inode, u32> = BTreeMap::new();
    for (_, node) in &expected {
        if let Some(Node::Inode(inode, _)) = node {
            *names.entry(Rc::as_ptr(inode)).or_default() += 1;
        }
    }
    let mut nids: BTreeMap<*const model::Inode, u64> = BTreeMap::new();
    let mut found = reader.walk();
    for (path, node) in &expected {
        let path = path.join(&b'/');
        let at = path.escape_ascii().to_string();
        let wrong = |what: String| format!("{at:?}: {what}");
        let seen = found
            .next()
            .ok_or_else(|| wrong("it is missing at the end".into()))?
            .map_err(|error| wrong(error.to_string()))?;
        if seen.path != path {
            let instead = seen.path.escape_ascii();
            return Err(wrong(format!("{instead:?} is there instead")));
        }
        let seen_meta = Meta {
            permissions: seen.node.permissions,
            uid: seen.node.uid,
            gid: seen.node.gid,
            mtime: (seen.node.mtime.seconds, seen.node.mtime.nanoseconds),
            xattrs: reader
                .xattrs(&seen.node)
                .map_err(|error| wrong(error.to_string()))?
                .into_iter()
                .collect(),
        };
        let (meta, links) = match node {
            None => (&model.root.meta, links_of(&model.root)),
            Some(Node::Directory(directory)) => (&directory.meta, links_of(directory)),
            Some(Node::Inode(inode, _)) => {
                let nid = *nids.entry(Rc::as_ptr(inode)).or_insert(seen.node.nid);
                if nid != seen.node.nid {
                    return Err(wrong("it is another file".into()));
                }
                (&inode.meta, names[&Rc::as_ptr(inode)])
            }
        };
        if seen_meta != *meta || seen.node.links != links {
            return Err(wrong(format!(
                "{seen_meta:?} with {} links instead of {meta:?} with {links}",
                seen.node.links
            )));
        }
        let same = match node {
            None | Some(Node::Directory(_)) => seen.node.file_type == FileType::Directory,
            Some(Node::Inode(inode, _)) => same_content(&reader, &seen.node, &inode.content),
        };
        if !same {
            return Err(wrong("its contents differ".into()));
        }
    }
    let distinct: std::collections::BTreeSet<_> = nids.values().collect();
    if distinct.len() != nids.len() {
        return Err("two files are one".into());
    }
    match found.next() {
        None => Ok(()),
        Some(more) => Err(format!("there is more: {more:?}")),
    }
}

fn links_of(directory: &Directory) -> u32 {
    let below = directory.children.values();
    2 + below
        .filter(|node| matches!(node, Node::Directory(_)))
        .count() as u32
}

fn same_content(reader: &Reader, node: &warren_image::erofs::Node, expected: &Content) -> bool {
    match (node.file_type, expected) {
        (FileType::Regular, Content::File(data)) => {
            let mut bytes = Vec::new();
            let read = reader.data(node).unwrap().read_to_end(&mut bytes);
            read.is_ok() && bytes == **data
        }
        (FileType::Symlink, Content::Symlink(target)) => reader.target(node).unwrap() == *target,
        (FileType::Character, Content::Character(major, minor))
        | (FileType::Block, Content::Block(major, minor)) => node.device == Some((*major, *minor)),
        (FileType::Fifo, Content::Fifo) => true,
        _ => false,
    }
}

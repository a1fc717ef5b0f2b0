//! Random layers: what a generator chooses, and what that comes to on the image there is by then.
//!
//! Choices are numbers into small pools, so that layers meet each other's names often, and so that a failing case
//! gets smaller by leaving out choices. What a choice would make impossible is left out.

use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{Content, Inode, Meta, Model, Name, New, Node};
use crate::spelling::{AttributeRecords, Format, Kind, Lead, Said, Sparse, Spelling, write};

/// What is chosen for one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    pub(crate) hidings: Vec<Hiding>,
    pub(crate) entries: Vec<EntryPlan>,
    /// Where each hiding stands among the entries.
    pub(crate) places: Vec<prop::sample::Index>,
    pub(crate) wrapping: Wrapping,
}

#[derive(Debug, Clone)]
pub(crate) enum Hiding {
    /// Of something that is there, by its number.
    Whiteout(prop::sample::Index),
    /// Of whatever may be at a path.
    WhiteoutAt(Vec<Name>),
    Opaque(prop::sample::Index),
}

#[derive(Debug, Clone)]
pub(crate) struct EntryPlan {
    pub(crate) path: Vec<Name>,
    pub(crate) kind: KindPlan,
    pub(crate) meta: Meta,
    pub(crate) spelling: Spelling,
}

#[derive(Debug, Clone)]
pub(crate) enum KindPlan {
    File {
        size: usize,
        contents: u8,
    },
    Sparse {
        size: usize,
        map: Vec<(usize, usize)>,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(prop::sample::Index),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// How a layer's archive is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wrapping {
    Plain,
    Gzip,
    GzipMembers,
    Zstd,
    ZstdFrames,
}

pub(crate) fn stack() -> impl Strategy<Value = Vec<LayerPlan>> {
    vec(layer(), 1..=4)
}

fn layer() -> impl Strategy<Value = LayerPlan> {
    (
        vec((hiding(), any::<prop::sample::Index>()), 0..5),
        vec(entry(), 0..24),
        select(vec![
            Wrapping::Plain,
            Wrapping::Gzip,
            Wrapping::GzipMembers,
            Wrapping::Zstd,
            Wrapping::ZstdFrames,
        ]),
    )
        .prop_map(|(hidings, entries, wrapping)| {
            let (hidings, places) = hidings.into_iter().unzip();
            LayerPlan {
                hidings,
                entries,
                places,
                wrapping,
            }
        })
}

fn hiding() -> impl Strategy<Value = Hiding> {
    prop_oneof![
        4 => any::<prop::sample::Index>().prop_map(Hiding::Whiteout),
        1 => path().prop_map(Hiding::WhiteoutAt),
        2 => any::<prop::sample::Index>().prop_map(Hiding::Opaque),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let long = |length| "long-".repeat(60).into_bytes()[..length].to_vec();
    prop_oneof![
        12 => select(["a", "b", "c", "d"].map(|name| name.as_bytes().to_vec()).to_vec()),
        1 => select(vec![
            b"!first".to_vec(),
            b".-".to_vec(),
            b"...".to_vec(),
            b"\xff\xfe".to_vec(),
            "ä\n\x1b".as_bytes().to_vec(),
            b" ".to_vec(),
            long(98),
            long(255),
        ]),
    ]
}

fn path() -> impl Strategy<Value = Vec<Name>> {
    vec(name(), 1..=4)
}

fn entry() -> impl Strategy<Value = EntryPlan> {
    let root = (Just(Vec::new()), Just(KindPlan::Directory));
    let other = (path(), kind());
    (
        prop_oneof![1 => root.boxed(), 30 => other.boxed()],
        meta(),
        spelling(),
    )
        .prop_map(|((path, kind), meta, spelling)| EntryPlan {
            path,
            kind,
            meta,
            spelling,
        })
}

fn kind() -> impl Strategy<Value = KindPlan> {
    let sizes = vec![
        0, 1, 511, 512, 1000, 1023, 1024, 3900, 4031, 4032, 4096, 4097, 8192, 9000, 65_535, 65_536,
        66_000, 262_144, 262_145, 300_000,
    ];
    let size = prop_oneof![4 => select(sizes), 2 => 0usize..5000, 1 => 0usize..400_000];
    let device = (
        select(vec![0u32, 1, 8, 259, 4095]),
        select(vec![0u32, 3, 255, 256, 0xf_ffff]),
    );
    prop_oneof![
        8 => (size, 0u8..4).prop_map(|(size, contents)| KindPlan::File { size, contents }),
        2 => sparse(),
        5 => Just(KindPlan::Directory),
        3 => target().prop_map(KindPlan::Symlink),
        3 => any::<prop::sample::Index>().prop_map(KindPlan::HardLink),
        1 => device.clone().prop_map(|(major, minor)| KindPlan::Character(major, minor)),
        1 => device.prop_map(|(major, minor)| KindPlan::Block(major, minor)),
        1 => Just(KindPlan::Fifo),
    ]
}

/// Gaps and stretches in turn.
fn sparse() -> impl Strategy<Value = KindPlan> {
    let step = prop_oneof![3 => 0usize..9000, 1 => select(vec![512, 4096, 8192, 100_000])];
    let most = prop_oneof![4 => Just(6usize), 1 => Just(60)];
    (most, step.clone())
        .prop_flat_map(move |(most, tail)| (vec((step.clone(), step.clone()), 0..most), Just(tail)))
        .prop_map(|(steps, tail)| {
            let mut at = 0;
            let mut map = Vec::new();
            for (gap, length) in steps {
                map.push((at + gap, length));
                at += gap + length;
            }
            KindPlan::Sparse {
                size: at + tail,
                map,
            }
        })
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => name(),
        2 => Just(b"..".to_vec()),
        1 => Just(b".".to_vec()),
        1 => Just(Vec::new()),
    ];
    let plain = (any::<bool>(), vec(part, 1..5)).prop_map(|(absolute, parts)| {
        let lead: &[u8] = if absolute { b"/" } else { b"" };
        let target = [lead, &parts.join(&b'/')].concat();
        if target.is_empty() {
            b".".to_vec()
        } else {
            target
        }
    });
    prop_oneof![20 => plain, 1 => Just(vec![vec![b'x'; 200]; 15].join(&b'/'))]
}

fn meta() -> impl Strategy<Value = Meta> {
    let id = || select(vec![0u32, 1000, 65_534, 65_536, 2_097_152, u32::MAX - 1]);
    let seconds = select(vec![
        0i64,
        1,
        -1,
        -86_400 * 365 * 30,
        1_700_000_000,
        0o77_777_777_777,
        0o77_777_777_777 + 1,
        i64::from(u32::MAX) * 8,
    ]);
    let nanoseconds = prop_oneof![2 => Just(0), 1 => select(vec![1, 999_999_999, 500_000_000])];
    let value = prop_oneof![
        vec(any::<u8>(), 0..20),
        Just(b"same for all".to_vec()),
        (0usize..6000).prop_map(|length| vec![7; length]),
    ];
    let xattr = select(vec![
        "user.a",
        "user.per%20cent \u{e4}",
        "trusted.b",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    ]);
    let xattr = xattr.prop_map(|name| name.as_bytes().to_vec());
    let xattrs = prop_oneof![
        4 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(xattr, value, 1..4),
    ];
    (0u16..=0o7777, id(), id(), (seconds, nanoseconds), xattrs).prop_map(
        |(permissions, uid, gid, mtime, xattrs)| Meta {
            permissions,
            uid,
            gid,
            mtime,
            xattrs,
        },
    )
}

fn spelling() -> impl Strategy<Value = Spelling> {
    (
        select(vec![Format::Pax, Format::PaxAlways, Format::Gnu]),
        select(vec![Lead::Nothing, Lead::Dot, Lead::Slash]),
        select(vec![
            Sparse::OldGnu,
            Sparse::Pax00,
            Sparse::Pax01,
            Sparse::Pax10,
        ]),
        select(vec![
            AttributeRecords::Schily,
            AttributeRecords::Libarchive,
            AttributeRecords::Both,
        ]),
    )
        .prop_map(|(format, lead, sparse, attributes)| Spelling {
            format,
            lead,
            sparse,
            attributes,
        })
}

/// For people: what was chosen, a line each.
pub(crate) fn describe(plans: &[LayerPlan]) -> String {
    let shown = |path: &[Name]| path.join(&b'/').escape_ascii().to_string();
    let mut lines = Vec::new();
    for plan in plans {
        lines.push(format!("layer {:?} {:?}", plan.wrapping, plan.places));
        for hiding in &plan.hidings {
            lines.push(match hiding {
                Hiding::WhiteoutAt(path) => format!("  whiteout at {}", shown(path)),
                Hiding::Whiteout(_) | Hiding::Opaque(_) => format!("  {hiding:?}"),
            });
        }
        for entry in &plan.entries {
            let kind = match &entry.kind {
                KindPlan::Symlink(target) => format!("-> {}", target.escape_ascii()),
                kind => format!("{kind:?}"),
            };
            let (meta, spelling) = (&entry.meta, entry.spelling);
            lines.push(format!(
                "  {} {kind} {meta:?} {spelling:?}",
                shown(&entry.path)
            ));
        }
    }
    lines.join("\n")
}

/// Applies what is possible of a plan to the model, and gives the archive that says the same.
pub(crate) fn carry_out(plan: &LayerPlan, number: usize, model: &mut Model) -> Vec<u8> {
    let below = model.clone();
    let mut hidings = Vec::new();
    for hiding in &plan.hidings {
        if let Some(written) = hide(hiding, &below, model) {
            hidings.push(written);
        }
    }
    // The same entries on an image of which nothing was hidden: where both lead to the same places, hidings may stand
    // anywhere among them, else only in front.
    let mut unhidden = below.clone();
    let mut anywhere = undisturbed(&hidings, &below);
    let mut entries = Vec::new();
    for entry in &plan.entries {
        let Some((new, said)) = prepare(entry, model) else {
            continue;
        };
        let places = [&*model, &unhidden].map(|model| places_of(model, &entry.path, &new));
        let mut after = unhidden.clone();
        if model.put(&entry.path, new.clone(), number).is_err() {
            continue;
        }
        anywhere &= places[0] == places[1] && after.put(&entry.path, new, number).is_ok();
        unhidden = after;
        anywhere &= undisturbed(&hidings, model) && undisturbed(&hidings, &unhidden);
        let mut bytes = Vec::new();
        write(&said.borrowed(), entry.spelling, &mut bytes);
        entries.push(bytes);
    }
    let mut pieces: Vec<Vec<u8>> = entries;
    for (number, hiding) in hidings.into_iter().enumerate() {
        let at = match plan.places.get(number) {
            Some(place) if anywhere => place.index(pieces.len() + 1),
            _ => number.min(pieces.len()),
        };
        pieces.insert(at, hiding.bytes);
    }
    let mut archive = pieces.concat();
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Whether all hidings lead where their names say.
fn undisturbed(hidings: &[Written], model: &Model) -> bool {
    hidings
        .iter()
        .all(|hiding| model.canonical(&hiding.parents).as_ref() == Ok(&hiding.parents))
}

/// Links lead to paths that no archive can name.
fn too_long(path: &[Name]) -> bool {
    path.iter().map(|name| name.len() + 1).sum::<usize>() > 3700
}

struct Written {
    parents: Vec<Name>,
    bytes: Vec<u8>,
}

fn hide(hiding: &Hiding, below: &Model, model: &mut Model) -> Option<Written> {
    let everything = below.walk();
    let (parents, name) = match hiding {
        Hiding::Whiteout(index) => {
            let named = everything.get(1..).filter(|named| !named.is_empty())?;
            let (name, parents) = index.get(named).0.split_last()?;
            (parents.to_vec(), Some(name.clone()))
        }
        Hiding::WhiteoutAt(path) => {
            let (name, parents) = path.split_last()?;
            (parents.to_vec(), Some(name.clone()))
        }
        Hiding::Opaque(index) => {
            let directories: Vec<_> = everything
                .iter()
                .filter(|(_, node)| matches!(node, None | Some(Node::Directory(_))))
                .collect();
            (index.get(&directories).0.clone(), None)
        }
    };
    // The longest names have no room for the marker in front of them.
    if too_long(&parents) || name.as_ref().is_some_and(|name| name.len() > 251) {
        return None;
    }
    let marker = match &name {
        Some(name) => {
            model.whiteout(&parents, name).ok()?;
            [b".wh.", name.as_slice()].concat()
        }
        None => {
            model.opaque(&parents).ok()?;
            b".wh..wh..opq".to_vec()
        }
    };
    let mut path = parents.clone();
    path.push(marker);
    let said = Said {
        path: path.join(&b'/'),
        kind: Kind::File(b""),
        permissions: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    };
    let spelling = Spelling {
        format: Format::Pax,
        lead: Lead::Nothing,
        sparse: Sparse::Pax10,
        attributes: AttributeRecords::Schily,
    };
    let mut bytes = Vec::new();
    write(&said, spelling, &mut bytes);
    Some(Written { parents, bytes })
}

/// Where an entry comes to lie, and for a hard link the file that it is another name of.
fn places_of(model: &Model, path: &[Name], new: &New) -> (Option<Vec<Name>>, Option<usize>) {
    let above = path.split_last().map_or(path, |(_, above)| above);
    let linked = match new {
        New::HardLink(target) => target.split_last().and_then(|(last, above)| {
            let mut place = model.canonical(above).ok()?;
            place.push(last.clone());
            match model.get(&place)? {
                Node::Inode(inode, _) => Some(Rc::as_ptr(inode) as usize),
                Node::Directory(_) => None,
            }
        }),
        New::Directory(_) | New::Inode(_) => None,
    };
    (model.canonical(above).ok(), linked)
}

/// An entry as it will be written, with all that it borrows from.
struct OwnedSaid {
    path: Vec<u8>,
    meta: Meta,
    kind: OwnedKind,
}

enum OwnedKind {
    Content(Rc<Inode>),
    Sparse(Rc<Inode>, Vec<(usize, usize)>),
    HardLink(Vec<u8>),
    Directory,
}

impl OwnedSaid {
    fn borrowed(&self) -> Said<'_> {
        let kind = match &self.kind {
            OwnedKind::Directory => Kind::Directory,
            OwnedKind::HardLink(target) => Kind::HardLink(target.clone()),
            OwnedKind::Sparse(inode, map) => match &inode.content {
                Content::File(data) => Kind::Sparse(data, map.clone()),
                other => unreachable!("{other:?} is not sparse"),
            },
            OwnedKind::Content(inode) => match &inode.content {
                Content::File(data) => Kind::File(data),
                Content::Symlink(target) => Kind::Symlink(target),
                Content::Character(major, minor) => Kind::Character(*major, *minor),
                Content::Block(major, minor) => Kind::Block(*major, *minor),
                Content::Fifo => Kind::Fifo,
            },
        };
        Said {
            path: self.path.clone(),
            kind,
            permissions: self.meta.permissions,
            uid: self.meta.uid,
            gid: self.meta.gid,
            mtime: self.meta.mtime,
            xattrs: self
                .meta
                .xattrs
                .iter()
                .map(|(name, value)| (name.as_slice(), value.as_slice()))
                .collect(),
        }
    }
}

fn prepare(plan: &EntryPlan, model: &Model) -> Option<(New, OwnedSaid)> {
    let mut meta = plan.meta.clone();
    // The root's attributes must fit the first block.
    if plan.path.is_empty() {
        meta.xattrs.retain(|_, value| value.len() < 100);
    }
    let inode = |content| {
        Rc::new(Inode {
            meta: meta.clone(),
            content,
        })
    };
    let content = match &plan.kind {
        KindPlan::File { size, contents } => Content::File(Rc::new(bytes(*size, *contents))),
        KindPlan::Sparse { size, map } => {
            let mut data = vec![0; *size];
            for (number, (at, length)) in map.iter().enumerate() {
                let piece = bytes(*length, number as u8);
                data[*at..at + length].copy_from_slice(&piece);
            }
            Content::File(Rc::new(data))
        }
        KindPlan::Symlink(target) => Content::Symlink(target.clone()),
        KindPlan::Character(major, minor) => Content::Character(*major, *minor),
        KindPlan::Block(major, minor) => Content::Block(*major, *minor),
        KindPlan::Fifo => Content::Fifo,
        KindPlan::Directory => {
            let said = said(plan, meta.clone(), OwnedKind::Directory);
            return Some((New::Directory(meta), said));
        }
        KindPlan::HardLink(index) => {
            let everything = model.walk();
            let files: Vec<_> = everything
                .iter()
                .filter(|(_, node)| matches!(node, Some(Node::Inode(..))))
                .collect();
            if files.is_empty() {
                return None;
            }
            let target = index.get(&files).0.clone();
            if too_long(&target) {
                return None;
            }
            let kind = OwnedKind::HardLink(target.join(&b'/'));
            return Some((New::HardLink(target), said(plan, Meta::implied(), kind)));
        }
    };
    let inode = inode(content);
    let kind = match &plan.kind {
        KindPlan::Sparse { map, .. } => OwnedKind::Sparse(Rc::clone(&inode), map.clone()),
        _ => OwnedKind::Content(Rc::clone(&inode)),
    };
    Some((New::Inode(inode), said(plan, meta, kind)))
}

fn said(plan: &EntryPlan, meta: Meta, kind: OwnedKind) -> OwnedSaid {
    let path = match plan.path.is_empty() {
        true => b".".to_vec(),
        false => plan.path.join(&b'/'),
    };
    OwnedSaid { path, meta, kind }
}

/// Few contents, so that files are copies of each other often; one of them is all zeros.
fn bytes(size: usize, contents: u8) -> Vec<u8> {
    match contents {
        0 => vec![0; size],
        contents => (0..size)
            .map(|at| (at.wrapping_mul(usize::from(contents) * 2 + 1) >> 3) as u8)
            .collect(),
    }
}

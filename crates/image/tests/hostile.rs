//! Layers made to do harm: each is refused with a type of its own, or harmless.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]
#![expect(
    clippy::duplicate_mod,
    reason = "the list is included elsewhere too, without `support`"
)]

#[path = "support/hostile.rs"]
mod list;
mod support;

use std::io::Read;
use std::process::Command;

use support::{Archive, Mount, convert_archives, convert_layers, gzip, have, layer, run, scan};
use warren_core::PortError;
use warren_core::ports::Images as _;
use warren_core::ports::images::LoadRequest;
use warren_image::merge::MergeError;
use warren_image::pipeline::{ConvertError, LayerInput};
use warren_image::{Digest, ImageStore, LimitExceeded, Limits, Options};
use warren_tar::TarError;

fn refused(archives: Vec<Vec<u8>>) -> ConvertError {
    let work = tempfile::tempdir().unwrap();
    convert_archives(archives, &work.path().join("out")).unwrap_err()
}

fn refused_with(archives: Vec<Vec<u8>>, limits: &Limits) -> ConvertError {
    let work = tempfile::tempdir().unwrap();
    let layers = archives.into_iter().map(layer).collect();
    convert_layers(layers, &work.path().join("out"), limits).unwrap_err()
}

macro_rules! assert_refused {
    ($error:expr, $pattern:pat) => {
        let error = $error;
        assert!(matches!(error, $pattern), "{error:?}");
    };
}

/// The tree of archives that are accepted, through the kernel.
fn tree(test: &str, archives: Vec<Vec<u8>>) -> Option<Vec<String>> {
    if !have(test, &["fsck.erofs"]) {
        return None;
    }
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    convert_archives(archives, &out).unwrap();
    run(Command::new("fsck.erofs").arg(&out));
    let mount = Mount::new(test, &out, work.path().join("mount"))?;
    Some(
        scan(&mount.0)
            .keys()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect(),
    )
}

#[test]
fn dot_dot_is_refused() {
    for name in [
        &b"../evil"[..],
        b"a/../../evil",
        b"..",
        b"a/..",
        b"/../evil",
    ] {
        let archive = Archive::new().file(name, b"x").end();
        assert_refused!(
            refused(vec![archive]),
            ConvertError::Layer {
                source: MergeError::HostileName(_),
                ..
            }
        );
    }
}

#[test]
fn absolute_names_stay_inside() {
    let archive = Archive::new()
        .file(b"/etc/passwd", b"x")
        .file(b"//./etc//shadow", b"y")
        .end();
    if let Some(found) = tree("absolute_names_stay_inside", vec![archive]) {
        assert_eq!(found, ["", "etc", "etc/passwd", "etc/shadow"]);
    }
}

#[test]
fn a_file_through_a_symlink_stays_inside() {
    let archive = Archive::new()
        .symlink(b"out", b"/../../../../tmp/warren-escape")
        .file(b"out/file", b"x")
        .end();
    if let Some(found) = tree("a_file_through_a_symlink_stays_inside", vec![archive]) {
        assert_eq!(
            found,
            [
                "",
                "out",
                "tmp",
                "tmp/warren-escape",
                "tmp/warren-escape/file"
            ]
        );
    }
    assert!(!std::path::Path::new("/tmp/warren-escape").exists());
}

#[test]
fn symlink_loops_end() {
    let archive = Archive::new()
        .symlink(b"a", b"b")
        .symlink(b"b", b"a")
        .file(b"a/f", b"")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::SymlinkLoop(_),
            ..
        }
    );
}

#[test]
fn a_hard_link_out_is_refused() {
    let archive = Archive::new().hard_link(b"a", b"../../../etc/passwd").end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::HostileName(_),
            ..
        }
    );
    let archive = Archive::new().hard_link(b"a", b"/etc/passwd").end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::HardLink { .. },
            ..
        }
    );
    let archive = Archive::new().directory(b"d/").hard_link(b"a", b"d").end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::HardLink { .. },
            ..
        }
    );
}

#[test]
fn whiteouts_that_escape_are_refused() {
    for name in [&b".wh..."[..], b".wh..", b".wh.", b"a/.wh..."] {
        let archive = Archive::new().file(name, b"").end();
        assert_refused!(
            refused(vec![archive]),
            ConvertError::Layer {
                source: MergeError::HostileName(_),
                ..
            }
        );
    }
}

#[test]
fn a_whiteout_hides_only_layers_below() {
    let lower = Archive::new()
        .file(b"d/old", b"")
        .file(b"d/both", b"")
        .file(b"x", b"")
        .end();
    let upper = Archive::new()
        .file(b"d/new", b"")
        .file(b"d/.wh..wh..opq", b"")
        .file(b"d/later", b"")
        .file(b"x", b"again")
        .file(b".wh.x", b"")
        .file(b".wh.not-there", b"")
        .file(b"nowhere/.wh.x", b"")
        .end();
    if let Some(found) = tree("a_whiteout_hides_only_layers_below", vec![lower, upper]) {
        assert_eq!(found, ["", "d", "d/later", "d/new", "x"]);
    }
}

#[test]
fn devices_with_impossible_numbers_are_refused() {
    let mut block = [0u8; 512];
    block[..3].copy_from_slice(b"dev");
    block[156] = b'4';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..336].copy_from_slice(b"7777777");
    let archive = Archive::new().raw(block).end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Erofs(_),
            ..
        }
    );
}

#[test]
fn a_terabyte_of_hole_takes_no_room() {
    let size = 1u64 << 40;
    let block = list::terabyte_of_hole();
    let archive = Archive::new().raw(block).data(b"!").end();
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    let converted = convert_archives(vec![archive.clone()], &out).unwrap();
    assert!(converted.merged.image.size < 64 << 20, "{converted:?}");
    use std::os::unix::fs::MetadataExt;
    assert!(out.metadata().unwrap().blocks() * 512 < 4 << 20);
    let limits = Limits {
        file_bytes: size - 1,
        ..Limits::default()
    };
    assert_refused!(
        refused_with(vec![archive], &limits),
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::FileBytes(_)),
            ..
        }
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in [
        "0,10,5,10",
        "100,1",
        "0,99999999999999999999",
        "1,2,3",
        "0,1",
        "9223372036854775807,9223372036854775807",
    ] {
        let archive = Archive::new()
            .pax(&[
                ("GNU.sparse.size", b"50"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file(b"f", &[1; 20])
            .end();
        assert_refused!(
            refused(vec![archive]),
            ConvertError::Layer {
                source: MergeError::Tar(TarError::SparseMap),
                ..
            }
        );
    }
}

/// An endless archive of empty files, made while it is read.
struct Endless {
    next: u64,
    block: Vec<u8>,
    at: usize,
}

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() {
            let name = format!("d{}/f{}", self.next % 1000, self.next);
            self.block = Archive::new().file(name.as_bytes(), b"").0;
            (self.next, self.at) = (self.next + 1, 0);
        }
        let count = into.len().min(self.block.len() - self.at);
        into[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn endless() -> LayerInput {
    LayerInput {
        digest: None,
        size: None,
        diff_id: None,
        open: Box::new(|_| {
            Ok(Box::new(Endless {
                next: 0,
                block: Vec::new(),
                at: 0,
            }))
        }),
    }
}

#[test]
fn a_million_entries_end_at_the_limit_with_little_memory() {
    let work = tempfile::tempdir().unwrap();
    let limits = Limits {
        entries: 1_000_000,
        ..Limits::default()
    };
    let error = convert_layers(vec![endless()], &work.path().join("a"), &limits).unwrap_err();
    assert_refused!(
        error,
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::Entries(1_000_000)),
            ..
        }
    );
    let limits = Limits {
        tree_memory: 1 << 20,
        ..Limits::default()
    };
    let error = convert_layers(vec![endless()], &work.path().join("b"), &limits).unwrap_err();
    assert_refused!(
        error,
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::TreeMemory(_)),
            ..
        }
    );
    assert!(peak_memory() < 256 << 20, "peak memory {}", peak_memory());
}

#[test]
fn a_bomb_is_refused_early() {
    let zeros = vec![0u8; 64 << 20];
    let bomb = gzip(&Archive::new().file(b"bomb", &zeros).end());
    assert!(zeros.len() / bomb.len() > 200);
    let limits = Limits {
        ratio_from: 1 << 20,
        ..Limits::default()
    };
    assert_refused!(
        refused_with(vec![bomb.clone()], &limits),
        ConvertError::Limit(LimitExceeded::Ratio(200))
    );
    let limits = Limits {
        unpacked_bytes: 32 << 20,
        ..Limits::default()
    };
    assert_refused!(
        refused_with(vec![bomb.clone()], &limits),
        ConvertError::Limit(LimitExceeded::UnpackedBytes(_))
    );
    let limits = Limits {
        image_bytes: 1 << 20,
        ..Limits::default()
    };
    assert_refused!(
        refused_with(vec![bomb], &limits),
        ConvertError::Layer {
            source: MergeError::Erofs(_),
            ..
        }
    );
}

/// Loads an archive into a store of its own; gives the refusal, and checks that nothing is left.
async fn refused_by_store(archive: &[u8], limits: Limits) -> PortError {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("archive");
    std::fs::write(&path, archive).unwrap();
    let data = work.path().join("data");
    let options = Options {
        limits,
        ..Options::default()
    };
    let store = ImageStore::open(&data, options).unwrap();
    let request = LoadRequest {
        path,
        name: Some("localhost/hostile:1".into()),
        ..LoadRequest::default()
    };
    let error = store.load(request, support::quiet()).await.unwrap_err();
    assert_eq!(files_below(&data), 0, "something is left");
    error
}

#[tokio::test]
async fn an_archive_that_is_not_what_it_says_is_refused_with_a_next_step() {
    use list::{StoredLayer, oci_archive};
    let good = || list::hostile("whiteout_through_symlink").layers;
    let described = |describe: fn(&mut StoredLayer)| {
        let mut layers = good();
        describe(&mut layers[0]);
        oci_archive(&layers)
    };
    let whole = oci_archive(&good());
    let layer = &good()[0].bytes;
    let mut windows = whole.windows(layer.len());
    let at = windows.position(|window| window == layer).unwrap() + layer.len() / 2;
    let mut flipped = whole.clone();
    flipped[at] ^= 1;
    let wrong = [
        ("another digest", flipped),
        ("shorter", described(|layer| layer.size += 1)),
        ("longer", described(|layer| layer.size -= 1)),
        (
            "another diff-id",
            described(|layer| layer.diff_id = Digest::of(b"other").to_string()),
        ),
        ("truncated", whole[..at].to_vec()),
        ("no archive", b"#!/bin/sh\n".repeat(100)),
    ];
    for (what, archive) in wrong {
        let error = refused_by_store(&archive, Limits::default()).await;
        assert!(error.hint.is_some(), "{what}: {error:?}");
        assert!(
            ["image_damaged", "image_malformed", "not_an_image"].contains(&error.code),
            "{what}: {error:?}"
        );
    }
}

fn files_below(directory: &std::path::Path) -> usize {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| match path.is_dir() {
            true => files_below(&path),
            false => 1,
        })
        .sum()
}

/// Every image of the list, through the store, as an archive of an OCI layout. A running server is given the same ones.
mod through_the_store {
    use super::list::{Ends, for_each_hostile, hostile, limits, oci_archive};
    use super::*;

    async fn run(name: &str) {
        let image = hostile(name);
        let archive = oci_archive(&image.layers);
        match image.ends {
            Ends::Refused(code, words) => {
                let error = refused_by_store(&archive, limits()).await;
                assert_eq!(error.code, code, "{error}");
                assert!(error.to_string().contains(words), "{error}");
            }
            Ends::Harmless(names) => {
                let work = tempfile::tempdir().unwrap();
                let path = work.path().join("archive");
                std::fs::write(&path, archive).unwrap();
                let store =
                    ImageStore::open(&work.path().join("data"), Options::default()).unwrap();
                let request = LoadRequest {
                    path,
                    name: Some("localhost/hostile:1".into()),
                    ..LoadRequest::default()
                };
                let records = store.load(request, support::quiet()).await.unwrap();
                let disk = store.disk(&records[0].digest).await.unwrap();
                let found = support::reading::scan_image(&disk);
                let found: Vec<_> = found
                    .keys()
                    .map(|name| String::from_utf8_lossy(name))
                    .collect();
                assert_eq!(found, names);
            }
        }
        assert!(!std::path::Path::new("/tmp/warren-escape").exists());
    }

    macro_rules! each {
        ($($name:ident),* $(,)?) => {
            $(#[tokio::test]
            async fn $name() {
                run(stringify!($name)).await;
            })*
        };
    }
    for_each_hostile!(each);
}

#[tokio::test]
async fn a_bomb_that_looks_like_an_image_archive_is_not_laid_out_on_disk() {
    let zeros = vec![0u8; 64 << 20];
    let bomb = gzip(
        &Archive::new()
            .file(b"manifest.json", b"[]")
            .file(b"blobs/zeros", &zeros)
            .end(),
    );
    let limits = Limits {
        ratio_from: 1 << 20,
        ..Limits::default()
    };
    let error = refused_by_store(&bomb, limits).await;
    assert_eq!(error.code, "image_limit_exceeded", "{error}");
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let error = refused_by_store(&bomb, limits).await;
    assert_eq!(error.code, "image_limit_exceeded", "{error}");
}

#[tokio::test]
async fn a_tarball_that_goes_wrong_later_is_told_what_is_wrong_with_it() {
    let archive = Archive::new()
        .file(b"fine", b"x")
        .pax(&[("size", b"99999999999999999999999")])
        .file(b"f", b"")
        .end();
    for stored in [gzip(&archive), archive] {
        let error = refused_by_store(&stored, Limits::default()).await;
        assert_eq!(error.code, "image_malformed", "{error}");
    }
    let noise: Vec<u8> = (0..100_000u32)
        .map(|n| (n.wrapping_mul(n) / 7) as u8)
        .collect();
    let error = refused_by_store(&noise, Limits::default()).await;
    assert_eq!(error.code, "not_an_image", "{error}");
}

#[test]
fn pax_overflows_are_refused() {
    for (key, value) in [
        ("size", &b"99999999999999999999999"[..]),
        ("size", b"-1"),
        ("size", b"9223372036854775808"),
        ("uid", b"x"),
        ("mtime", b"1e9"),
        ("path", b"a\0b"),
        ("LIBARCHIVE.xattr.user.a", b"!!!"),
    ] {
        let archive = Archive::new().pax(&[(key, value)]).file(b"f", b"").end();
        assert_refused!(
            refused(vec![archive]),
            ConvertError::Layer {
                source: MergeError::Tar(TarError::Pax(_)),
                ..
            }
        );
    }
    let archive = Archive::new()
        .pax(&[("uid", b"4294967296")])
        .file(b"f", b"")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Tar(TarError::Field("uid")),
            ..
        }
    );
    // A header that says it is a terabyte is not waited for.
    let archive = Archive::new().header(b"x", b'x', b"", 1 << 40).end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Tar(TarError::HeaderTooLarge { .. }),
            ..
        }
    );
    let archive = Archive::new().header(b"f", b'0', b"", 1 << 40).end();
    assert_refused!(refused(vec![archive]), ConvertError::Layer { .. });
}

#[test]
fn long_names_depth_and_xattrs_are_limited() {
    let name = "n".repeat(256);
    let archive = Archive::new()
        .pax(&[("path", name.as_bytes())])
        .file(b"f", b"")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::NameBytes),
            ..
        }
    );
    let name = "d/".repeat(600);
    let archive = Archive::new()
        .pax(&[("path", name.as_bytes())])
        .directory(b"f")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::Depth(_)),
            ..
        }
    );
    let name = "name/".repeat(1000);
    let archive = Archive::new()
        .pax(&[("path", name.as_bytes())])
        .directory(b"f")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::PathBytes(_)),
            ..
        }
    );
    let value = vec![b'v'; 65_000];
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.user.a", &value),
            ("SCHILY.xattr.user.b", &value),
        ])
        .file(b"f", b"")
        .end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::Limit(LimitExceeded::XattrBytes(_)),
            ..
        }
    );
}

#[test]
fn entries_below_files_are_refused_within_a_layer_and_replace_across() {
    let archive = Archive::new().file(b"f", b"").file(b"f/g", b"").end();
    assert_refused!(
        refused(vec![archive]),
        ConvertError::Layer {
            source: MergeError::NotADirectory(_),
            ..
        }
    );
    let (lower, upper) = (
        Archive::new().file(b"f", b"").end(),
        Archive::new().file(b"f/g", b"").end(),
    );
    if let Some(found) = tree(
        "entries_below_files_are_refused_within_a_layer_and_replace_across",
        vec![lower, upper],
    ) {
        assert_eq!(found, ["", "f", "f/g"]);
    }
}

#[test]
fn wrong_digests_sizes_and_diff_ids_are_refused() {
    let plain = Archive::new().file(b"f", b"data").end();
    let stored = gzip(&plain);
    let other = Digest::of(b"other");
    let check = |digest: Option<Digest>, size: Option<u64>, diff_id: Option<Digest>| {
        let work = tempfile::tempdir().unwrap();
        let input = LayerInput {
            digest,
            size,
            diff_id,
            ..layer(stored.clone())
        };
        convert_layers(vec![input], &work.path().join("out"), &Limits::default()).map(|_| ())
    };
    let length = stored.len() as u64;
    assert!(
        check(
            Some(Digest::of(&stored)),
            Some(length),
            Some(Digest::of(&plain))
        )
        .is_ok()
    );
    assert_refused!(
        check(Some(other.clone()), None, None).unwrap_err(),
        ConvertError::Digest { layer: 0, .. }
    );
    assert_refused!(
        check(None, None, Some(other)).unwrap_err(),
        ConvertError::DiffId { layer: 0, .. }
    );
    for size in [length - 1, length + 1] {
        assert_refused!(
            check(None, Some(size), None).unwrap_err(),
            ConvertError::Size { layer: 0, .. }
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let plain = Archive::new().file(b"f", &[3; 5000]).file(b"g", b"x").end();
    let stored = gzip(&plain);
    for cut in (1..stored.len()).step_by(7) {
        let error = refused(vec![stored[..cut].to_vec()]);
        assert!(
            matches!(
                error,
                ConvertError::Decompress { .. } | ConvertError::Layer { .. }
            ),
            "{cut}: {error:?}"
        );
    }
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for cut in (4..zstd.len()).step_by(7) {
        assert_refused!(
            refused(vec![zstd[..cut].to_vec()]),
            ConvertError::Decompress { .. }
        );
    }
    // Uncompressed, only the digest can tell an end between two entries from the real one.
    for cut in [100, 512 + 100, 512 + 5000] {
        assert_refused!(
            refused(vec![plain[..cut].to_vec()]),
            ConvertError::Layer { .. }
        );
    }
}

#[test]
fn cancelling_stops_at_once() {
    let work = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(work.path().join("out")).unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let watch = |_, _| cancel.cancel();
    let limits = Limits {
        entries: u64::MAX,
        ..Limits::default()
    };
    let started = std::time::Instant::now();
    let result =
        warren_image::pipeline::convert(vec![endless()], file, None, &limits, &cancel, &watch);
    assert_refused!(result.unwrap_err(), ConvertError::Cancelled);
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn the_time_limit_ends_an_endless_layer() {
    let limits = Limits {
        time: std::time::Duration::from_millis(50),
        ..Limits::default()
    };
    let work = tempfile::tempdir().unwrap();
    let error = convert_layers(vec![endless()], &work.path().join("out"), &limits).unwrap_err();
    assert_refused!(error, ConvertError::Limit(LimitExceeded::Time(_)));
}

/// `VmHWM` of this process: the most memory it ever had.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

//! Images made to do harm, each under a name of its own. They are given to the library and to a running server; both
//! must end as it is said here.
#![expect(
    dead_code,
    unreachable_pub,
    reason = "each of its users has its own part of it"
)]

#[path = "archive.rs"]
mod archive;

use std::io::Write;
use std::time::Duration;

use archive::{Archive, gzip};
use warren_image::{Digest, Limits};

/// A layer, as it is stored.
pub struct StoredLayer {
    pub bytes: Vec<u8>,
    pub diff_id: String,
    /// What its manifest says of its size.
    pub size: usize,
}

impl StoredLayer {
    fn new(bytes: Vec<u8>, diff_id: &Digest) -> Self {
        StoredLayer {
            size: bytes.len(),
            diff_id: diff_id.to_string(),
            bytes,
        }
    }
}

/// How an attempt has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// With this code, and these words in the sentence.
    Refused(&'static str, &'static str),
    /// With an image of these names.
    Harmless(&'static [&'static str]),
}

pub struct Hostile {
    pub layers: Vec<StoredLayer>,
    pub ends: Ends,
}

/// Makes a test of each name: `each!(dot_dot)` and so on.
macro_rules! for_each_hostile {
    ($each:ident) => {
        $each!(
            dot_dot_in_front,
            dot_dot_inside,
            absolute_name,
            file_through_symlink,
            file_through_two_symlinks,
            directory_over_symlink,
            symlink_loop,
            hard_link_out,
            hard_link_to_the_hosts_file,
            hard_link_through_symlink,
            hard_link_to_directory,
            devices,
            device_out_of_range,
            terabyte_of_hole,
            terabyte_promised,
            million_entries,
            thousandfold_bomb,
            bomb_in_a_bomb_of_layers,
            pax_overflow,
            pax_length_overflow,
            pax_header_of_a_terabyte,
            whiteout_of_dot_dot,
            whiteout_of_nothing,
            whiteout_through_symlink,
            name_too_long,
            path_too_deep,
            too_many_attributes,
            sparse_map_that_lies,
            entry_below_own_file,
            root_that_is_a_file,
        );
    };
}
pub(crate) use for_each_hostile;

/// Small enough for a test to meet all of them.
pub fn limits() -> Limits {
    Limits {
        unpacked_bytes: 512 << 20,
        file_bytes: 1 << 30,
        entries: 300_000,
        depth: 64,
        time: Duration::from_secs(60),
        ..Limits::default()
    }
}

/// The same, as a configuration file says it.
pub const CONFIGURATION: &str = r#"
[image_limits]
total_size = "512MiB"
file_size = "1GiB"
entries = 300000
depth = 64
time = "1m"
stall = "1s"
"#;

fn plain(layers: Vec<Vec<u8>>, ends: Ends) -> Hostile {
    let layers = layers.into_iter().map(|bytes| {
        let diff_id = Digest::of(&bytes);
        StoredLayer::new(bytes, &diff_id)
    });
    Hostile {
        layers: layers.collect(),
        ends,
    }
}

/// Made while it is compressed, because it is large.
fn zstd(ends: Ends, write: impl FnOnce(&mut dyn Write)) -> Hostile {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    write(&mut encoder);
    // Nobody comes as far as its diff-id.
    let layer = StoredLayer::new(encoder.finish().unwrap(), &Digest::of(b""));
    Hostile {
        layers: vec![layer],
        ends,
    }
}

const HOSTILE: Ends = Ends::Refused("image_hostile", "not allowed");
const MALFORMED: Ends = Ends::Refused("image_malformed", "");
const LIMIT: &str = "image_limit_exceeded";

/// The image of that name.
pub fn hostile(name: &str) -> Hostile {
    let archive = Archive::new();
    match name {
        "dot_dot_in_front" => plain(vec![archive.file(b"../evil", b"x").end()], HOSTILE),
        "dot_dot_inside" => plain(vec![archive.file(b"a/../../evil", b"x").end()], HOSTILE),
        "absolute_name" => plain(
            vec![archive.file(b"/etc/passwd", b"x").end()],
            Ends::Harmless(&["", "etc", "etc/passwd"]),
        ),
        "file_through_symlink" => plain(
            vec![
                archive
                    .symlink(b"out", b"/../../../../tmp/warren-escape")
                    .file(b"out/file", b"x")
                    .end(),
            ],
            Ends::Harmless(&[
                "",
                "out",
                "tmp",
                "tmp/warren-escape",
                "tmp/warren-escape/file",
            ]),
        ),
        "file_through_two_symlinks" => plain(
            vec![
                archive.clone().symlink(b"a", b"..").end(),
                archive
                    .symlink(b"b", b"a/../../tmp")
                    .file(b"b/warren-escape", b"x")
                    .end(),
            ],
            Ends::Harmless(&["", "a", "b", "tmp", "tmp/warren-escape"]),
        ),
        "directory_over_symlink" => plain(
            vec![
                archive.clone().symlink(b"tmp", b"/tmp").end(),
                archive
                    .directory(b"tmp/")
                    .file(b"tmp/warren-escape", b"x")
                    .end(),
            ],
            Ends::Harmless(&["", "tmp", "tmp/warren-escape"]),
        ),
        "symlink_loop" => plain(
            vec![
                archive
                    .symlink(b"a", b"b")
                    .symlink(b"b", b"a")
                    .file(b"a/f", b"")
                    .end(),
            ],
            Ends::Refused("image_malformed", "too many symbolic links"),
        ),
        "hard_link_out" => plain(
            vec![archive.hard_link(b"a", b"../../../etc/passwd").end()],
            HOSTILE,
        ),
        "hard_link_to_the_hosts_file" => plain(
            vec![archive.hard_link(b"a", b"/etc/passwd").end()],
            Ends::Refused("image_malformed", "not a file of the image"),
        ),
        "hard_link_through_symlink" => plain(
            vec![
                archive
                    .symlink(b"l", b"/etc")
                    .hard_link(b"a", b"l/passwd")
                    .end(),
            ],
            Ends::Refused("image_malformed", "not a file of the image"),
        ),
        "hard_link_to_directory" => plain(
            vec![archive.directory(b"d/").hard_link(b"a", b"d").end()],
            Ends::Refused("image_malformed", "not a file of the image"),
        ),
        "devices" => plain(
            vec![
                archive
                    .raw(device(b"disk", b'4', b"0000003", b"0000000"))
                    .raw(device(b"memory", b'3', b"0000001", b"0000001"))
                    .header(b"pipe", b'6', b"", 0)
                    .end(),
            ],
            Ends::Harmless(&["", "disk", "memory", "pipe"]),
        ),
        "device_out_of_range" => plain(
            vec![
                archive
                    .raw(device(b"dev", b'4', b"7777777", b"0000000"))
                    .end(),
            ],
            Ends::Refused("image_malformed", "out of range"),
        ),
        "terabyte_of_hole" => plain(
            vec![archive.raw(terabyte_of_hole()).data(b"!").end()],
            Ends::Refused(LIMIT, "a file is larger"),
        ),
        "terabyte_promised" => plain(
            vec![archive.header(b"f", b'0', b"", 1 << 40).end()],
            Ends::Refused(LIMIT, "a file is larger"),
        ),
        "million_entries" => zstd(Ends::Refused(LIMIT, "entries"), |out| {
            let header = Archive::new().file(b"0000000", b"").0;
            for number in 0..1_000_000u32 {
                let mut block = header.clone();
                block[..7].copy_from_slice(format!("{number:07}").as_bytes());
                // The sum changes with the digits.
                let digits = |at: usize| u32::from(block[at] - b'0');
                let sum: u32 = (0..7).map(digits).sum();
                let old = std::str::from_utf8(&header[148..154]).unwrap();
                let old = u32::from_str_radix(old, 8).unwrap();
                block[148..154].copy_from_slice(format!("{:06o}", old + sum).as_bytes());
                out.write_all(&block).unwrap();
            }
        }),
        "thousandfold_bomb" => zstd(Ends::Refused(LIMIT, "unpack to more than"), |out| {
            let size = 4u64 << 30;
            out.write_all(&Archive::new().header(b"bomb", b'0', b"", 800 << 20).0)
                .unwrap();
            let zeros = vec![0; 1 << 20];
            for _ in 0..(size >> 20).min(600) {
                out.write_all(&zeros).unwrap();
            }
        }),
        "bomb_in_a_bomb_of_layers" => {
            let zeros = vec![0; 60 << 20];
            let layer = gzip(&archive.file(b"bomb", &zeros).end());
            let diff_id = Digest::of(&Archive::new().file(b"bomb", &zeros).end());
            let layers = (0..9).map(|_| StoredLayer::new(layer.clone(), &diff_id));
            Hostile {
                layers: layers.collect(),
                ends: Ends::Refused(LIMIT, "unpack to more than"),
            }
        }
        "pax_overflow" => plain(
            vec![
                archive
                    .pax(&[("size", b"99999999999999999999999")])
                    .file(b"f", b"")
                    .end(),
            ],
            Ends::Refused("image_malformed", "PAX record size"),
        ),
        "pax_length_overflow" => {
            let record = b"18446744073709551617 path=x\n";
            plain(
                vec![
                    archive
                        .header(b"x", b'x', b"", record.len() as u64)
                        .data(record)
                        .file(b"f", b"")
                        .end(),
                ],
                Ends::Refused("image_malformed", "PAX record"),
            )
        }
        "pax_header_of_a_terabyte" => plain(
            vec![archive.header(b"x", b'x', b"", 1 << 40).end()],
            Ends::Refused("image_malformed", "headers are larger"),
        ),
        "whiteout_of_dot_dot" => plain(vec![archive.file(b"a/.wh...", b"").end()], HOSTILE),
        "whiteout_of_nothing" => plain(vec![archive.file(b"a/.wh.", b"").end()], HOSTILE),
        "whiteout_through_symlink" => plain(
            vec![
                archive
                    .clone()
                    .symlink(b"out", b"/../..")
                    .file(b"etc/kept", b"x")
                    .file(b"etc/passwd", b"x")
                    .end(),
                archive.file(b"out/etc/.wh.passwd", b"").end(),
            ],
            Ends::Harmless(&["", "etc", "etc/kept", "out"]),
        ),
        "name_too_long" => plain(
            vec![
                archive
                    .pax(&[("path", "n".repeat(256).as_bytes())])
                    .file(b"f", b"")
                    .end(),
            ],
            Ends::Refused(LIMIT, "255 bytes"),
        ),
        "path_too_deep" => plain(
            vec![
                archive
                    .pax(&[("path", "d/".repeat(65).as_bytes())])
                    .directory(b"f")
                    .end(),
            ],
            Ends::Refused(LIMIT, "components"),
        ),
        "too_many_attributes" => {
            let value = vec![b'v'; 65_000];
            let records: [(&str, &[u8]); 2] = [
                ("SCHILY.xattr.user.a", &value),
                ("SCHILY.xattr.user.b", &value),
            ];
            plain(
                vec![archive.pax(&records).file(b"f", b"").end()],
                Ends::Refused(LIMIT, "extended attributes"),
            )
        }
        "sparse_map_that_lies" => plain(
            vec![
                archive
                    .pax(&[
                        ("GNU.sparse.size", b"50"),
                        ("GNU.sparse.numblocks", b"2"),
                        (
                            "GNU.sparse.map",
                            b"9223372036854775807,9223372036854775807,5,10",
                        ),
                    ])
                    .file(b"f", &[1; 20])
                    .end(),
            ],
            Ends::Refused("image_malformed", "sparse"),
        ),
        "entry_below_own_file" => plain(
            vec![archive.file(b"f", b"").file(b"f/g", b"").end()],
            Ends::Refused("image_malformed", "not a directory"),
        ),
        "root_that_is_a_file" => plain(vec![archive.file(b".", b"x").end()], MALFORMED),
        other => unreachable!("there is no hostile image {other}"),
    }
}

fn device(name: &[u8], kind: u8, major: &[u8; 7], minor: &[u8; 7]) -> [u8; 512] {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..336].copy_from_slice(major);
    block[337..344].copy_from_slice(minor);
    block
}

/// Old GNU sparse: a file of 1 TiB with one byte at its end.
pub fn terabyte_of_hole() -> [u8; 512] {
    let size = 1u64 << 40;
    let mut block = [0u8; 512];
    block[..6].copy_from_slice(b"sparse");
    block[124..135].copy_from_slice(b"00000000001");
    block[156] = b'S';
    block[257..265].copy_from_slice(b"ustar  \0");
    let number = |value: u64| {
        let mut field = [0u8; 12];
        field[4..].copy_from_slice(&value.to_be_bytes());
        field[0] = 0x80;
        field
    };
    block[386..398].copy_from_slice(&number(size - 1));
    block[398..410].copy_from_slice(&number(1));
    block[483..495].copy_from_slice(&number(size));
    block
}

/// The manifest of an image of these layers and its configuration, as an OCI layout or a registry has them.
pub fn documents(layers: &[StoredLayer]) -> (Vec<u8>, Vec<u8>) {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&layer.bytes).to_string(), "size": layer.size,
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).to_string(), "size": config.len() },
        "layers": descriptors,
    })
    .to_string()
    .into_bytes();
    (manifest, config)
}

/// An OCI archive of an image.
pub fn oci_archive(layers: &[StoredLayer]) -> Vec<u8> {
    let (manifest, config) = documents(layers);
    let digest = Digest::of(&manifest);
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest.to_string(), "size": manifest.len(),
    }] })
    .to_string();
    let mut archive = Archive::new()
        .file(b"oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file(b"index.json", index.as_bytes());
    let stored = layers.iter().map(|layer| &layer.bytes);
    for blob in stored.chain([&manifest, &config]) {
        let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
        archive = archive.file(name.as_bytes(), blob);
    }
    archive.end()
}

//! The few headers that this crate's own archives need: files and directories of root from 1970, long names and sizes as PAX
//! records, and a sparse file in GNU's PAX form 1.0, which GNU tar, bsdtar and Go's `archive/tar` read.
//!
//! Sources: POSIX.1-2017 `pax`; GNU tar manual, "PAX Format, Version 1.0".

use crate::erofs::Segment;

/// Of everything.
pub(crate) const BLOCK: u64 = 512;
/// Two empty blocks end an archive.
pub(crate) const END: usize = 2 * BLOCK as usize;
/// Numbers in a header that are longer than eleven octal digits stand in a record of their own.
const LARGEST_IN_HEADER: u64 = 0o77_777_777_777;
/// Longer names too.
const LONGEST_IN_HEADER: usize = 100;

/// Zeros behind so many bytes, up to a whole block.
pub(crate) fn padding(size: u64) -> Vec<u8> {
    vec![0; (size.next_multiple_of(BLOCK) - size) as usize]
}

/// What goes before a directory's name is closed: it has nothing else.
pub(crate) fn directory(name: &str) -> Vec<u8> {
    header(name, b'5', 0, 0o755)
}

/// What goes before the bytes of a file, which are to be padded.
pub(crate) fn file(name: &str, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if name.len() > LONGEST_IN_HEADER {
        records.extend(record("path", name));
    }
    described(name, size, records)
}

/// What goes before the bytes of the segments of a sparse file of `size` bytes. They are whole blocks.
pub(crate) fn sparse_file(name: &str, size: u64, segments: &[Segment]) -> Vec<u8> {
    let mut records = Vec::new();
    for (key, value) in [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", name),
        ("GNU.sparse.realsize", &size.to_string()),
    ] {
        records.extend(record(key, value));
    }
    let stored: u64 = segments.iter().map(|segment| segment.length).sum();
    // The last, which is empty, says where the file ends.
    let end = Segment {
        offset: size,
        length: 0,
    };
    let mut map = format!("{}\n", segments.len() + 1);
    for segment in segments.iter().chain([&end]) {
        map += &format!("{}\n{}\n", segment.offset, segment.length);
    }
    let mut map = map.into_bytes();
    map.extend(padding(map.len() as u64));
    let mut bytes = described(
        &format!("GNUSparseFile.0/{name}"),
        map.len() as u64 + stored,
        records,
    );
    bytes.extend(map);
    bytes
}

fn described(name: &str, size: u64, mut records: Vec<u8>) -> Vec<u8> {
    if size > LARGEST_IN_HEADER {
        records.extend(record("size", &size.to_string()));
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let length = records.len() as u64;
        bytes.extend(header("PaxHeaders/records", b'x', length, 0o644));
        bytes.extend(records);
        bytes.extend(padding(length));
    }
    bytes.extend(header(name, b'0', size, 0o644));
    bytes
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    format!("{length} {key}={value}\n").into_bytes()
}

/// A ustar header of 1970, owned by root. Longer names are cut, their records are what counts.
fn header(name: &str, kind: u8, size: u64, mode: u32) -> Vec<u8> {
    let mut block = vec![0u8; BLOCK as usize];
    let name = &name.as_bytes()[..name.len().min(LONGEST_IN_HEADER)];
    block[..name.len()].copy_from_slice(name);
    let mut octal =
        |at: usize, text: String| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    octal(100, format!("{mode:07o}"));
    octal(108, format!("{:07o}", 0));
    octal(116, format!("{:07o}", 0));
    octal(124, format!("{:011o}", size.min(LARGEST_IN_HEADER)));
    octal(136, format!("{:011o}", 0));
    octal(257, "ustar\u{0}00".to_owned());
    octal(148, " ".repeat(8));
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

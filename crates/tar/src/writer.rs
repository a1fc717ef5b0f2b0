//! Writing: ustar headers, with PAX records in front of them for what does not fit.
//!
//! What goes in decides alone about the bytes that come out: no time of now, no name of anybody. Sources: POSIX.1-2017
//! `pax`; GNU tar manual, "Storing Sparse Files", form 1.0, which Go's `archive/tar` reads too. The `SCHILY.xattr.` records are
//! what docker, containerd and umoci write.

use std::io::{self, Write};

use crate::header::BLOCK;
use crate::{Entry, EntryKind, Segment, Timestamp};

/// Zeros at the end of an archive.
pub const END: usize = 2 * BLOCK;
/// The largest number in a field of twelve bytes, and in one of eight.
const LARGEST: u64 = 0o77_777_777_777;
const LARGEST_ID: u64 = 0o7_777_777;
/// The longest name in a header.
const NAME: usize = 100;

/// Writes an archive to `W`. It is itself where the data of the current entry goes.
pub struct Writer<W> {
    to: W,
    /// Bytes of data that the current entry still has to get, and the padding behind them.
    left: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(to: W) -> Self {
        Writer {
            to,
            left: 0,
            padding: 0,
        }
    }

    /// Begins an entry. A file's data has to be written next: all of it, or that of its segments one after the other.
    ///
    /// # Errors
    /// What is below; those of [`header`]; `InvalidInput` when the last entry did not get its data.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_entry()?;
        self.to.write_all(&header(entry)?)?;
        self.left = entry.kind.stored();
        self.padding = padding(self.left) as u64;
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As [`Writer::entry`].
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.to.write_all(&[0; END])?;
        Ok(self.to)
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an entry of the archive did not get its data",
            ));
        }
        self.to.write_all(&[0; BLOCK][..self.padding as usize])?;
        self.padding = 0;
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    /// Takes no more than the entry has room for.
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = self.to.write(&data[..data.len().min(room)])?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// All that is in front of an entry's data: PAX records where they are needed, the header, a sparse file's map.
///
/// # Errors
/// `InvalidInput` for what no archive can hold: an attribute with `=` in its name.
pub fn header(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut records = Records::default();
    let mut header = tar::Header::new_ustar();
    let name = &entry.path;
    let (kind, link) = type_and_link(&entry.kind);
    let map = map(&entry.kind);
    match (&map, &entry.kind) {
        (Some(_), EntryKind::File { size, .. }) => {
            records.add(b"GNU.sparse.major", b"1")?;
            records.add(b"GNU.sparse.minor", b"0")?;
            records.add(b"GNU.sparse.name", name)?;
            records.add(b"GNU.sparse.realsize", size.to_string().as_bytes())?;
        }
        _ if name.len() > NAME => records.add(b"path", name)?,
        _ => {}
    }
    let map = map.unwrap_or_default();
    let stored = entry.kind.stored() + map.len() as u64;
    if link.len() > NAME {
        records.add(b"linkpath", link)?;
    }
    let old = header.as_old_mut();
    let shown = &name[..name.len().min(NAME)];
    old.name[..shown.len()].copy_from_slice(shown);
    let shown = &link[..link.len().min(NAME)];
    old.linkname[..shown.len()].copy_from_slice(shown);
    header.set_entry_type(kind);
    header.set_mode(u32::from(entry.mode));
    for (id, key, set) in [
        (entry.uid, b"uid", tar::Header::set_uid as fn(&mut _, u64)),
        (entry.gid, b"gid", tar::Header::set_gid),
    ] {
        if id > LARGEST_ID {
            records.add(key, id.to_string().as_bytes())?;
        }
        set(&mut header, if id > LARGEST_ID { 0 } else { id });
    }
    if stored > LARGEST {
        records.add(b"size", stored.to_string().as_bytes())?;
    }
    header.set_size(stored);
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
    if entry.mtime.nanoseconds != 0 || entry.mtime.seconds < 0 || seconds > LARGEST {
        records.add(b"mtime", time(entry.mtime).as_bytes())?;
    }
    header.set_mtime(if seconds > LARGEST { 0 } else { seconds });
    if let EntryKind::Character(major, minor) | EntryKind::Block(major, minor) = entry.kind {
        // What star writes and libarchive reads; Linux has no such numbers.
        let mut field = |number: u32, key| match u64::from(number) > LARGEST_ID {
            true => records.add(key, number.to_string().as_bytes()).map(|()| 0),
            false => Ok(number),
        };
        header.set_device_major(field(major, b"SCHILY.devmajor")?)?;
        header.set_device_minor(field(minor, b"SCHILY.devminor")?)?;
    }
    for (name, value) in &entry.xattrs {
        records.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value)?;
    }
    header.set_cksum();
    let mut bytes = records.into_header();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&map);
    Ok(bytes)
}

/// How many zeros there are behind so many bytes of data.
#[must_use]
pub fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

fn type_and_link(kind: &EntryKind) -> (tar::EntryType, &[u8]) {
    match kind {
        EntryKind::File { .. } => (tar::EntryType::Regular, b""),
        EntryKind::HardLink(target) => (tar::EntryType::Link, target),
        EntryKind::Symlink(target) => (tar::EntryType::Symlink, target),
        EntryKind::Character(..) => (tar::EntryType::Char, b""),
        EntryKind::Block(..) => (tar::EntryType::Block, b""),
        EntryKind::Directory => (tar::EntryType::Directory, b""),
        EntryKind::Fifo => (tar::EntryType::Fifo, b""),
    }
}

/// Of a sparse file the number of pieces, then where each begins and its length; an empty piece says where a hole at the
/// end ends.
fn map(kind: &EntryKind) -> Option<Vec<u8>> {
    let EntryKind::File {
        size,
        segments: Some(segments),
    } = kind
    else {
        return None;
    };
    let end = segments.last().map_or(0, |last| last.offset + last.length);
    let hole = (end < *size).then_some(Segment {
        offset: *size,
        length: 0,
    });
    let mut text = format!("{}\n", segments.len() + usize::from(hole.is_some()));
    for segment in segments.iter().copied().chain(hole) {
        text += &format!("{}\n{}\n", segment.offset, segment.length);
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    Some(map)
}

/// `[-]seconds[.fraction]`.
fn time(time: Timestamp) -> String {
    let fraction = |nanoseconds: u32| {
        let digits = format!("{nanoseconds:09}");
        match digits.trim_end_matches('0') {
            "" => String::new(),
            digits => format!(".{digits}"),
        }
    };
    match (time.seconds, time.nanoseconds) {
        (seconds, nanoseconds) if seconds >= 0 || nanoseconds == 0 => {
            format!("{seconds}{}", fraction(nanoseconds))
        }
        // Counted backwards from the second above.
        (seconds, nanoseconds) => {
            let whole = (seconds + 1).unsigned_abs();
            format!("-{whole}{}", fraction(1_000_000_000 - nanoseconds))
        }
    }
}

/// PAX records for the next entry.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn add(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.contains(&b'=') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an attribute with `=` in its name cannot be in an archive",
            ));
        }
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length = length.to_string().len() + rest;
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
        Ok(())
    }

    /// The records with a header of their own; nothing where there are none.
    fn into_header(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut header = tar::Header::new_ustar();
        let name = b"PaxHeaders/entry";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(self.0.len() as u64);
        header.set_cksum();
        let padded = self.0.len().next_multiple_of(BLOCK);
        self.0.resize(padded, 0);
        let mut bytes = header.as_bytes().to_vec();
        bytes.append(&mut self.0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;
    use crate::{Reader, TarError};

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let name = || prop::collection::vec(1u8.., 1..300);
        let big = || prop_oneof![Just(0u32), 0..300u32, any::<u32>()];
        prop_oneof![
            (0..5000u64).prop_map(|size| EntryKind::File {
                size,
                segments: None
            }),
            prop::collection::vec((1..5000u64, 1..5000u64), 0..30).prop_map(|gaps| {
                let mut at = 0;
                let mut segments = Vec::new();
                for (gap, length) in gaps {
                    let offset = at + gap;
                    segments.push(Segment { offset, length });
                    at = offset + length;
                }
                // Sometimes a hole at the end.
                EntryKind::File {
                    size: at + at % 3,
                    segments: Some(segments),
                }
            }),
            name().prop_map(EntryKind::HardLink),
            name().prop_map(EntryKind::Symlink),
            (big(), big()).prop_map(|(major, minor)| EntryKind::Character(major, minor)),
            (big(), big()).prop_map(|(major, minor)| EntryKind::Block(major, minor)),
            Just(()).prop_map(|()| EntryKind::Directory),
            Just(()).prop_map(|()| EntryKind::Fifo),
        ]
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let ids = || prop_oneof![0..3000u64, Just(u64::from(u32::MAX))];
        let xattrs = prop::collection::btree_map(
            "user\\.[a-z]{1,20}",
            prop::collection::vec(any::<u8>(), 0..200),
            0..4,
        );
        let time = (-70_000_000_000i64..70_000_000_000, 0..1_000_000_000u32);
        let path = prop::collection::vec(1u8.., 1..300);
        (path, kinds(), 0..0o10000u16, ids(), ids(), time, xattrs).prop_map(
            |(path, kind, mode, uid, gid, (seconds, nanoseconds), xattrs)| Entry {
                path,
                kind,
                mode,
                uid,
                gid,
                mtime: Timestamp {
                    seconds,
                    nanoseconds,
                },
                xattrs: xattrs
                    .into_iter()
                    .map(|(name, value)| (name.into_bytes(), value))
                    .collect(),
            },
        )
    }

    fn data_of(kind: &EntryKind) -> Vec<u8> {
        (0..kind.stored()).map(|at| (at % 251) as u8).collect()
    }

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for entry in entries {
            writer.entry(entry).unwrap();
            writer.write_all(&data_of(&entry.kind)).unwrap();
        }
        writer.finish().unwrap()
    }

    /// Reads everything; answers whether it is a whole archive.
    fn read_through(archive: &[u8]) -> Result<bool, TarError> {
        let mut reader = Reader::new(archive, 1 << 20);
        while reader.next_entry()?.is_some() {
            io::copy(&mut reader, &mut io::sink())?;
        }
        Ok(reader.is_whole())
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(entries in prop::collection::vec(entries(), 0..6)) {
            let archive = archive(&entries);
            prop_assert_eq!(archive.len() % BLOCK, 0);
            let mut reader = Reader::new(archive.as_slice(), 1 << 20);
            for entry in &entries {
                let mut read = reader.next_entry().unwrap().unwrap();
                if let EntryKind::File { size, segments: Some(segments) } = &mut read.kind {
                    segments.retain(|segment| segment.length > 0 || segment.offset != *size);
                }
                prop_assert_eq!(&read, entry);
                let mut data = Vec::new();
                reader.read_to_end(&mut data).unwrap();
                prop_assert_eq!(data, data_of(&entry.kind));
            }
            prop_assert!(!reader.is_whole());
            prop_assert!(reader.next_entry().unwrap().is_none());
            prop_assert!(reader.is_whole());
        }

        #[test]
        fn a_cut_archive_is_never_whole(entries in prop::collection::vec(entries(), 1..4), cut in 0.0..1.0f64) {
            let archive = archive(&entries);
            // The last block of the end mark is not missed.
            let cut = (cut * (archive.len() - END) as f64) as usize;
            prop_assert!(!matches!(read_through(&archive[..cut]), Ok(true)));
        }

        #[test]
        fn noise_is_never_followed(
            entries in prop::collection::vec(entries(), 1..3),
            flips in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..8),
        ) {
            let mut archive = archive(&entries);
            for (at, value) in flips {
                let at = (at * archive.len() as f64) as usize;
                archive[at] = value;
            }
            let _ = read_through(&archive);
        }
    }

    #[test]
    fn an_entry_that_did_not_get_its_data_is_noticed() {
        let mut writer = Writer::new(Vec::new());
        let kind = EntryKind::File {
            size: 3,
            segments: None,
        };
        let entry = Entry::plain("a", kind);
        writer.entry(&entry).unwrap();
        writer.write_all(b"ab").unwrap();
        assert!(writer.finish().is_err());
    }

    #[test]
    fn what_no_archive_can_hold_is_refused() {
        let mut entry = Entry::plain("a", EntryKind::Fifo);
        entry.xattrs = vec![(b"user.a=b".to_vec(), Vec::new())];
        assert!(header(&entry).is_err());
    }

    #[test]
    fn fields_of_headers_that_lie_are_refused() {
        let segments = None;
        let file = Entry::plain("x", EntryKind::File { size: 0, segments });
        let archive = archive(&[file]);
        let with = |at: usize, field: &[u8]| {
            let mut archive = archive.clone();
            archive[at..at + field.len()].copy_from_slice(field);
            archive[148..156].fill(b' ');
            let sum: u64 = archive[..BLOCK].iter().map(|byte| u64::from(*byte)).sum();
            archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            read_through(&archive)
        };
        assert!(with(0, b"P").unwrap());
        // More than there is: the largest of eleven octal digits, and of 63 bits.
        let binary = [
            0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        for size in [b"77777777777\0".as_slice(), &binary] {
            let ended = with(124, size);
            assert!(!matches!(ended, Ok(true)), "{size:?}: {ended:?}");
            // Of a directory it means nothing (as in Go's `archive/tar`).
            let mut directory = size.to_vec();
            directory.resize(32, b' ');
            directory.push(b'5');
            assert!(with(124, &directory).unwrap());
            // Of a header that describes the next one it is kept, and therefore bounded.
            directory[32] = b'x';
            let ended = with(124, &directory);
            assert!(
                matches!(ended, Err(TarError::HeaderTooLarge { .. })),
                "{ended:?}"
            );
        }
        for size in [[0xbf; 12].as_slice(), &[0xff; 12], b"9"] {
            let ended = with(124, size);
            assert!(matches!(ended, Err(TarError::Field("size"))), "{ended:?}");
        }
        assert!(matches!(with(156, b"?"), Err(TarError::Type('?'))));
        let mut broken = archive.clone();
        broken[0] ^= 1;
        assert!(matches!(read_through(&broken), Err(TarError::Checksum)));
    }
}

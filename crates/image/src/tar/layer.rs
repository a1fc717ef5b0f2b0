//! Writing layers: ustar headers, with PAX records in front of them for what does not fit.
//!
//! What goes in decides alone about the bytes that come out: no time of now, no name of anybody. Sources: POSIX.1-2017
//! `pax`; GNU tar manual, "Storing Sparse Files", form 1.0, which Go's `archive/tar` reads too. The `SCHILY.xattr.` records are
//! what docker, containerd and umoci write.

use std::io::{self, Write};

use super::header::BLOCK;
use super::{Entry, EntryKind};
use crate::erofs::{Segment, Timestamp};

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
    /// What is below; `InvalidInput` for a name that no archive can hold, or when the last entry did not get its data.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_entry()?;
        let mut records = Records::default();
        let mut header = tar::Header::new_ustar();
        let name = &entry.path;
        let (kind, link, map, stored) = parts(&entry.kind);
        match &map {
            None if name.len() > NAME => records.add(b"path", name)?,
            None => {}
            Some(_) => {
                records.add(b"GNU.sparse.major", b"1")?;
                records.add(b"GNU.sparse.minor", b"0")?;
                records.add(b"GNU.sparse.name", name)?;
                if let EntryKind::File { size, .. } = &entry.kind {
                    records.add(b"GNU.sparse.realsize", size.to_string().as_bytes())?;
                }
            }
        }
        let map = map.unwrap_or_default();
        let stored = stored + map.len() as u64;
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
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        for (name, value) in &entry.xattrs {
            records.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value)?;
        }
        header.set_cksum();
        records.write(&mut self.to)?;
        self.to.write_all(header.as_bytes())?;
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.write_all(&map)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As [`Writer::entry`].
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.to.write_all(&[0; 2 * BLOCK])?;
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

type Parts<'a> = (tar::EntryType, &'a [u8], Option<Vec<u8>>, u64);

/// The type, what is linked to, the map of a sparse file, and how many bytes of data follow that.
fn parts(kind: &EntryKind) -> Parts<'_> {
    let plain = |kind| (kind, b"".as_slice(), None, 0);
    match kind {
        EntryKind::File {
            size,
            segments: None,
        } => (tar::EntryType::Regular, b"", None, *size),
        EntryKind::File {
            size,
            segments: Some(segments),
        } => {
            let data = segments.iter().map(|segment| segment.length).sum();
            (
                tar::EntryType::Regular,
                b"",
                Some(map(segments, *size)),
                data,
            )
        }
        EntryKind::HardLink(target) => (tar::EntryType::Link, target, None, 0),
        EntryKind::Symlink(target) => (tar::EntryType::Symlink, target, None, 0),
        EntryKind::Character(..) => plain(tar::EntryType::Char),
        EntryKind::Block(..) => plain(tar::EntryType::Block),
        EntryKind::Directory => plain(tar::EntryType::Directory),
        EntryKind::Fifo => plain(tar::EntryType::Fifo),
    }
}

/// The number of pieces, then where each begins and its length; an empty piece says where a hole at the end ends.
fn map(segments: &[Segment], size: u64) -> Vec<u8> {
    let end = segments.last().map_or(0, |last| last.offset + last.length);
    let hole = (end < size).then_some(Segment {
        offset: size,
        length: 0,
    });
    let mut text = format!("{}\n", segments.len() + usize::from(hole.is_some()));
    for segment in segments.iter().copied().chain(hole) {
        text += &format!("{}\n{}\n", segment.offset, segment.length);
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
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

    fn write(mut self, to: &mut impl Write) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
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
        to.write_all(header.as_bytes())?;
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        to.write_all(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;
    use crate::tar::Reader;

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let name = || prop::collection::vec(1u8.., 1..300);
        let big = || prop_oneof![Just(0u32), 0..300u32, Just(0xf_ffff)];
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
        let length = match kind {
            EntryKind::File {
                segments: Some(segments),
                ..
            } => segments.iter().map(|segment| segment.length).sum(),
            EntryKind::File { size, .. } => *size,
            _ => 0,
        };
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(entries in prop::collection::vec(entries(), 0..6)) {
            let mut writer = Writer::new(Vec::new());
            for entry in &entries {
                writer.entry(entry).unwrap();
                writer.write_all(&data_of(&entry.kind)).unwrap();
            }
            let archive = writer.finish().unwrap();
            let mut reader = Reader::new(archive.as_slice(), 1 << 20);
            for entry in &entries {
                let mut read = reader.next_entry().unwrap().unwrap();
                if let EntryKind::File { size, segments: Some(segments) } = &mut read.kind {
                    segments.retain(|segment| segment.length > 0 || segment.offset != *size);
                }
                prop_assert_eq!(format!("{read:?}"), format!("{entry:?}"));
                let mut data = Vec::new();
                reader.read_to_end(&mut data).unwrap();
                prop_assert_eq!(data, data_of(&entry.kind));
            }
            prop_assert!(reader.next_entry().unwrap().is_none());
        }
    }

    #[test]
    fn an_entry_that_did_not_get_its_data_is_noticed() {
        let mut writer = Writer::new(Vec::new());
        let entry = Entry {
            path: b"a".to_vec(),
            kind: EntryKind::File {
                size: 3,
                segments: None,
            },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp {
                seconds: 0,
                nanoseconds: 0,
            },
            xattrs: Vec::new(),
        };
        writer.entry(&entry).unwrap();
        writer.write_all(b"ab").unwrap();
        assert!(writer.finish().is_err());
    }
}

//! Writes pax streams.

use std::io::Write;

use super::{ArchiveError, BLOCK, DeviceClass, Entry, Kind, pax, sparse};

/// Writes entries and their content.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    out: W,
    /// Content of the last entry that is still to come.
    left: u64,
    padding: usize,
}

/// Largest value of an octal field of so many bytes, one of which is its end.
const fn octal_limit(bytes: u32) -> u64 {
    8u64.pow(bytes - 1) - 1
}

impl<W: Write> ArchiveWriter<W> {
    /// An archive with nothing in it.
    pub fn new(out: W) -> Self {
        ArchiveWriter {
            out,
            left: 0,
            padding: 0,
        }
    }

    /// Begins an entry; its content follows, as long as [`Kind::stored`] says.
    ///
    /// # Errors
    /// The stream's; a path or a target that no archive can hold.
    ///
    /// # Panics
    /// When content of the last entry is missing.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        assert_eq!(self.left, 0, "an entry has all of its content");
        self.pad()?;
        let mut header = [0; BLOCK];
        let mut records = Vec::new();
        let mut map = Vec::new();
        let mut stored = entry.kind.stored();
        let mut path = entry.path.as_slice();
        if let Kind::File {
            size,
            extents: Some(extents),
        } = &entry.kind
        {
            map = sparse::map_text(extents);
            pax::push(&mut records, b"GNU.sparse.major", b"1");
            pax::push(&mut records, b"GNU.sparse.minor", b"0");
            pax::push(&mut records, b"GNU.sparse.name", path);
            let size = size.to_string();
            pax::push(&mut records, b"GNU.sparse.realsize", size.as_bytes());
            stored += map.len() as u64;
            // What a reader sees that knows nothing of all this.
            path = b"GNUSparseFile.0/sparse";
        }
        match path.len() {
            0..=100 => header[..path.len()].copy_from_slice(path),
            _ => pax::push(&mut records, b"path", path),
        }
        let (kind, target) = match &entry.kind {
            Kind::File { .. } => (b'0', None),
            Kind::HardLink { target } => (b'1', Some(target)),
            Kind::Symlink { target } => (b'2', Some(target)),
            Kind::Device { class, .. } => match class {
                DeviceClass::Character => (b'3', None),
                DeviceClass::Block => (b'4', None),
            },
            Kind::Directory => (b'5', None),
            Kind::Fifo => (b'6', None),
        };
        header[156] = kind;
        if let Some(target) = target {
            match target.len() {
                0..=100 => header[157..157 + target.len()].copy_from_slice(target),
                _ => pax::push(&mut records, b"linkpath", target),
            }
        }
        octal(&mut header[100..108], u64::from(entry.mode & 0o7777));
        for (at, key, id) in [(108, "uid", entry.uid), (116, "gid", entry.gid)] {
            if u64::from(id) > octal_limit(8) {
                pax::push(&mut records, key.as_bytes(), id.to_string().as_bytes());
            } else {
                octal(&mut header[at..at + 8], u64::from(id));
            }
        }
        if stored > octal_limit(12) {
            pax::push(&mut records, b"size", stored.to_string().as_bytes());
            octal(&mut header[124..136], 0);
        } else {
            octal(&mut header[124..136], stored);
        }
        let seconds = u64::try_from(entry.modified.seconds).unwrap_or(0);
        octal(&mut header[136..148], seconds.min(octal_limit(12)));
        if entry.modified.nanos != 0
            || u64::try_from(entry.modified.seconds).map_or(true, |it| it > octal_limit(12))
        {
            let time = pax::time_text(entry.modified);
            pax::push(&mut records, b"mtime", time.as_bytes());
        }
        if let Kind::Device { major, minor, .. } = entry.kind {
            if u64::from(major.max(minor)) > octal_limit(8) {
                return Err(ArchiveError::TooLong("device number"));
            }
            octal(&mut header[329..337], u64::from(major));
            octal(&mut header[337..345], u64::from(minor));
        }
        for (name, value) in &entry.attributes {
            let key = [b"SCHILY.xattr.", name.as_slice()].concat();
            pax::push(&mut records, &key, value);
        }
        if !records.is_empty() {
            self.extended(&records)?;
        }
        seal(&mut header);
        self.out.write_all(&header)?;
        self.out.write_all(&map)?;
        self.left = entry.kind.stored();
        let used = usize::try_from(stored % BLOCK as u64).unwrap_or(0);
        self.padding = (BLOCK - used) % BLOCK;
        Ok(())
    }

    fn extended(&mut self, records: &[u8]) -> Result<(), ArchiveError> {
        let mut header = [0; BLOCK];
        header[..9].copy_from_slice(b"PaxHeader");
        header[156] = b'x';
        octal(&mut header[100..108], 0o644);
        octal(&mut header[124..136], records.len() as u64);
        seal(&mut header);
        self.out.write_all(&header)?;
        self.out.write_all(records)?;
        let padding = records.len().next_multiple_of(BLOCK) - records.len();
        self.out.write_all(&[0; BLOCK][..padding])?;
        Ok(())
    }

    /// Content of the entry that was begun last.
    ///
    /// # Errors
    /// The stream's; more than the entry has.
    pub fn content(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        self.left = self
            .left
            .checked_sub(data.len() as u64)
            .ok_or(ArchiveError::Malformed("an entry's length"))?;
        self.out.write_all(data)?;
        Ok(())
    }

    fn pad(&mut self) -> Result<(), ArchiveError> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK][..padding])?;
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// The stream's.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.pad()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Octal digits with zeros before them and a NUL behind.
fn octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    field[digits] = 0;
}

fn seal(header: &mut [u8; BLOCK]) {
    for at in [108, 116] {
        if header[at] == 0 {
            octal(&mut header[at..at + 8], 0);
        }
    }
    if header[136] == 0 {
        octal(&mut header[136..148], 0);
    }
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
}

//! Reads tar streams.

use std::io::{ErrorKind, Read};

use super::{
    ArchiveError, BLOCK, DeviceClass, EXTENTS, Entry, Extent, Kind, Modified, PATH_LIMIT,
    PAX_LIMIT, pax, sparse,
};

/// Reads entries and their content.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    input: R,
    /// Content of the last entry that was not read yet.
    left: u64,
    /// What fills it up to whole blocks.
    padding: u64,
}

/// What headers before an entry's own say of it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Modified>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_format: Option<Vec<u8>>,
    sparse_path: Option<Vec<u8>>,
    sparse_size: Option<u64>,
}

impl<R: Read> ArchiveReader<R> {
    /// The archive that comes from `input`.
    pub fn new(input: R) -> Self {
        ArchiveReader {
            input,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; what was not read of the last one is skipped. `None` at the archive's end mark.
    ///
    /// # Errors
    /// See [`ArchiveError`]; an archive without its end mark is truncated.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let header = self.block()?;
            if header == [0; BLOCK] {
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' => {
                    let data = self.text(size, PAX_LIMIT, "extended header")?;
                    extended.take(&data)?;
                }
                // Meant for all that follow; nothing that is written today says anything in it but a comment.
                b'g' => drop(self.text(size, PAX_LIMIT, "extended header")?),
                b'L' => extended.path = Some(self.long(size)?),
                b'K' => extended.target = Some(self.long(size)?),
                kind => return self.entry(kind, &header, size, extended).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        kind: u8,
        header: &[u8; BLOCK],
        size: u64,
        extended: Extended,
    ) -> Result<Entry, ArchiveError> {
        let stored = extended.size.unwrap_or(size);
        let target = || {
            let short = || until_nul(&header[157..257]).to_vec();
            checked(extended.target.clone().unwrap_or_else(short))
        };
        let path = match (&extended.sparse_path, &extended.path) {
            (Some(path), _) | (None, Some(path)) => path.clone(),
            (None, None) => short_path(header),
        };
        let path = checked(path)?;
        let is_directory = path.ends_with(b"/");
        let kind = match kind {
            0 | b'0' | b'7' if is_directory => Kind::Directory,
            0 | b'0' | b'7' => {
                self.expect(stored);
                self.file(stored, &extended)?
            }
            b'S' => {
                let (size, extents) = self.old_sparse(header)?;
                sparse::check(&extents, size, stored)?;
                self.expect(stored);
                Kind::File {
                    size,
                    extents: Some(extents),
                }
            }
            b'1' => Kind::HardLink { target: target()? },
            b'2' => Kind::Symlink { target: target()? },
            device @ (b'3' | b'4') => Kind::Device {
                class: match device {
                    b'3' => DeviceClass::Character,
                    _ => DeviceClass::Block,
                },
                major: small(&header[329..337])?,
                minor: small(&header[337..345])?,
            },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(ArchiveError::Malformed("an entry of an unknown kind")),
        };
        if !matches!(kind, Kind::File { .. }) {
            // Nothing belongs there; what is there is skipped.
            self.expect(stored);
        }
        let seconds = i64::try_from(number(&header[136..148])?).unwrap_or(i64::MAX);
        Ok(Entry {
            path,
            kind,
            mode: small(&header[100..108])? & 0o7777,
            uid: extended.uid.map_or_else(|| small(&header[108..116]), Ok)?,
            gid: extended.gid.map_or_else(|| small(&header[116..124]), Ok)?,
            modified: extended.modified.unwrap_or(Modified { seconds, nanos: 0 }),
            attributes: extended.attributes,
        })
    }

    fn file(&mut self, stored: u64, extended: &Extended) -> Result<Kind, ArchiveError> {
        let Some(format) = &extended.sparse_format else {
            let size = stored;
            return Ok(Kind::File {
                size,
                extents: None,
            });
        };
        if format.as_slice() != b"1" {
            return Err(ArchiveError::Malformed("a sparse file of an old format"));
        }
        let size = extended
            .sparse_size
            .ok_or(ArchiveError::Malformed("a sparse file without a size"))?;
        let (extents, taken) = sparse::read_map(|| self.block())?;
        self.left = stored
            .checked_sub(taken)
            .ok_or(ArchiveError::Malformed("a sparse file's length"))?;
        sparse::check(&extents, size, self.left)?;
        Ok(Kind::File {
            size,
            extents: Some(extents),
        })
    }

    /// GNU tar's own format: four pieces in the header, 21 in each block that follows.
    fn old_sparse(&mut self, header: &[u8; BLOCK]) -> Result<(u64, Vec<Extent>), ArchiveError> {
        fn add(extents: &mut Vec<Extent>, fields: &[u8]) -> Result<(), ArchiveError> {
            for field in fields.chunks_exact(24).filter(|field| field[0] != 0) {
                extents.push(Extent {
                    offset: number(&field[..12])?,
                    length: number(&field[12..])?,
                });
            }
            match extents.len() {
                0..=EXTENTS => Ok(()),
                _ => Err(ArchiveError::TooLong("map of a sparse file")),
            }
        }
        let size = number(&header[483..495])?;
        let mut extents = Vec::new();
        add(&mut extents, &header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let block = self.block()?;
            add(&mut extents, &block[..504])?;
            more = block[504] != 0;
        }
        Ok((size, extents))
    }

    /// Reads content of the last entry; 0 at its end.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub fn content(&mut self, into: &mut [u8]) -> Result<usize, ArchiveError> {
        let room = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        if room == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut into[..room]) {
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(read) => {
                    self.left -= read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn expect(&mut self, stored: u64) {
        self.left = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
    }

    fn long(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let text = self.text(size, PATH_LIMIT as u64 + 1, "path")?;
        Ok(until_nul(&text).to_vec())
    }

    fn text(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let length = usize::try_from(size)
            .ok()
            .filter(|_| size <= limit)
            .ok_or(ArchiveError::TooLong(what))?;
        let mut text = vec![0; length];
        self.exact(&mut text)?;
        self.expect(size);
        self.left = 0;
        Ok(text)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        Ok(block)
    }

    fn exact(&mut self, into: &mut [u8]) -> Result<(), ArchiveError> {
        self.input
            .read_exact(into)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => ArchiveError::Truncated,
                _ => error.into(),
            })
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        let mut waste = [0; 8192];
        while count > 0 {
            let room = usize::try_from(count).map_or(waste.len(), |left| left.min(waste.len()));
            self.exact(&mut waste[..room])?;
            count -= room as u64;
        }
        Ok(())
    }

    /// What the archive comes from, for what follows its end mark.
    pub fn into_inner(self) -> R {
        self.input
    }
}

impl Extended {
    fn take(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        const BAD: ArchiveError = ArchiveError::Malformed("an extended header's value");
        let id = |value: &[u8]| {
            let id = pax::decimal(value).and_then(|id| u32::try_from(id).ok());
            id.ok_or(BAD).map(Some)
        };
        pax::records(data, |key, value| {
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(pax::decimal(value).ok_or(BAD)?),
                b"uid" => self.uid = id(value)?,
                b"gid" => self.gid = id(value)?,
                b"mtime" => self.modified = Some(pax::parse_time(value).ok_or(BAD)?),
                b"GNU.sparse.major" => self.sparse_format = Some(value.to_vec()),
                b"GNU.sparse.map" | b"GNU.sparse.numblocks" => {
                    self.sparse_format = Some(b"0".to_vec());
                }
                b"GNU.sparse.name" => self.sparse_path = Some(value.to_vec()),
                b"GNU.sparse.realsize" => self.sparse_size = Some(pax::decimal(value).ok_or(BAD)?),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.attributes.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            Ok(())
        })
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn short_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // In GNU tar's own format other things are there.
    let prefix = match header[257..263] == *b"ustar\0" {
        true => until_nul(&header[345..500]),
        false => b"",
    };
    match prefix {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

fn checked(path: Vec<u8>) -> Result<Vec<u8>, ArchiveError> {
    match path.len() {
        0..=PATH_LIMIT if path.contains(&0) => Err(ArchiveError::Malformed("a NUL in a path")),
        0..=PATH_LIMIT => Ok(path),
        _ => Err(ArchiveError::TooLong("path")),
    }
}

/// Octal digits, or GNU tar's binary numbers.
fn number(field: &[u8]) -> Result<u64, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Malformed("a number");
    if field[0] & 0x80 != 0 {
        // A negative one can only be a time before 1970, for which nobody has a use.
        if field[0] & 0x40 != 0 {
            return Ok(0);
        }
        return field.iter().enumerate().try_fold(0u64, |sum, (at, byte)| {
            let byte = if at == 0 { byte & 0x3f } else { *byte };
            let shifted = sum.checked_mul(256).ok_or(BAD)?;
            Ok(shifted + u64::from(byte))
        });
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '));
    text[..end.unwrap_or(text.len())]
        .iter()
        .try_fold(0u64, |sum, byte| match byte {
            b'0'..=b'7' => sum
                .checked_mul(8)
                .map(|sum| sum + u64::from(byte - b'0'))
                .ok_or(BAD),
            _ => Err(BAD),
        })
}

fn small(field: &[u8]) -> Result<u32, ArchiveError> {
    u32::try_from(number(field)?).map_err(|_| ArchiveError::Malformed("a number"))
}

fn check_sum(header: &[u8; BLOCK]) -> Result<(), ArchiveError> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        })
        .sum();
    match number(&header[148..156])? == sum {
        true => Ok(()),
        false => Err(ArchiveError::Malformed("a header's checksum")),
    }
}

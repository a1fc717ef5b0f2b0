//! Entries one by one, and the data of the current one.

use std::io::{self, BufRead, Read};

use crate::header::{BLOCK, Header};
use crate::pax::Overrides;
use crate::{Entry, EntryKind, TarError, Timestamp, sparse};

/// Reads an archive from `R`. It is itself the reader of the current entry's data.
pub struct Reader<R> {
    from: R,
    /// Stored bytes of the current entry not yet read, and the padding behind them.
    left: u64,
    padding: u64,
    header_limit: u64,
    is_whole: bool,
}

impl<R: BufRead> Reader<R> {
    /// Starts reading; the headers of one entry may take `header_limit` bytes.
    pub fn new(from: R, header_limit: u64) -> Self {
        Reader {
            from,
            left: 0,
            padding: 0,
            header_limit,
            is_whole: false,
        }
    }

    /// Whether the mark was met that ends an archive. Not every writer of layers makes one; where the archive's writer is
    /// known to, one that ends without it is half an archive.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The reader below.
    pub fn inner(&self) -> &R {
        &self.from
    }

    /// The reader below, for what comes behind the archive's end.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// The next entry; what is left of the last one is skipped. `None` at the end of the archive.
    ///
    /// # Errors
    /// Anything that is not a valid archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut overrides = Overrides::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut budget = self.header_limit;
        loop {
            let Some(block) = self.read_block()? else {
                return Ok(None);
            };
            let Some(header) = Header::parse(&block)? else {
                return self.end();
            };
            budget = budget
                .checked_sub(BLOCK as u64)
                .ok_or(TarError::HeaderTooLarge {
                    limit: self.header_limit,
                })?;
            match header.type_flag() {
                b'x' | b'X' => {
                    let records = self.read_header_data(&header, &mut budget)?;
                    overrides.read(&records)?;
                }
                // Comments of whole archives, and volume labels: nothing of a layer is in them.
                b'g' | b'V' => {
                    self.read_header_data(&header, &mut budget)?;
                }
                b'L' => long_name = Some(c_string(self.read_header_data(&header, &mut budget)?)),
                b'K' => long_link = Some(c_string(self.read_header_data(&header, &mut budget)?)),
                _ => {
                    return self
                        .entry(&header, overrides, long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// Behind a block of zeros there is another one, or nothing: entries behind a single one would be seen by some
    /// readers only.
    fn end(&mut self) -> Result<Option<Entry>, TarError> {
        match self.read_block()? {
            Some(block) if block.iter().any(|byte| *byte != 0) => Err(TarError::LoneZeroBlock),
            Some(_) | None => {
                self.is_whole = true;
                Ok(None)
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        mut overrides: Overrides,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let path = (overrides.sparse.name.take())
            .or(overrides.path.take())
            .or(long_name)
            .unwrap_or_else(|| header.name());
        let link = (overrides.link_path.take())
            .or(long_link)
            .unwrap_or_else(|| header.link_name());
        let stored = match overrides.size {
            Some(size) => size,
            None => header.size()?,
        };
        let kind = match header.type_flag() {
            // Before directories had a type they had a slash.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | b'7' | 0 => {
                self.set_data(stored);
                self.file(stored, &overrides)?
            }
            b'S' => {
                self.set_data(stored);
                self.gnu_sparse(header, stored)?
            }
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            flag @ (b'3' | b'4') => {
                let (major, minor) = header.device()?;
                let major = overrides.device_major.unwrap_or(major);
                let minor = overrides.device_minor.unwrap_or(minor);
                match flag {
                    b'3' => EntryKind::Character(major, minor),
                    _ => EntryKind::Block(major, minor),
                }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Type(char::from(other))),
        };
        Ok(Entry {
            path,
            kind,
            mode: header.mode()?,
            uid: overrides.uid.map_or_else(|| header.uid(), Ok)?,
            gid: overrides.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: match overrides.mtime {
                Some(mtime) => mtime,
                None => Timestamp {
                    seconds: header.mtime()?,
                    nanoseconds: 0,
                },
            },
            xattrs: overrides.xattrs,
        })
    }

    fn file(&mut self, stored: u64, overrides: &Overrides) -> Result<EntryKind, TarError> {
        let Some((size, segments, used)) = overrides.sparse.resolve(stored, &mut self.from)? else {
            return Ok(EntryKind::File {
                size: stored,
                segments: None,
            });
        };
        self.left -= used;
        sparse::check(&segments, size, self.left)?;
        Ok(EntryKind::File {
            size,
            segments: Some(segments),
        })
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, stored: u64) -> Result<EntryKind, TarError> {
        let (size, area, mut more) = header.gnu_sparse()?;
        let mut segments = Vec::new();
        sparse::read_gnu(area, &mut segments)?;
        while more {
            let mut block = [0u8; BLOCK];
            self.from.read_exact(&mut block)?;
            sparse::read_gnu(&block[..504], &mut segments)?;
            more = block[504] != 0;
            if more && block[0] == 0 && block[12] == 0 {
                return Err(TarError::SparseMap);
            }
        }
        sparse::check(&segments, size, stored)?;
        Ok(EntryKind::File {
            size,
            segments: Some(segments),
        })
    }

    fn set_data(&mut self, stored: u64) {
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
    }

    /// The data of a header that describes the next one.
    fn read_header_data(
        &mut self,
        header: &Header<'_>,
        budget: &mut u64,
    ) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        *budget = budget.checked_sub(size).ok_or(TarError::HeaderTooLarge {
            limit: self.header_limit,
        })?;
        let mut data = Vec::new();
        (&mut self.from).take(size).read_to_end(&mut data)?;
        if data.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left = 0;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.skip()?;
        Ok(data)
    }

    /// The next block, `None` where the stream ends at a block's border: not every writer ends with zeros.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.from.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0u8; BLOCK];
        self.from.read_exact(&mut block)?;
        Ok(Some(block))
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut left = self.left + self.padding;
        while left > 0 {
            let available = self.from.fill_buf()?.len() as u64;
            if available == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let now = available.min(left);
            self.from.consume(now as usize);
            left -= now;
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let now = available.len().min(into.len());
        into[..now].copy_from_slice(&available[..now]);
        self.consume(now);
        Ok(now)
    }
}

impl<R: BufRead> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.from.fill_buf()?;
        let now = available
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&available[..now])
    }

    fn consume(&mut self, amount: usize) {
        self.left -= amount as u64;
        self.from.consume(amount);
    }
}

/// GNU long names end with a NUL.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

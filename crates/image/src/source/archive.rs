//! An uncompressed tar archive as a set of named files: where each lies, found in one pass over the headers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use warren_tar::{EntryKind, Reader, TarError};

/// Files of an archive that are remembered at most: an image has some for each layer.
const MAX_FILES: usize = 20_000;
/// Bytes of their names: those of an image are digests.
const MAX_NAMES: usize = 4 << 20;

/// Where the files of an archive are.
#[derive(Debug)]
pub(crate) struct ArchiveIndex {
    file: Arc<File>,
    places: HashMap<String, Place>,
}

#[derive(Debug, Clone)]
enum Place {
    Bytes { offset: u64, size: u64 },
    Link(String),
}

impl ArchiveIndex {
    /// Reads all headers. `None` if this has no file that an image archive has at its top, once so many
    /// files were seen that it must be something else, or where it goes on with what is no archive: then a
    /// conversion will tell what is wrong with it.
    pub(crate) fn read(file: File) -> Result<Option<Self>, TarError> {
        let file = Arc::new(file);
        let mut reader = Reader::new(Counting::new(file.try_clone()?)?, 1 << 20);
        let mut places = HashMap::new();
        let mut names = 0;
        let mut is_archive = false;
        loop {
            let entry = match reader.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error @ (TarError::Checksum | TarError::Read(_))) if !is_archive => {
                    return Err(error);
                }
                Err(_) => return Ok(None),
            };
            is_archive = true;
            let Ok(name) = String::from_utf8(entry.path) else {
                continue;
            };
            let name = name.trim_start_matches("./").to_owned();
            let place = match entry.kind {
                EntryKind::File {
                    size,
                    segments: None,
                } => Place::Bytes {
                    offset: reader.inner().position,
                    size,
                },
                EntryKind::Symlink(to) | EntryKind::HardLink(to) => match String::from_utf8(to) {
                    Ok(to) => Place::Link(to),
                    Err(_) => continue,
                },
                _ => continue,
            };
            names += name.len();
            if let Place::Link(to) = &place {
                names += to.len();
            }
            places.insert(name, place);
            if places.len() > MAX_FILES || names > MAX_NAMES {
                return Ok(None);
            }
        }
        let known = ["index.json", "manifest.json"]
            .iter()
            .any(|n| places.contains_key(*n));
        Ok(known.then_some(ArchiveIndex { file, places }))
    }

    pub(crate) fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>> {
        let mut name = name.trim_start_matches("./").to_owned();
        // Old `docker save` links equal layers to each other: `a/layer.tar -> ../b/layer.tar`.
        for _ in 0..4 {
            match self.places.get(&name) {
                None => return Ok(None),
                Some(Place::Bytes { offset, size }) => {
                    let slice = Slice {
                        file: Arc::clone(&self.file),
                        at: *offset,
                        end: offset + size,
                    };
                    return Ok(Some((Box::new(slice), *size)));
                }
                Some(Place::Link(to)) => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    name = match to.strip_prefix("../") {
                        Some(rest) if !directory.contains('/') => rest.to_owned(),
                        _ if self.places.contains_key(to) => to.clone(),
                        _ => format!("{directory}/{to}"),
                    };
                }
            }
        }
        Ok(None)
    }
}

struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = into
            .len()
            .min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut into[..want], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A buffered file that knows where it is.
pub(crate) struct Counting {
    inner: BufReader<File>,
    position: u64,
}

impl Counting {
    fn new(mut file: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        Ok(Counting {
            inner: BufReader::with_capacity(256 << 10, file),
            position: 0,
        })
    }
}

impl Read for Counting {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl BufRead for Counting {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
        self.inner.consume(amount);
    }
}

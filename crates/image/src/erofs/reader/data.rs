//! Contents, wherever they lie.

use std::io::{self, Read, Seek, SeekFrom};

use super::inode::{Layout, MapEntry};
use super::{Node, ReadError, Reader, u32_at};
use crate::erofs::Segment;
use crate::erofs::format::{BLOCK, NULL_ADDR};

/// Bytes of a chunk map that are read at once.
const WINDOW: u64 = 4096;

/// The contents of a file. Holes are read as zeros; [`Data::next_data`] tells where there are none.
#[derive(Debug)]
pub struct Data<'a> {
    reader: &'a Reader,
    node: Node,
    position: u64,
    /// A piece of the chunk map, and where it starts in it.
    window: Vec<u8>,
    window_at: u64,
}

/// A stretch of a file that lies in one piece.
#[derive(Debug, Clone, Copy)]
struct Piece {
    place: Place,
    /// Bytes from the offset that was asked for.
    length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this offset of the image.
    Image(u64),
    Hole,
}

impl<'a> Data<'a> {
    pub(super) fn new(reader: &'a Reader, node: &Node) -> Self {
        Data {
            reader,
            node: node.clone(),
            position: 0,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Bytes, holes included.
    pub fn size(&self) -> u64 {
        self.node.size
    }

    /// The first stretch at or behind `from` that is no hole, `None` when only holes follow.
    ///
    /// # Errors
    /// A damaged image.
    pub fn next_data(&mut self, from: u64) -> Result<Option<Segment>, ReadError> {
        let mut found: Option<Segment> = None;
        let mut at = from;
        while at < self.node.size {
            let piece = self.locate(at)?;
            match (&mut found, piece.place) {
                (None, Place::Hole) => {}
                (Some(_), Place::Hole) => break,
                (Some(segment), Place::Image(_)) => segment.length += piece.length,
                (None, Place::Image(_)) => {
                    found = Some(Segment {
                        offset: at,
                        length: piece.length,
                    });
                }
            }
            at += piece.length;
        }
        Ok(found)
    }

    /// Exactly these bytes.
    pub(super) fn fill(&mut self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < into.len() {
            let count = self.read_some(offset + done as u64, &mut into[done..])?;
            if count == 0 {
                return Err(super::damaged(&self.node, "it ends early"));
            }
            done += count;
        }
        Ok(())
    }

    fn read_some(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, ReadError> {
        if offset >= self.node.size || into.is_empty() {
            return Ok(0);
        }
        let piece = self.locate(offset)?;
        let count = into
            .len()
            .min(usize::try_from(piece.length).unwrap_or(usize::MAX));
        let into = &mut into[..count];
        match piece.place {
            Place::Image(at) => self.reader.read_at(self.node.nid, at, into)?,
            Place::Hole => into.fill(0),
        }
        Ok(count)
    }

    /// Where the byte at `offset`, which is within the file, lies.
    fn locate(&mut self, offset: u64) -> Result<Piece, ReadError> {
        let size = self.node.size;
        match self.node.layout {
            Layout::None => Ok(Piece {
                place: Place::Hole,
                length: size - offset,
            }),
            Layout::Plain { at } => Ok(Piece {
                place: Place::Image(at + offset),
                length: size - offset,
            }),
            Layout::Inline { at, tail_at } => {
                let whole = (size - 1) / BLOCK * BLOCK;
                Ok(match offset.checked_sub(whole) {
                    Some(within) => Piece {
                        place: Place::Image(tail_at + within),
                        length: size - offset,
                    },
                    None => Piece {
                        place: Place::Image(at + offset),
                        length: whole - offset,
                    },
                })
            }
            Layout::Chunked { map, entry, bits } => {
                let chunk = 1u64 << bits;
                let block = self.map_entry(map, entry, offset >> bits)?;
                let within = offset & (chunk - 1);
                let place = match block {
                    NULL_ADDR => Place::Hole,
                    block => Place::Image(u64::from(block) * BLOCK + within),
                };
                Ok(Piece {
                    place,
                    length: (chunk - within).min(size - offset),
                })
            }
        }
    }

    fn map_entry(&mut self, map: u64, entry: MapEntry, index: u64) -> Result<u32, ReadError> {
        let at = index * entry.size();
        let inside = at
            .checked_sub(self.window_at)
            .is_some_and(|within| within + entry.size() <= self.window.len() as u64);
        if !inside {
            self.window_at = at / WINDOW * WINDOW;
            let length = WINDOW.min(self.reader.end - map - self.window_at);
            self.window.resize(length as usize, 0);
            let place = map + self.window_at;
            self.reader
                .read_at(self.node.nid, place, &mut self.window)?;
        }
        let bytes = self
            .window
            .get((at - self.window_at) as usize..)
            .filter(|bytes| bytes.len() as u64 >= entry.size())
            .ok_or_else(|| super::damaged(&self.node, "its map ends early"))?;
        match entry {
            MapEntry::Block => Ok(u32_at(bytes, 0)),
            MapEntry::Index if u32_at(bytes, 4) == NULL_ADDR => Ok(NULL_ADDR),
            MapEntry::Index if u32_at(bytes, 0) == 0 => Ok(u32_at(bytes, 4)),
            MapEntry::Index => Err(ReadError::Unsupported("further devices")),
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.read_some(self.position, into)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Data<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(distance) => self.node.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

//! The image file: blocks are appended or given back from the end, zeros become holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::BLOCK;

/// Collected before a write: large enough that the system call does not count.
const BUFFER: usize = 1 << 20;
/// Runs of zeros are looked for in pieces of this size.
const HOLE: usize = 64 << 10;

/// An append-only view of the image file with a small window in memory.
///
/// `rewind` gives back what was appended last (a duplicate was found); the bytes there may already be in the file,
/// so from then on zeros below `written` are written for real instead of being left as holes.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    buffer: Vec<u8>,
    /// File offset of the buffer's first byte.
    start: u64,
    /// Everything from here to the end of the file is known to be zero.
    written: u64,
}

impl Output {
    /// Starts behind block 0, which is written last by [`Output::seal`].
    pub(crate) fn new(file: File) -> Self {
        Output {
            file,
            buffer: Vec::with_capacity(BUFFER),
            start: BLOCK,
            written: BLOCK,
        }
    }

    /// Offset of the next byte appended.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends `count` zeros; long runs take no space in the file.
    pub(crate) fn append_zeros(&mut self, count: u64) -> io::Result<()> {
        if self.buffer.len() as u64 + count < BUFFER as u64 {
            self.buffer.resize(self.buffer.len() + count as usize, 0);
            return Ok(());
        }
        self.flush()?;
        let target = self.start + count;
        while self.start < self.written.min(target) {
            let step = (self.written.min(target) - self.start).min(HOLE as u64);
            self.file
                .write_all_at(&ZEROS[..step as usize], self.start)?;
            self.start += step;
        }
        self.start = target;
        Ok(())
    }

    /// Pads to the next block and returns its number.
    pub(crate) fn align(&mut self) -> io::Result<u64> {
        let rest = self.position() % BLOCK;
        if rest != 0 {
            self.append_zeros(BLOCK - rest)?;
        }
        Ok(self.position() / BLOCK)
    }

    /// Gives back everything from `position` on.
    pub(crate) fn rewind(&mut self, position: u64) {
        if position >= self.start {
            self.buffer.truncate((position - self.start) as usize);
        } else {
            self.buffer.clear();
            self.start = position;
        }
    }

    /// Writes at a place that was appended before, as zeros, by [`Output::append_zeros`].
    pub(crate) fn patch(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.start {
            self.flush()?;
        }
        self.file.write_all_at(bytes, offset)?;
        self.written = self.written.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Holes and data in turn, cut at HOLE so that a check is one pass over what is in the cache anyway.
        let mut done = 0;
        while done < self.buffer.len() {
            let zero = self.zero_run(done);
            if zero > 0 {
                done += zero;
                continue;
            }
            let mut end = done;
            while end < self.buffer.len() && self.zero_run(end) == 0 {
                end = (end + HOLE).min(self.buffer.len());
            }
            let offset = self.start + done as u64;
            self.file.write_all_at(&self.buffer[done..end], offset)?;
            self.written = self.written.max(self.start + end as u64);
            done = end;
        }
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Length of the piece at `at` if it is all zero and may be left out.
    fn zero_run(&self, at: usize) -> usize {
        let piece = &self.buffer[at..(at + HOLE).min(self.buffer.len())];
        let beyond = self.start + at as u64 >= self.written;
        if beyond && is_zero(piece) {
            piece.len()
        } else {
            0
        }
    }

    /// Frees the disk space of dead blocks. Best effort: a file system that cannot do it keeps the bytes, which
    /// nothing refers to, but then they are overwritten so that equal images stay equal bytes.
    pub(crate) fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.flush()?;
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, flags, offset, length).is_ok() {
            return Ok(());
        }
        let mut at = offset;
        let end = (offset + length).min(self.written);
        while at < end {
            let step = (end - at).min(HOLE as u64);
            self.file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    /// Pads to a block, cuts off what was given back, writes block 0 and hands the file on.
    pub(crate) fn seal(mut self, first: &[u8]) -> io::Result<File> {
        self.align()?;
        self.flush()?;
        self.file.set_len(self.start)?;
        self.file.write_all_at(first, 0)?;
        Ok(self.file)
    }
}

static ZEROS: [u8; HOLE] = [0; HOLE];

fn is_zero(bytes: &[u8]) -> bool {
    // The first word decides almost always; the rest is a comparison the compiler turns into wide loads.
    bytes[..bytes.len().min(16)].iter().all(|b| *b == 0) && bytes == &ZEROS[..bytes.len()]
}

//! The layer as a stream of compressed bytes: a thread writes, whoever converts reads.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Changed, write_layer};

/// Compressed bytes in one message, and messages under way.
const PIECE: usize = 128 << 10;
const PIECES: usize = 4;
/// For a few kilobytes in each of the 2048 directories that may be above a file.
const STACK: usize = 32 << 20;

/// A layer that is being made.
#[derive(Debug)]
struct Stream {
    pieces: Option<Receiver<io::Result<Vec<u8>>>>,
    piece: Vec<u8>,
    read: usize,
    writer: Option<JoinHandle<()>>,
}

/// Starts to make the layer, compressed (RFC 1952, without a time). A failure is a [`super::ChangesError`] within the error of
/// a read. Dropping it ends the work.
///
/// # Errors
/// Where there can be no thread.
pub(crate) fn open(changed: Changed) -> io::Result<impl Read + Send> {
    let (sender, pieces) = sync_channel(PIECES);
    let writer = std::thread::Builder::new()
        .name("layer-writer".into())
        // As deep as directories may be.
        .stack_size(STACK)
        .spawn(move || {
            let made = make(&changed, &sender);
            if let Err(error) = made {
                // Nobody listens any more where the work was given up.
                let _ = sender.send(Err(error));
            }
        })?;
    Ok(Stream {
        pieces: Some(pieces),
        piece: Vec::new(),
        read: 0,
        writer: Some(writer),
    })
}

fn make(changed: &Changed, to: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let pieces = Pieces {
        to,
        piece: Vec::with_capacity(PIECE),
    };
    let layer = GzEncoder::new(pieces, Compression::default());
    write_layer(changed, layer)?.finish()?.flush()
}

struct Pieces<'a> {
    to: &'a SyncSender<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&data[..count]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        let sent = self.to.send(Ok(piece));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            let next = self.pieces.as_ref().and_then(|pieces| pieces.recv().ok());
            (self.piece, self.read) = (next.transpose()?.unwrap_or_default(), 0);
        }
        let rest = &self.piece[self.read..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Its next piece finds nobody.
        self.pieces = None;
        if let Some(writer) = self.writer.take() {
            // A panic there was the end of the stream here, and thereby no layer.
            let _ = writer.join();
        }
    }
}

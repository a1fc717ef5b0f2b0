//! Compressed archives of images, laid out on disk for a while: their files are needed in another order than they come.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::SourceError;
use crate::decompress::Decoder;
use crate::limits::{Limits, Meter};

const BUFFER: usize = 256 << 10;

/// Decompresses a file into one that has no name, in the directory `spool`. An archive may unpack to as much as its layers
/// may.
pub(super) fn spool(
    path: &Path,
    from: File,
    spool: &Path,
    limits: &Limits,
    stop: &CancellationToken,
) -> Result<File, SourceError> {
    let failed = |source| SourceError::Read {
        what: path.display().to_string(),
        source,
    };
    let mut file = tempfile::tempfile_in(spool).map_err(SourceError::Spool)?;
    let from = Counted { from, count: 0 };
    let mut decoder = Decoder::new(BufReader::with_capacity(128 << 10, from)).map_err(failed)?;
    let mut meter = Meter::new(limits, stop);
    let mut buffer = vec![0; BUFFER];
    let mut unpacked = 0;
    loop {
        meter.check()?;
        let count = match decoder.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        unpacked += count as u64;
        let compressed = match &decoder {
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref().count,
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref().count,
            Decoder::Plain(from) => from.get_ref().count,
        };
        meter.count(count, unpacked, compressed)?;
        file.write_all(&buffer[..count])
            .map_err(SourceError::Spool)?;
    }
}

struct Counted {
    from: File,
    count: u64,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(into)?;
        self.count += count as u64;
        Ok(count)
    }
}

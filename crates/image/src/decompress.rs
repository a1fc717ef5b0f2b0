//! Compressed layers, recognised by their first bytes: media types are often wrong, and registries do not check them.

use std::io::{self, BufRead, Read};

/// Largest zstd window accepted (the format's default limit, 128 MiB).
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Not at all.
    Plain,
}

impl Compression {
    /// From a layer's first four bytes, or all of them if there are fewer.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a skippable one (0x184D2A5?) in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Plain,
        }
    }
}

/// A reader of a layer's uncompressed bytes.
pub(crate) enum Decoder<R: BufRead> {
    /// RFC 1952, any number of members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    /// RFC 8878, any number of frames, skippable ones (zstd:chunked) skipped.
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
    /// As it is.
    Plain(R),
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(mut from: R) -> io::Result<Self> {
        // A reader with a sane buffer gives four bytes at once unless there are no more.
        let start = from.fill_buf()?;
        Ok(match Compression::of(start) {
            Compression::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(from)))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Compression::Plain => Decoder::Plain(from),
        })
    }

    /// Compressed input that was not asked for: it must be read to its end for the digest.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
            Decoder::Plain(from) => from,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.read(into),
            Decoder::Zstd(decoder) => decoder.read(into),
            Decoder::Plain(from) => from.read(into),
        }
    }
}

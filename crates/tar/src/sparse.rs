//! Maps of sparse files: old GNU headers, and PAX forms 0.0, 0.1 and 1.0.

use std::io::BufRead;

use crate::header::{BLOCK, number};
use crate::pax::parse;
use crate::{Segment, TarError};

/// A map of more pieces than this is refused (16 bytes each are kept while the file is read).
const MAX_SEGMENTS: usize = 1 << 18;

/// `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    major: Option<u32>,
    minor: Option<u32>,
    numbers: Vec<u64>,
    seen: bool,
}

impl PaxSparse {
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || {
            parse::<u64>(value)
                .filter(|v| i64::try_from(*v).is_ok())
                .ok_or(TarError::SparseMap)
        };
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.major = Some(parse(value).ok_or(TarError::SparseMap)?),
            b"minor" => self.minor = Some(parse(value).ok_or(TarError::SparseMap)?),
            b"numblocks" => self.seen = true,
            // 0.0: offsets and lengths in turn, one record each.
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(number()?),
            b"numbytes" if self.numbers.len() % 2 == 1 => self.numbers.push(number()?),
            b"offset" | b"numbytes" => return Err(TarError::SparseMap),
            b"map" => {
                self.seen = true;
                self.numbers = value
                    .split(|b| *b == b',')
                    .map(|digits| parse(digits).ok_or(TarError::SparseMap))
                    .collect::<Result<_, _>>()?;
            }
            _ => {}
        }
        if self.numbers.len() > 2 * MAX_SEGMENTS {
            return Err(TarError::SparseMap);
        }
        Ok(())
    }

    /// Size and map of the file, and how many of the `stored` bytes the map itself took at the front of the data.
    pub(super) fn resolve(
        &self,
        stored: u64,
        from: &mut impl BufRead,
    ) -> Result<Option<(u64, Vec<Segment>, u64)>, TarError> {
        match (self.major, self.minor) {
            (Some(1), Some(0)) => {
                let size = self.size.ok_or(TarError::SparseMap)?;
                let (segments, used) = read_map(stored, from)?;
                Ok(Some((size, segments, used)))
            }
            (None, None) | (Some(0), _) if self.seen => {
                let size = self.size.ok_or(TarError::SparseMap)?;
                Ok(Some((size, pairs(&self.numbers)?, 0)))
            }
            (None, None) => Ok(None),
            _ => Err(TarError::SparseMap),
        }
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, TarError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(TarError::SparseMap);
    }
    Ok(pairs
        .iter()
        .map(|&[offset, length]| Segment { offset, length })
        .collect())
}

/// 1.0: the count and then offset and length in turn, one decimal number a line, padded to a block.
fn read_map(stored: u64, from: &mut impl BufRead) -> Result<(Vec<Segment>, u64), TarError> {
    let (mut used, mut at) = (0u64, BLOCK);
    let mut block = [0u8; BLOCK];
    let mut next = || -> Result<u64, TarError> {
        let mut value: Option<u64> = None;
        loop {
            if at == BLOCK {
                if used + BLOCK as u64 > stored {
                    return Err(TarError::SparseMap);
                }
                from.read_exact(&mut block)?;
                used += BLOCK as u64;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            value = match (byte, value) {
                (b'\n', Some(value)) => return Ok(value),
                (b'0'..=b'9', value) => value
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|v| v.checked_add(u64::from(byte - b'0'))),
                _ => None,
            };
            if value.is_none() {
                return Err(TarError::SparseMap);
            }
        }
    };
    let count = next()?;
    if count > MAX_SEGMENTS as u64 {
        return Err(TarError::SparseMap);
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let (offset, length) = (next()?, next()?);
        segments.push(Segment { offset, length });
    }
    Ok((segments, used))
}

/// Adds the pieces of one old GNU map area: 24 bytes each, an empty one ends it.
pub(super) fn read_gnu(area: &[u8], segments: &mut Vec<Segment>) -> Result<(), TarError> {
    let (entries, _) = area.as_chunks::<24>();
    for entry in entries {
        if entry[12] == 0 {
            break;
        }
        let field = |bytes| {
            number(bytes)
                .and_then(|v| u64::try_from(v).ok())
                .ok_or(TarError::SparseMap)
        };
        segments.push(Segment {
            offset: field(&entry[..12])?,
            length: field(&entry[12..])?,
        });
    }
    if segments.len() > MAX_SEGMENTS {
        return Err(TarError::SparseMap);
    }
    Ok(())
}

/// Checks a map: ascending, disjoint, within the file, and as long as what is stored.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        if segment.offset < end {
            return Err(TarError::SparseMap);
        }
        end = segment
            .offset
            .checked_add(segment.length)
            .filter(|end| *end <= size)
            .ok_or(TarError::SparseMap)?;
        sum += segment.length;
    }
    if sum == stored {
        Ok(())
    } else {
        Err(TarError::SparseMap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let segment = |offset, length| Segment { offset, length };
        for (segments, size, stored) in [
            (vec![segment(0, 11)], 10, 11),
            (vec![segment(5, 1), segment(5, 1)], 10, 2),
            (vec![segment(u64::MAX, 2)], 10, 2),
            (vec![segment(0, 5)], 10, 6),
        ] {
            let ended = check(&segments, size, stored);
            assert!(ended.is_err(), "{segments:?}");
        }
        assert!(check(&[segment(0, 5), segment(10, 0)], 10, 5).is_ok());
        // A line of digits without an end, and one that counts more pieces than there may be.
        for (byte, end) in [(b'1', 512), (b'9', 12)] {
            let mut block = [byte; BLOCK];
            if let Some(end) = block.get_mut(end) {
                *end = b'\n';
            }
            let ended = read_map(1 << 20, &mut block.as_slice());
            assert!(matches!(ended, Err(TarError::SparseMap)));
        }
    }
}

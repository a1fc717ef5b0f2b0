//! Maps of sparse files (GNU tar's manual, "Storing Sparse Files"): in format 1.0 decimal lines before the data, in GNU tar's own
//! older format fields of the header and of blocks after it.

use super::{ArchiveError, BLOCK, EXTENTS, Extent, pax};

/// The map as format 1.0 has it, filled up to whole blocks.
pub(super) fn map_text(extents: &[Extent]) -> Vec<u8> {
    let mut text = format!("{}\n", extents.len()).into_bytes();
    for extent in extents {
        text.extend_from_slice(format!("{}\n{}\n", extent.offset, extent.length).as_bytes());
    }
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}

/// Reads a map of format 1.0, block by block; answers with it and how many bytes it took.
pub(super) fn read_map(
    mut block: impl FnMut() -> Result<[u8; BLOCK], ArchiveError>,
) -> Result<(Vec<Extent>, u64), ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Malformed("a sparse file's map");
    let mut numbers = Vec::new();
    let mut wanted = None;
    let mut line = Vec::new();
    let mut taken = 0;
    loop {
        let bytes = block()?;
        taken += BLOCK as u64;
        for byte in bytes {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(BAD);
                }
                continue;
            }
            let number = pax::decimal(&line).ok_or(BAD)?;
            line.clear();
            match wanted {
                None => {
                    let count = usize::try_from(number)
                        .ok()
                        .filter(|count| *count <= EXTENTS)
                        .ok_or(ArchiveError::TooLong("map of a sparse file"))?;
                    wanted = Some(count * 2);
                }
                Some(_) => numbers.push(number),
            }
            if wanted == Some(numbers.len()) {
                let extents = numbers.chunks_exact(2).map(|pair| Extent {
                    offset: pair[0],
                    length: pair[1],
                });
                return Ok((extents.collect(), taken));
            }
        }
    }
}

/// Checks that pieces are in order, within the file, and as long together as what is stored of it.
pub(super) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), ArchiveError> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in extents {
        let next = extent
            .offset
            .checked_add(extent.length)
            .filter(|next| extent.offset >= end && *next <= size)
            .ok_or(ArchiveError::Malformed("a sparse file's map"))?;
        end = next;
        // No overflow: they do not overlap.
        sum += extent.length;
    }
    match sum == stored {
        true => Ok(()),
        false => Err(ArchiveError::Malformed("a sparse file's length")),
    }
}

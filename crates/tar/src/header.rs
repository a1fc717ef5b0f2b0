//! The 512-byte header block.

use crate::TarError;

pub(super) const BLOCK: usize = 512;

/// One header block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Before ustar: no magic.
    V7,
    /// POSIX: `ustar\0`, has a prefix field.
    Ustar,
    /// `ustar  \0`: no prefix, other fields there.
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the sum; `None` for a block of zeros, which ends an archive.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Option<Self>, TarError> {
        let expected = octal(&block[148..156]).ok_or(TarError::Checksum);
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if unsigned == 8 * i64::from(b' ') && block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // Some old writers summed signed characters.
        let expected = expected? as i64;
        if expected != unsigned && expected != signed {
            return Err(TarError::Checksum);
        }
        Ok(Some(Header(block)))
    }

    pub(super) fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if &magic[..6] == b"ustar\0" => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix = match self.format() {
            // star keeps times at the end of the prefix and says so with "tar\0" at 508.
            Format::Ustar if &self.0[508..512] == b"tar\0" => text(&self.0[345..476]),
            Format::Ustar => text(&self.0[345..500]),
            Format::Gnu | Format::V7 => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, name].join(&b'/'),
        }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn mode(&self) -> Result<u16, TarError> {
        let mode = number(&self.0[100..108]).ok_or(TarError::Field("mode"))?;
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.natural(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.natural(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.natural(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        number(&self.0[136..148])
            .and_then(|value| i64::try_from(value).ok())
            .ok_or(TarError::Field("mtime"))
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |range, name| {
            self.natural(range, name)
                .and_then(|v| u32::try_from(v).map_err(|_| TarError::Field(name)))
        };
        Ok((part(329..337, "devmajor")?, part(337..345, "devminor")?))
    }

    /// The real size of an old GNU sparse file, its first four map entries and whether a map block follows.
    pub(super) fn gnu_sparse(&self) -> Result<(u64, &'a [u8], bool), TarError> {
        let size = self.natural(483..495, "realsize")?;
        Ok((size, &self.0[386..482], self.0[482] != 0))
    }

    fn natural(&self, range: std::ops::Range<usize>, name: &'static str) -> Result<u64, TarError> {
        number(&self.0[range])
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| i64::try_from(*value).is_ok())
            .ok_or(TarError::Field(name))
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's base 256 (first bit set, big-endian, two's complement).
pub(super) fn number(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Bit 6 is the sign; 12 bytes fit 128 bits.
            let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
            let first = i128::from(first & 0x7f) | if start < 0 { !0x7f } else { 0 };
            Some(
                field[1..]
                    .iter()
                    .fold(first, |value, byte| value << 8 | i128::from(*byte)),
            )
        }
        _ => octal(field).map(i128::from),
    }
}

/// Octal with blanks and NULs around it; nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end]
        .iter()
        .try_fold(0u64, |value, byte| match byte {
            b'0'..=b'7' if value < 1 << 60 => Some(value << 3 | u64::from(byte - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0]), Some(0x100));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
    }
}

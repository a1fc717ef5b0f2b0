//! The x86 bzImage: taking the uncompressed vmlinux out of it (Documentation/arch/x86/boot.rst).

use std::io::Read;

// Offsets of the setup header's fields in the file.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first version of the boot protocol with `payload_offset` and `payload_length`.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// What the payload can be compressed with, by its first bytes.
const MAGICS: [(&[u8], Format); 8] = [
    (b"\x7fELF", Format::Plain),
    (b"\x1f\x8b", Format::Gzip),
    (b"\x28\xb5\x2f\xfd", Format::Zstd),
    (b"\xfd7zXZ\0", Format::Other("xz")),
    (b"BZh", Format::Other("bzip2")),
    (b"\x5d\0\0", Format::Other("lzma")),
    (b"\x89LZO", Format::Other("lzo")),
    (b"\x02\x21\x4c\x18", Format::Other("lz4")),
];

#[derive(Clone, Copy)]
enum Format {
    Plain,
    Gzip,
    Zstd,
    Other(&'static str),
}

/// Why a bzImage gives no vmlinux.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// Its header lies about where things are.
    #[error("its header is damaged")]
    Header,
    /// Older than Linux 2.6.26.
    #[error("its boot protocol {0:#06x} is older than 2.08")]
    Old(u16),
    /// A compression that is not read here.
    #[error("its payload is compressed with {0}, and only gzip and zstd are read")]
    Compression(&'static str),
    /// The payload is damaged.
    #[error("its payload is damaged: {0}")]
    Payload(#[from] std::io::Error),
    /// It unpacks to more than any kernel has.
    #[error("its payload unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// There is something else in it.
    #[error("its payload is no ELF file")]
    NotElf,
}

/// Whether these are the first bytes of a bzImage.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// The vmlinux inside.
pub(crate) fn unpack(bytes: &[u8], most: u64) -> Result<Vec<u8>, BzImageError> {
    let number = |at: usize| {
        let field = bytes
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok());
        field.map(u32::from_le_bytes).ok_or(BzImageError::Header)
    };
    let version = (number(VERSION)? & 0xffff) as u16;
    if version < VERSION_WITH_PAYLOAD {
        return Err(BzImageError::Old(version));
    }
    // 0 means 4, for old boot loaders' sake; the boot sector comes before the setup sectors.
    let setup_sectors = match bytes[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((setup_sectors + 1) * 512)
        .checked_add(number(PAYLOAD_OFFSET)? as usize)
        .ok_or(BzImageError::Header)?;
    let end = start
        .checked_add(number(PAYLOAD_LENGTH)? as usize)
        .ok_or(BzImageError::Header)?;
    let payload = bytes.get(start..end).ok_or(BzImageError::Header)?;
    let format = MAGICS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map_or(Format::Other("something unknown"), |(_, format)| *format);
    // The build appends four bytes of length to what it has compressed: readers stop at the end of the first
    // stream.
    let vmlinux = match format {
        Format::Plain => payload.to_vec(),
        Format::Gzip => read(flate2::bufread::GzDecoder::new(payload), most)?,
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(payload)?.single_frame();
            // The kernel is compressed with a window as large as itself (scripts/Makefile.lib, `zstd22`).
            decoder.window_log_max(27)?;
            read(decoder, most)?
        }
        Format::Other(name) => return Err(BzImageError::Compression(name)),
    };
    if vmlinux.starts_with(b"\x7fELF") {
        Ok(vmlinux)
    } else {
        Err(BzImageError::NotElf)
    }
}

fn read(from: impl Read, most: u64) -> Result<Vec<u8>, BzImageError> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(BzImageError::TooLarge(most));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    /// A bzImage of one setup sector with this payload 16 bytes into its protected-mode part.
    pub(crate) fn image(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024 + 16];
        bytes[SETUP_SECTS] = 1;
        bytes[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    const ELF: &[u8] = b"\x7fELF and the rest of a kernel";

    #[test]
    fn gzip_zstd_and_plain_payloads_come_out_whole() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(ELF).unwrap();
        let mut gzip = gzip.finish().unwrap();
        gzip.extend_from_slice(&[1, 2, 3, 4]);
        let mut zstd = zstd::encode_all(ELF, 1).unwrap();
        zstd.extend_from_slice(&[1, 2, 3, 4]);
        for payload in [ELF.to_vec(), gzip, zstd] {
            let image = image(&payload);
            assert!(is_bzimage(&image));
            assert_eq!(unpack(&image, 1000).unwrap(), ELF);
        }
    }

    #[test]
    fn lies_bombs_and_cuts_are_errors() {
        let zstd = zstd::encode_all(&vec![0; 1 << 20][..], 1).unwrap();
        let bomb = image(&zstd);
        assert!(matches!(
            unpack(&bomb, 1000),
            Err(BzImageError::TooLarge(1000))
        ));
        assert!(matches!(
            unpack(&bomb[..bomb.len() - 1], 1000),
            Err(BzImageError::Header)
        ));
        assert!(matches!(
            unpack(&bomb[..0x240], 1000),
            Err(BzImageError::Header)
        ));
        let mut old = bomb.clone();
        old[VERSION..VERSION + 2].copy_from_slice(&0x0207_u16.to_le_bytes());
        assert!(matches!(unpack(&old, 1000), Err(BzImageError::Old(0x207))));
        let mut far = bomb;
        far[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(unpack(&far, 1000), Err(BzImageError::Header)));
        let not_elf = zstd::encode_all(&b"MZ"[..], 1).unwrap();
        assert!(matches!(
            unpack(&image(&not_elf), 1000),
            Err(BzImageError::NotElf)
        ));
        let cut = zstd::encode_all(ELF, 1).unwrap();
        assert!(matches!(
            unpack(&image(&cut[..cut.len() - 3]), 1000),
            Err(BzImageError::Payload(_))
        ));
    }
}

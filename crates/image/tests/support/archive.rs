//! Archives written by hand, so that they can be wrong.

use std::io::Write;

/// A tar archive.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    pub fn new() -> Self {
        Archive::default()
    }

    /// One header block with a right checksum; `size` need not be what follows.
    pub fn header(mut self, name: &[u8], kind: u8, link: &[u8], size: u64) -> Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", size.min(0o77_777_777_777)).as_bytes());
        if size > 0o77_777_777_777 {
            block[124..136].copy_from_slice(&(u128::from(size) | 0x80 << 88).to_be_bytes()[4..]);
        }
        block[136..147].copy_from_slice(b"14000000000");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend_from_slice(&seal(block));
        self
    }

    pub fn raw(mut self, block: [u8; 512]) -> Self {
        self.0.extend_from_slice(&seal(block));
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &[u8], data: &[u8]) -> Self {
        self.header(name, b'0', b"", data.len() as u64).data(data)
    }

    pub fn directory(self, name: &[u8]) -> Self {
        self.header(name, b'5', b"", 0)
    }

    pub fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.header(name, b'2', target, 0)
    }

    pub fn hard_link(self, name: &[u8], target: &[u8]) -> Self {
        self.header(name, b'1', target, 0)
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.header(b"PaxHeaders/x", b'x', b"", data.len() as u64)
            .data(&data)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn seal(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

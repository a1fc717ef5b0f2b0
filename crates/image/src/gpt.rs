//! A disk with one partition (UEFI specification 2.11, chapter 5): what goes before it, and what behind it.
//!
//! The partition begins at 1 MiB, as every partitioning program has it, and ends 1 MiB before the disk does. Its type says that it
//! is a root file system, so that programs which look for one find it (UAPI Discoverable Partitions Specification).

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// What a disk has before its partition and behind it.
pub(crate) const MARGIN: u64 = 1 << 20;
const ENTRIES: u32 = 128;
const ENTRY: usize = 128;
/// Of all entries together.
const TABLE: usize = ENTRIES as usize * ENTRY;
const NAME: &str = "root";

/// What tells the disk and the partition from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) disk: [u8; 16],
    pub(crate) partition: [u8; 16],
}

/// What a partition's type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A root file system for this architecture, by OCI's name of it.
    RootOfAmd64,
    RootOfArm64,
    /// Any Linux file system.
    Linux,
}

impl Purpose {
    /// By `os/architecture[/variant]`.
    pub(crate) fn of(platform: &str) -> Self {
        match platform.split('/').nth(1) {
            Some("amd64") => Purpose::RootOfAmd64,
            Some("arm64") => Purpose::RootOfArm64,
            Some(_) | None => Purpose::Linux,
        }
    }

    fn guid(self) -> [u8; 16] {
        let text: u128 = match self {
            Purpose::RootOfAmd64 => 0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709,
            Purpose::RootOfArm64 => 0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae,
            Purpose::Linux => 0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4,
        };
        stored(text.to_be_bytes())
    }
}

/// A GUID as disks have it: its first three parts little-endian.
fn stored(text: [u8; 16]) -> [u8; 16] {
    let mut guid = text;
    guid[..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    guid
}

/// What goes before the partition, from the disk's beginning on, and what its end is.
pub(crate) struct Table {
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
}

/// The table of a disk of `size` bytes, which are whole sectors and more than both margins.
pub(crate) fn table(size: u64, purpose: Purpose, identity: Identity) -> Table {
    let sectors = size / SECTOR;
    let (first, last) = (MARGIN / SECTOR, (size - MARGIN) / SECTOR - 1);
    let mut entries = vec![0; TABLE];
    entries[..16].copy_from_slice(&purpose.guid());
    entries[16..32].copy_from_slice(&stored(identity.partition));
    put64(&mut entries, 32, first);
    put64(&mut entries, 40, last);
    for (at, unit) in (56..).step_by(2).zip(NAME.encode_utf16()) {
        entries[at..at + 2].copy_from_slice(&unit.to_le_bytes());
    }
    let table_sectors = TABLE as u64 / SECTOR;
    let header = |own: u64, other: u64, table: u64| {
        let mut header = vec![0; SECTOR as usize];
        header[..8].copy_from_slice(b"EFI PART");
        // Revision 1.0, 92 bytes.
        put32(&mut header, 8, 0x1_0000);
        put32(&mut header, 12, 92);
        put64(&mut header, 24, own);
        put64(&mut header, 32, other);
        put64(&mut header, 40, 2 + table_sectors);
        put64(&mut header, 48, sectors - 2 - table_sectors);
        header[56..72].copy_from_slice(&stored(identity.disk));
        put64(&mut header, 72, table);
        put32(&mut header, 80, ENTRIES);
        put32(&mut header, 84, ENTRY as u32);
        put32(&mut header, 88, crc32(&entries));
        let checksum = crc32(&header[..92]);
        put32(&mut header, 16, checksum);
        header
    };
    let mut head = protective(sectors);
    head.extend(header(1, sectors - 1, 2));
    head.extend(&entries);
    let mut tail = entries.clone();
    tail.extend(header(sectors - 1, 1, sectors - 1 - table_sectors));
    Table { head, tail }
}

/// A master boot record for those who know nothing else: one partition, all of the disk.
fn protective(sectors: u64) -> Vec<u8> {
    let mut record = vec![0; SECTOR as usize];
    record[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    put32(&mut record, 454, 1);
    let rest = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    put32(&mut record, 458, rest);
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// CRC-32 (ISO 3309); of 16 KiB at most, so that bits do.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |register, byte| {
        (0..8).fold(register ^ u32::from(*byte), |register, _| {
            (register >> 1) ^ (0xedb8_8320 & (register & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // UEFI specification, appendix A: the order of a GUID's bytes.
        let guid = Purpose::Linux.guid();
        assert_eq!(guid[..8], [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47]);
    }
}

//! Little-endian numbers put in fixed places, which callers have made room for.

pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A number whose two halves lie apart, as those do that were once half as long.
pub(super) fn put_halves(bytes: &mut [u8], low: usize, high: usize, value: u64) {
    put32(bytes, low, value as u32);
    put32(bytes, high, (value >> 32) as u32);
}

/// The same of half the size.
pub(super) fn put_quarters(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    put16(bytes, low, value as u16);
    put16(bytes, high, (value >> 16) as u16);
}

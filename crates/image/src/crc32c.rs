//! CRC-32C (Castagnoli), as ext4 uses it: a running register, without the inversions at its two ends.

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0x82f6_3b78
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

static TABLE: [u32; 256] = table();

/// Goes on from `register` over `bytes`. A fresh one is `!0`.
pub(crate) fn update(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, byte| {
        let index = usize::from(register as u8 ^ byte);
        (register >> 8) ^ TABLE[index]
    })
}

#[cfg(test)]
mod tests {
    use super::update;

    /// RFC 3720, B.4, without the inversion at the end.
    #[test]
    fn known_answers() {
        assert_eq!(!update(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!update(!0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(!update(!0, b"123456789"), 0xe306_9283);
    }
}

//! Fields of packets: big-endian numbers, and strings with their length before them.

/// Longest packet, without its length: OpenSSH's own limit, in both directions.
pub const MAX_PACKET: usize = 256 * 1024;

/// A packet that ends too early, or that no client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed packet")]
pub struct Malformed;

/// The rest of a packet.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(u64::from_be_bytes(bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        self.take(length)
    }
}

/// A packet in the making: its length is filled in at the end.
pub(super) struct Packet(Vec<u8>);

impl Packet {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    /// An answer to the request of this number.
    pub(super) fn answer(kind: u8, id: u32) -> Self {
        Self::new(kind).u32(id)
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn string(self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("a string of ours is shorter than a packet");
        let mut packet = self.u32(length);
        packet.0.extend_from_slice(bytes);
        packet
    }

    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).expect("a packet of ours is short");
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

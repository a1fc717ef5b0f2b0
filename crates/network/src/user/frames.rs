//! Ethernet frames on a stream, each behind its length (32 bits, big-endian), as QEMU's `stream` netdev and passt
//! speak; and the two frames that the guard makes itself.

use std::net::Ipv4Addr;

/// Longer than any frame either side makes (64 KiB and headers).
const FRAME_MAX: usize = 70_000;
const PREFIX: usize = 4;
const ETHERNET: usize = 14;

/// A length that no frame has: the stream cannot be followed any further.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// Frames of a guest, as they go on.
#[derive(Debug, Default)]
pub(super) struct FromGuest {
    /// For passt, each up to and with a segment that has SYN: passt must have read one before it gets what follows.
    /// That of 2023 counts wrongly when it reads such a segment and later ones of its connection together, and then
    /// turns in a circle for ever: the guest's whole network is gone.
    pub(super) parts: Vec<Vec<u8>>,
    /// For passt, what comes after the last SYN.
    pub(super) rest: Vec<u8>,
    /// Back to the guest, when passt has read all parts: see [`missing_ack`].
    pub(super) acks: Vec<u8>,
}

/// Bytes that have come in and are not yet a whole frame.
#[derive(Debug, Default)]
pub(super) struct Frames {
    held: Vec<u8>,
}

impl Frames {
    /// Takes bytes in and gives those whole frames out that `keep` wants, with their lengths, to be sent on as
    /// they are.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut keep: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Garbled> {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(prefix) = self.held.get(at..at + PREFIX) {
            let length = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
            if !(1..=FRAME_MAX).contains(&length) {
                return Err(Garbled);
            }
            let end = at + PREFIX + length;
            let Some(frame) = self.held.get(at + PREFIX..end) else {
                break;
            };
            if keep(frame) {
                out.extend_from_slice(&self.held[at..end]);
            }
            at = end;
        }
        self.held.drain(..at);
        Ok(())
    }

    /// [`Frames::take`] for what a guest sends to `gateway` and beyond.
    pub(super) fn take_from_guest(
        &mut self,
        bytes: &[u8],
        gateway: Ipv4Addr,
        mut may_send: impl FnMut(&[u8]) -> bool,
    ) -> Result<FromGuest, Garbled> {
        let mut taken = FromGuest::default();
        let (mut cuts, mut length) = (Vec::new(), 0);
        self.take(bytes, &mut taken.rest, |frame| {
            let may = may_send(frame);
            if may {
                length += PREFIX + frame.len();
                let ack = missing_ack(frame, gateway);
                taken.acks.extend(ack.unwrap_or_default());
            }
            if may && has_syn(frame) {
                cuts.push(length);
            }
            may
        })?;
        let mut begin = 0;
        for cut in cuts {
            let rest = taken.rest.split_off(cut - begin);
            taken.parts.push(std::mem::replace(&mut taken.rest, rest));
            begin = cut;
        }
        Ok(taken)
    }
}

/// An ARP request (RFC 826) from the guest for its gateway, with its length: passt answers when it is ready.
pub(super) fn arp_request(mac: [u8; 6], guest: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 42];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&guest.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&gateway.octets());
    frame
}

/// Whether this is a TCP segment with SYN (RFC 9293, 3.1): the first of its direction.
pub(super) fn has_syn(frame: &[u8]) -> bool {
    let flags = || {
        let packet = frame.get(ETHERNET..)?;
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let is_tcp = frame.get(12..14)? == [0x08, 0x00] && *packet.get(9)? == 6;
        packet.get(header + 13).copied().filter(|_| is_tcp)
    };
    flags().is_some_and(|flags| flags & 0x02 != 0)
}

/// The third step of a TCP handshake (RFC 9293, 3.5), with its length, for a guest's SYN+ACK towards the gateway,
/// which is where published connections seem to come from.
///
/// passt of 2023 leaves it out until its client has something to send, so that a guest that speaks first (SMTP,
/// MySQL) would not get to speak. A second one from a newer passt changes nothing.
pub(super) fn missing_ack(frame: &[u8], gateway: Ipv4Addr) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let segment = packet.get(header..header + 20)?;
    let towards_gateway = packet.get(16..20)? == gateway.octets();
    let is_tcp = frame.get(12..14)? == [0x08, 0x00] && header >= 20 && packet[9] == 6;
    if !is_tcp || !towards_gateway || segment[13] & 0x3f != 0x12 {
        return None;
    }
    let sequence = u32::from_be_bytes(segment[4..8].try_into().ok()?);
    let mut tcp = Vec::with_capacity(20);
    tcp.extend_from_slice(&segment[2..4]);
    tcp.extend_from_slice(&segment[0..2]);
    tcp.extend_from_slice(&segment[8..12]);
    tcp.extend_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    // Five words of header, ACK, a small window: passt's own first segment opens it.
    tcp.extend_from_slice(&[0x50, 0x10, 0x02, 0x00, 0, 0, 0, 0]);
    let ends = [&packet[16..20], &packet[12..16]].concat();
    let pseudo = [ends.as_slice(), &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&checksum(&pseudo));
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend_from_slice(&ends);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    Some(
        [
            &[0, 0, 0, 54],
            &frame[6..12],
            &frame[0..6],
            &[0x08, 0x00],
            &ip,
            &tcp,
        ]
        .concat(),
    )
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("folded to 16 bits above");
    (!folded).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x08, 0x00, 0x45]);
        frame.resize(ETHERNET + 12, 0);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&destination);
        frame
    }

    #[test]
    fn a_syn_ack_to_the_gateway_is_acknowledged_and_nothing_else_is() {
        let gateway = Ipv4Addr::new(10, 0, 2, 2);
        let mut syn_ack = packet(GUEST.octets(), gateway.octets());
        syn_ack[ETHERNET + 9] = 6;
        syn_ack.extend_from_slice(&[0, 80, 0xbe, 0xef, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 7]);
        syn_ack.extend_from_slice(&[0x50, 0x12, 0, 0, 0, 0, 0, 0]);
        let answer = missing_ack(&syn_ack, gateway).unwrap();
        assert_eq!(answer.len(), 4 + 54);
        let (ip, tcp) = (&answer[18..38], &answer[38..]);
        // A checksum over a header that has one is zero.
        assert_eq!(checksum(ip), [0, 0]);
        let pseudo = [&ip[12..20], &[0, 6, 0, 20], tcp].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
        assert_eq!(
            &tcp[..14],
            [0xbe, 0xef, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x10]
        );
        assert_eq!(missing_ack(&syn_ack, GUEST), None);
        assert!(has_syn(&syn_ack));
        for cut in 0..syn_ack.len() {
            assert_eq!(missing_ack(&syn_ack[..cut], gateway), None);
            assert!(cut >= ETHERNET + 34 || !has_syn(&syn_ack[..cut]), "{cut}");
        }
        syn_ack[ETHERNET + 20 + 13] = 0x10;
        assert_eq!(missing_ack(&syn_ack, gateway), None);
        assert!(!has_syn(&syn_ack));
    }

    #[test]
    fn a_segment_with_syn_is_the_last_of_its_part() {
        let outside = [203, 0, 113, 2];
        let segment = |flags: u8| {
            let mut frame = packet(GUEST.octets(), outside);
            frame[ETHERNET + 9] = 6;
            frame.extend_from_slice(&[0; 20]);
            frame[ETHERNET + 20 + 13] = flags;
            let length = u32::try_from(frame.len()).unwrap();
            [length.to_be_bytes().as_slice(), &frame].concat()
        };
        let (syn, data) = (segment(0x02), segment(0x18));
        let take = |frames: &[&[u8]]| {
            let gateway = Ipv4Addr::new(10, 0, 2, 2);
            let mut stream = Frames::default();
            let taken = stream.take_from_guest(&frames.concat(), gateway, |_| true);
            taken.map(|taken| (taken.parts, taken.rest)).unwrap()
        };
        let none = Vec::<Vec<u8>>::new();
        assert_eq!(take(&[]), (none.clone(), vec![]));
        assert_eq!(take(&[&data, &data]), (none, [&data[..], &data].concat()));
        assert_eq!(take(&[&syn]), (vec![syn.clone()], vec![]));
        assert_eq!(
            take(&[&data, &syn, &syn, &data]),
            (vec![[&data[..], &syn].concat(), syn], data)
        );
    }

    #[test]
    fn frames_are_found_however_the_stream_is_cut() {
        let stream: Vec<u8> =
            [b"\0\0\0\x03abc".as_slice(), b"\0\0\0\x01x", b"\0\0\0\x02de"].concat();
        for size in 1..stream.len() {
            let (mut frames, mut out) = (Frames::default(), Vec::new());
            for piece in stream.chunks(size) {
                frames.take(piece, &mut out, |frame| frame != b"x").unwrap();
            }
            assert_eq!(out, b"\0\0\0\x03abc\0\0\0\x02de");
        }
        let mut frames = Frames::default();
        assert_eq!(
            frames.take(&[0xff; 4], &mut Vec::new(), |_| true),
            Err(Garbled)
        );
        assert_eq!(
            Frames::default().take(&[0; 4], &mut Vec::new(), |_| true),
            Err(Garbled)
        );
    }
}

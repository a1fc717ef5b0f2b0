//! Which frames a guest may send: what keeps it from the host's loopback.
//!
//! passt of 2023 connects wherever a frame says, `127.0.0.1` included, and takes its gateway's address for the
//! host's loopback. Published ports need the latter for their answers. So a guest may send ARP, and IPv4 from its
//! own address, but
//! - nothing to `127.0.0.0/8` or `0.0.0.0/8` (which the kernel takes for the host itself),
//! - to the gateway no TCP that opens a connection, no UDP but answers to what came from there a moment ago, and
//!   no fragments, in which ports cannot be seen.
//!
//! IPv6, VLANs and the rest are not offered to guests here, so that no other spelling of the loopback has to be
//! known.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
/// No longer than a published port's session lives after its peer's last datagram: the peer's port is the host's
/// again after that. What the guest sends does not extend it.
const ANSWER: Duration = Duration::from_secs(60);
/// Peers remembered; more than the relay has sessions. The oldest make room.
const PEERS: usize = 8192;

/// The rules for one guest, and who talked to it by way of the gateway.
#[derive(Debug)]
pub(super) struct Filter {
    guest: Ipv4Addr,
    gateway: Ipv4Addr,
    /// When a datagram last came from this port of the gateway for that port of the guest.
    peers: Mutex<HashMap<(u16, u16), Instant>>,
}

/// What the rules look at in an IPv4 packet.
#[derive(Debug)]
struct Packet<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: bool,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        if frame.get(12..ETHERNET)? != [0x08, 0x00] {
            return None;
        }
        let packet = &frame[ETHERNET..];
        let length = usize::from(packet.first()? & 0x0f) * 4;
        let header = packet.get(..length)?;
        if length < 20 || header[0] >> 4 != 4 {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            // More fragments to come, or not the first.
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
            payload: &packet[length..],
        })
    }

    fn ports(&self) -> Option<(u16, u16)> {
        let bytes = self.payload.get(..4)?;
        Some((
            u16::from_be_bytes([bytes[0], bytes[1]]),
            u16::from_be_bytes([bytes[2], bytes[3]]),
        ))
    }
}

impl Filter {
    pub(super) fn new(guest: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        Self {
            guest,
            gateway,
            peers: Mutex::default(),
        }
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Remembers who sends to the guest by way of the gateway.
    pub(super) fn note(&self, frame: &[u8], now: Instant) {
        let Some(packet) = Packet::parse(frame) else {
            return;
        };
        let Some((from, to)) = packet.ports() else {
            return;
        };
        if packet.protocol != UDP || packet.source != self.gateway || packet.fragment {
            return;
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS && !peers.contains_key(&(from, to)) {
            peers.retain(|_, seen| now.duration_since(*seen) < ANSWER);
            if peers.len() >= PEERS
                && let Some(oldest) = peers
                    .iter()
                    .min_by_key(|(_, seen)| **seen)
                    .map(|(key, _)| *key)
            {
                peers.remove(&oldest);
            }
        }
        peers.insert((from, to), now);
    }

    /// Whether this frame may go from the guest to passt.
    pub(super) fn guest_may_send(&self, frame: &[u8], now: Instant) -> bool {
        if frame.get(12..ETHERNET) == Some(&[0x08, 0x06]) {
            return frame.len() >= ETHERNET + 28;
        }
        let Some(packet) = Packet::parse(frame) else {
            return false;
        };
        packet.source == self.guest
            && !packet.destination.is_loopback()
            && packet.destination.octets()[0] != 0
            && (packet.destination != self.gateway || self.may_reach_gateway(&packet, now))
    }

    fn may_reach_gateway(&self, packet: &Packet<'_>, now: Instant) -> bool {
        if packet.fragment {
            return false;
        }
        match packet.protocol {
            // Bit 1 is SYN, bit 4 ACK (RFC 9293, 3.1).
            TCP => packet
                .payload
                .get(13)
                .is_some_and(|flags| flags & 0x12 != 0x02),
            UDP => packet.ports().is_some_and(|(from, to)| {
                let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
                peers
                    .get(&(to, from))
                    .is_some_and(|seen| now.duration_since(*seen) < ANSWER)
            }),
            protocol => protocol == ICMP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 4] = [10, 0, 2, 15];
    const GATEWAY: [u8; 4] = [10, 0, 2, 2];

    fn filter() -> Filter {
        Filter::new(GUEST.into(), GATEWAY.into())
    }

    fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&destination);
        frame.extend_from_slice(payload);
        frame
    }

    fn may(frame: &[u8]) -> bool {
        filter().guest_may_send(frame, Instant::now())
    }

    fn segment(flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[13] = flags;
        segment
    }

    #[test]
    fn the_hosts_loopback_cannot_be_named() {
        for to in [[1, 1, 1, 1], [192, 168, 0, 1]] {
            assert!(may(&packet(GUEST, to, TCP, &segment(2))), "{to:?}");
        }
        for to in [
            [127, 0, 0, 1],
            [127, 255, 255, 254],
            [0, 0, 0, 0],
            [0, 0, 0, 1],
            GATEWAY,
        ] {
            assert!(!may(&packet(GUEST, to, TCP, &segment(2))), "{to:?}");
        }
    }

    #[test]
    fn only_arp_and_own_ipv4_pass() {
        assert!(!may(&packet([10, 0, 2, 16], [1, 1, 1, 1], ICMP, &[])));
        let whole = packet(GUEST, [1, 1, 1, 1], ICMP, &[]);
        assert!(may(&whole));
        for cut in 0..whole.len() {
            assert!(!may(&whole[..cut]));
        }
        for kind in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x00, 0x2e]] {
            let mut frame = whole.clone();
            frame[12..14].copy_from_slice(&kind);
            assert!(!may(&frame), "{kind:?}");
        }
        let mut short_header = whole;
        short_header[ETHERNET] = 0x44;
        assert!(!may(&short_header));
    }

    #[test]
    fn the_gateway_takes_answers_and_nothing_new() {
        for flags in [0x12, 0x10, 0x11, 0x04] {
            assert!(
                may(&packet(GUEST, GATEWAY, TCP, &segment(flags))),
                "{flags:#x}"
            );
        }
        for flags in [0x02, 0x03, 0xc2, 0x0a] {
            assert!(
                !may(&packet(GUEST, GATEWAY, TCP, &segment(flags))),
                "{flags:#x}"
            );
        }
        let mut fragment = packet(GUEST, GATEWAY, TCP, &segment(0x10));
        fragment[ETHERNET + 6] = 0x20;
        assert!(!may(&fragment));
        assert!(!may(&packet(GUEST, GATEWAY, TCP, &[0; 8])));
        assert!(!may(&packet(GUEST, GATEWAY, 132, &segment(0x10))));
    }

    #[test]
    fn a_datagram_is_answered_for_a_while() {
        let (filter, start) = (filter(), Instant::now());
        let answer = packet(GUEST, GATEWAY, UDP, &[0, 80, 0x9c, 0x40, 0, 8, 0, 0]);
        assert!(!filter.guest_may_send(&answer, start));
        filter.note(
            &packet(GATEWAY, GUEST, UDP, &[0x9c, 0x40, 0, 80, 0, 8, 0, 0]),
            start,
        );
        assert!(filter.guest_may_send(&answer, start));
        let other = packet(GUEST, GATEWAY, UDP, &[0, 80, 0x9c, 0x41, 0, 8, 0, 0]);
        assert!(!filter.guest_may_send(&other, start));
        assert!(!filter.guest_may_send(&answer, start + ANSWER));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (filter, start) = (filter(), Instant::now());
        for port in 0..=u16::MAX {
            let [high, low] = port.to_be_bytes();
            filter.note(
                &packet(GATEWAY, GUEST, UDP, &[high, low, 0, 80, 0, 8, 0, 0]),
                start,
            );
            if usize::from(port) > PEERS + 10 {
                break;
            }
        }
        let peers = filter.peers.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(peers.len(), PEERS);
    }
}

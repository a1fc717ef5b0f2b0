//! The guard between a guest and passt: whatever is sent and however it is cut, nothing opens a way to the host.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use warren_network::fuzzing::Guard;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fuzz_target!(|input: &[u8]| {
    let (mut guard, mut cut) = (Guard::new(GUEST, GATEWAY), Guard::new(GUEST, GATEWAY));
    let mut rest = input;
    // Pieces of `what, length, bytes`.
    while let [what, length, later @ ..] = rest {
        let (piece, later) = later.split_at(usize::from(*length).min(later.len()));
        rest = later;
        match what & 3 {
            0 => {
                guard.wait(*length);
                cut.wait(*length);
            }
            1 => {
                let bytes = framed(piece);
                if guard.from_stack(&bytes).is_none() || cut.from_stack(&bytes).is_none() {
                    return;
                }
            }
            framing => {
                let bytes = if framing == 2 {
                    framed(piece)
                } else {
                    piece.to_vec()
                };
                let whole = guard.from_guest(&bytes);
                let (near, far) = bytes.split_at(bytes.len() / 2);
                let halves = [cut.from_guest(near), cut.from_guest(far)];
                let Some((out, acks)) = whole else {
                    assert!(halves.contains(&None));
                    return;
                };
                let [Some(near), Some(far)] = halves else {
                    panic!("garbled only when cut");
                };
                assert_eq!(out, [near.0, far.0].concat());
                assert_eq!(acks, [near.1, far.1].concat());
                passed(&out);
            }
        }
    }
});

fn framed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    bytes
}

/// The rules once more, in the words of the packet formats.
fn passed(mut stream: &[u8]) {
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let (frame, later) = rest.split_at(u32::from_be_bytes(*length) as usize);
        stream = later;
        match frame[12..14] {
            [0x08, 0x06] => continue,
            [0x08, 0x00] => {}
            _ => panic!("neither ARP nor IPv4 got through"),
        }
        let packet = &frame[14..];
        let header = usize::from(packet[0] & 15) * 4;
        let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        assert_eq!(packet[0] >> 4, 4);
        assert_eq!(packet[12..16], GUEST.octets(), "another's address");
        assert!(
            !to.is_loopback() && to.octets()[0] != 0,
            "the host's loopback"
        );
        if to != GATEWAY {
            continue;
        }
        assert_eq!(packet[6] & 0x3f | packet[7], 0, "a fragment to the gateway");
        match packet[9] {
            1 | 17 => {}
            6 => assert_ne!(packet[header + 13] & 0x12, 2, "a connection to the gateway"),
            other => panic!("protocol {other} to the gateway"),
        }
    }
}

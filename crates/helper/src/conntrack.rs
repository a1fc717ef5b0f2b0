//! Forgets tracked connections of a guest (ctnetlink; linux/netfilter/nfnetlink_conntrack.h).
//!
//! Without this a UDP peer that keeps sending would go on reaching whoever gets the guest's address next.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

const NETLINK_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// Removes every entry that names the address. Returns how many.
pub(crate) fn flush(address: Ipv4Addr) -> nix::Result<usize> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))?;
    let entries = dump(&socket, address)?;
    for tuple in &entries {
        let mut attribute = Vec::with_capacity(tuple.len() + 4);
        put_attribute(&mut attribute, TUPLE_ORIG | NESTED, tuple);
        send(
            socket.as_raw_fd(),
            &message(CT_DELETE, REQUEST | ACK, &attribute),
            MsgFlags::empty(),
        )?;
        // An entry may have gone by itself; whatever the answer is, the next one is tried.
        let mut buffer = [0_u8; 4096];
        recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    }
    Ok(entries.len())
}

/// The original tuples, as the kernel wrote them, of the entries that name the address.
fn dump(socket: &OwnedFd, address: Ipv4Addr) -> nix::Result<Vec<Vec<u8>>> {
    send(
        socket.as_raw_fd(),
        &message(CT_GET, REQUEST | DUMP, &[]),
        MsgFlags::empty(),
    )?;
    let mut found = Vec::new();
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if let Dump::Over = read_entries(&buffer[..length], address, &mut found)? {
            return Ok(found);
        }
    }
}

/// Whether a dump goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dump {
    GoesOn,
    Over,
}

/// Reads one datagram of a dump.
pub(crate) fn read_entries(
    mut rest: &[u8],
    address: Ipv4Addr,
    found: &mut Vec<Vec<u8>>,
) -> nix::Result<Dump> {
    while let Some((kind, body, next)) = split_message(rest) {
        match kind {
            MESSAGE_DONE => return Ok(Dump::Over),
            MESSAGE_ERROR => {
                let code = body
                    .get(..4)
                    .map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                return Err(nix::errno::Errno::from_raw(code.wrapping_neg()));
            }
            _ => {
                if let Some(tuple) = matching(body.get(NFGEN_HEADER..).unwrap_or(&[]), address) {
                    found.push(tuple);
                }
            }
        }
        rest = next;
    }
    Ok(Dump::GoesOn)
}

fn matching(entry: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let attributes: HashMap<u16, &[u8]> = attributes(entry).collect();
    let original = attributes.get(&TUPLE_ORIG)?;
    let reply = attributes.get(&TUPLE_REPLY)?;
    let names = |tuple: &[u8]| {
        self::attributes(tuple)
            .filter(|(kind, _)| *kind == TUPLE_IP)
            .flat_map(|(_, ip)| self::attributes(ip))
            .any(|(_, value)| value == address.octets())
    };
    (names(original) || names(reply)).then(|| original.to_vec())
}

/// One netlink message off the front: its type, its body, what follows.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = bytes.get(..NETLINK_HEADER)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let body = bytes.get(NETLINK_HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, next))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn put_attribute(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length =
        u16::try_from(value.len() + 4).expect("a tuple of the kernel's is far below 64 KiB");
    into.extend_from_slice(&length.to_ne_bytes());
    into.extend_from_slice(&kind.to_ne_bytes());
    into.extend_from_slice(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = NETLINK_HEADER + NFGEN_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(
        &u32::try_from(length)
            .expect("one tuple and two headers")
            .to_ne_bytes(),
    );
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    // struct nfgenmsg: family AF_INET, version NFNETLINK_V0, resource id 0.
    bytes.extend_from_slice(&[2, 0, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut ip = Vec::new();
        put_attribute(&mut ip, 1, &source);
        put_attribute(&mut ip, 2, &destination);
        let mut tuple = Vec::new();
        put_attribute(&mut tuple, TUPLE_IP | NESTED, &ip);
        tuple
    }

    #[test]
    fn entries_are_matched_by_either_direction_and_truncation_is_survived() {
        let mut entry = Vec::new();
        let original = tuple([10, 0, 0, 9], [192, 0, 2, 1]);
        put_attribute(&mut entry, TUPLE_ORIG | NESTED, &original);
        put_attribute(
            &mut entry,
            TUPLE_REPLY | NESTED,
            &tuple([10, 9, 9, 9], [10, 0, 0, 9]),
        );
        assert_eq!(matching(&entry, Ipv4Addr::new(10, 9, 9, 9)), Some(original));
        assert_eq!(matching(&entry, Ipv4Addr::new(10, 9, 9, 8)), None);
        for cut in 0..entry.len() {
            let _ = matching(&entry[..cut], Ipv4Addr::new(10, 9, 9, 9));
        }
    }
}

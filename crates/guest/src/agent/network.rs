//! Interfaces, addresses and routes by rtnetlink, from what the boot configuration says: no DHCP, no waiting.
//!
//! Message layouts: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::uevent;
use crate::protocol::NetworkConfig;
use crate::protocol::boot::InterfaceAddress;

/// A network device is plugged in before the VM starts.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_REPLACE: u16 = 0x100;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The host gave this address to nobody else: no need to ask around for two seconds.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("no network device{} appeared", .mac.as_ref().map(|mac| format!(" {mac}")).unwrap_or_default())]
    NoDevice { mac: Option<String> },
    #[error("{what}: {cause}")]
    Refused { what: String, cause: io::Error },
}

/// Brings up loopback and the configured interfaces.
pub(super) async fn configure(networks: &[NetworkConfig]) -> Result<(), NetworkError> {
    let kernel = Kernel::connect().map_err(|cause| refused("rtnetlink", cause))?;
    if let Some(index) = interface_index("lo") {
        kernel
            .link_up(index, None)
            .map_err(|cause| refused("lo up", cause))?;
    }
    for network in networks {
        let found = uevent::wait_for(DEVICE_DEADLINE, || find(network.mac.as_deref())).await;
        let index = found.map_err(|_| NetworkError::NoDevice {
            mac: network.mac.clone(),
        })?;
        kernel
            .link_up(index, network.mtu)
            .map_err(|cause| refused("interface up", cause))?;
        for address in &network.addresses {
            kernel
                .add_address(index, *address)
                .map_err(|cause| refused(&format!("address {}", address.address), cause))?;
        }
        for gateway in &network.gateways {
            kernel
                .add_default_route(index, *gateway)
                .map_err(|cause| refused(&format!("gateway {gateway}"), cause))?;
        }
    }
    Ok(())
}

fn refused(what: &str, cause: io::Error) -> NetworkError {
    NetworkError::Refused {
        what: what.to_owned(),
        cause,
    }
}

fn interface_index(name: &str) -> Option<u32> {
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The device with this hardware address, or else the first real one by name.
fn find(mac: Option<&str>) -> Option<u32> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // Tunnels and dummies have no device behind them.
        .filter(|name| {
            Path::new("/sys/class/net")
                .join(name)
                .join("device")
                .exists()
        })
        .collect();
    names.sort();
    let name = names.into_iter().find(|name| {
        let address = Path::new("/sys/class/net").join(name).join("address");
        let address = std::fs::read_to_string(address).unwrap_or_default();
        mac.is_none_or(|mac| address.trim().eq_ignore_ascii_case(mac))
    })?;
    interface_index(&name)
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// A netlink message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_REQUEST_ACK | flags).to_ne_bytes());
        // Sequence number and port: one request at a time on a socket of its own.
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn word(self, word: u32) -> Self {
        self.bytes(&word.to_ne_bytes())
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes are words and addresses");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a message has a handful of attributes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

struct Kernel(OwnedFd);

impl Kernel {
    fn connect() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The kernel answers before `send` returns: this never waits.
    fn request(&self, message: Message) -> io::Result<()> {
        rustix::net::send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        let answer = &answer[..length];
        let (Some(kind), Some(code)) = (
            answer
                .get(4..6)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u16::from_ne_bytes),
            answer
                .get(16..20)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_ne_bytes),
        ) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match (kind, code) {
            (NLMSG_ERROR, 0) => Ok(()),
            (NLMSG_ERROR, code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn link_up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        // family, padding, type; index; flags; which flags
        let message = Message::new(RTM_NEWLINK, 0)
            .bytes(&[0; 4])
            .word(index)
            .word(IFF_UP)
            .word(IFF_UP);
        self.request(match mtu {
            Some(mtu) => message.attribute(IFLA_MTU, &mtu.to_ne_bytes()),
            None => message,
        })
    }

    fn add_address(&self, index: u32, address: InterfaceAddress) -> io::Result<()> {
        let (family, octets) = octets(address.address);
        let flags = if family == AF_INET6 { IFA_F_NODAD } else { 0 };
        // family, prefix length, flags, scope (universe); index
        let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
            .bytes(&[family, address.prefix, flags, 0])
            .word(index)
            .attribute(IFA_LOCAL, &octets)
            .attribute(IFA_ADDRESS, &octets);
        match self.request(message) {
            Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    fn add_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let (family, octets) = octets(gateway);
        // family, destination and source length, service; table, protocol, scope, type; flags.
        // On-link: a gateway outside of the address's prefix (a /32) is as good as one inside.
        self.request(
            Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
                .bytes(&[
                    family,
                    0,
                    0,
                    0,
                    RT_TABLE_MAIN,
                    RTPROT_STATIC,
                    0,
                    RTN_UNICAST,
                ])
                .word(RTNH_F_ONLINK)
                .attribute(RTA_GATEWAY, &octets)
                .attribute(RTA_OIF, &index.to_ne_bytes()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_lengths_are_right() {
        let message = Message::new(RTM_NEWADDR, 0)
            .attribute(9, &[1, 2, 3, 4, 5])
            .finish();
        assert_eq!(message.len(), 16 + 12);
        assert_eq!(&message[..4], &28u32.to_ne_bytes());
        assert_eq!(&message[16..18], &9u16.to_ne_bytes());
    }
}

//! Addresses, pools, MACs and published ports as values; who has which is decided here and carried
//! out elsewhere.

use crate::id::{Handle, InstallationId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

/// TCP or UDP.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Where others connect.
    pub host_port: u16,
    /// Where the guest listens.
    pub guest_port: u16,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.host_port, self.guest_port, self.protocol
        )
    }
}

/// Why a network value is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// Not `host:guest[/proto]`.
    #[error(
        "{0:?} is not a port mapping: write HOST:GUEST or HOST:GUEST/udp, with ports from 1 to 65535"
    )]
    Mapping(String),
    /// Not an IPv4 network.
    #[error("{0:?} is not an IPv4 network such as 192.168.100.0/24")]
    Cidr(String),
    /// The gateway is outside the network, or is its first or last address.
    #[error("the gateway {gateway} is not a host address of {subnet}")]
    Gateway {
        /// The network.
        subnet: Ipv4Net,
        /// The address that does not fit.
        gateway: Ipv4Addr,
    },
    /// No room for guests.
    #[error("{0} has no room for guests: use a prefix of /29 or shorter")]
    TooSmall(Ipv4Net),
    /// Every address is taken.
    #[error(
        "all {capacity} addresses of {subnet} are taken: remove an instance or configure a larger SUBNET_CIDR"
    )]
    Exhausted {
        /// The network.
        subnet: Ipv4Net,
        /// How many guests it holds.
        capacity: usize,
    },
    /// Two mappings of one instance want the same host port.
    #[error("host port {0} is published twice")]
    PortTwice(String),
}

impl std::str::FromStr for PortMapping {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError::Mapping(text.to_owned());
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let (host, guest) = ports.split_once(':').ok_or_else(wrong)?;
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(wrong()),
        };
        Ok(PortMapping {
            host_port: port(host)?,
            guest_port: port(guest)?,
            protocol,
        })
    }
}

/// Refuses port 0 and a host port that is published twice.
///
/// # Errors
/// [`NetworkError::Mapping`] or [`NetworkError::PortTwice`].
pub fn check_mappings(ports: &[PortMapping]) -> Result<(), NetworkError> {
    let mut taken = BTreeSet::new();
    for mapping in ports {
        if mapping.host_port == 0 || mapping.guest_port == 0 {
            return Err(NetworkError::Mapping(mapping.to_string()));
        }
        if !taken.insert((mapping.protocol, mapping.host_port)) {
            return Err(NetworkError::PortTwice(format!(
                "{}/{}",
                mapping.host_port, mapping.protocol
            )));
        }
    }
    Ok(())
}

/// The guests' network on one host: its prefix and the host's own address in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The prefix.
    pub cidr: Ipv4Net,
    /// The bridge's address, the guests' gateway and name server.
    pub gateway: Ipv4Addr,
}

impl Subnet {
    /// Checks a configured network.
    ///
    /// # Errors
    /// [`NetworkError`] for a bad prefix, one without room, or a gateway outside of it.
    pub fn new(cidr: &str, gateway: Ipv4Addr) -> Result<Self, NetworkError> {
        let net: Ipv4Net = cidr
            .parse()
            .map_err(|_| NetworkError::Cidr(cidr.to_owned()))?;
        let net = net.trunc();
        if net.prefix_len() > 29 {
            return Err(NetworkError::TooSmall(net));
        }
        if !net.contains(&gateway) || gateway == net.network() || gateway == net.broadcast() {
            return Err(NetworkError::Gateway {
                subnet: net,
                gateway,
            });
        }
        Ok(Subnet { cidr: net, gateway })
    }

    /// How many guests fit: all addresses but the network's, the broadcast's and the gateway's.
    pub fn capacity(&self) -> usize {
        (1usize << (32 - self.cidr.prefix_len())) - 3
    }

    /// The lowest free address at or after a start point derived from `handle`, wrapping around: the
    /// same address is not given again at once to another instance, whose peers may still have it cached.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`].
    pub fn allocate(
        &self,
        handle: &Handle,
        is_taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Ipv4Addr, NetworkError> {
        let first = u32::from(self.cidr.network()) + 1;
        let count = (u32::MAX >> self.cidr.prefix_len()) - 1;
        let start = handle.as_str().bytes().fold(17u32, |sum, b| {
            sum.wrapping_mul(31).wrapping_add(u32::from(b))
        }) % count;
        (0..count)
            .map(|step| (u64::from(start) + u64::from(step)) % u64::from(count))
            .map(|offset| Ipv4Addr::from(first + offset as u32))
            .find(|address| *address != self.gateway && !is_taken(*address))
            .ok_or(NetworkError::Exhausted {
                subnet: self.cidr,
                capacity: self.capacity(),
            })
    }
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of an instance's first interface: locally administered and unicast (IEEE 802c),
    /// the rest a hash (FNV-1a) of installation and handle.
    pub fn of(installation: &InstallationId, handle: &Handle) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in installation.as_str().bytes().chain(handle.as_str().bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        MacAddress([0x52, a, b, c, d, e])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // Numbers may have a sign for `from_str_radix`.
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is not a MAC address"))?;
        }
        if parts.next().is_some() {
            Err(format!("{text:?} is not a MAC address"))
        } else {
            Ok(MacAddress(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_and_shown() {
        let udp: PortMapping = "5353:53/udp".parse().expect("valid");
        assert_eq!(
            udp,
            PortMapping {
                host_port: 5353,
                guest_port: 53,
                protocol: Protocol::Udp
            }
        );
        assert_eq!(udp.to_string(), "5353:53/udp");
        for bad in [
            "80",
            "0:80",
            "80:0",
            "80:80/sctp",
            "a:b",
            "70000:1",
            ":",
            "+1:2",
        ] {
            assert!(bad.parse::<PortMapping>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pool_gives_every_address_once_and_then_says_it_is_empty() {
        let subnet = Subnet::new("10.1.2.0/28", Ipv4Addr::new(10, 1, 2, 1)).expect("valid");
        let mut taken = BTreeSet::new();
        for n in 0..subnet.capacity() {
            let handle = Handle::from_entropy([n as u8, 1, 2, 3, 4]);
            let is_taken = |address| taken.contains(&address);
            let address = subnet.allocate(&handle, is_taken).expect("room");
            assert!(subnet.cidr.contains(&address) && address != subnet.gateway);
            assert!(taken.insert(address));
        }
        let full = subnet.allocate(&Handle::from_entropy([9; 5]), |address| {
            taken.contains(&address)
        });
        assert!(matches!(
            full,
            Err(NetworkError::Exhausted { capacity: 13, .. })
        ));
    }

    #[test]
    fn the_largest_network_has_addresses_too() {
        let subnet = Subnet::new("0.0.0.0/0", Ipv4Addr::new(10, 0, 0, 1)).expect("valid");
        let handle = Handle::from_entropy([1; 5]);
        let address = subnet.allocate(&handle, |_| false);
        assert!(address.is_ok_and(|address| address != subnet.gateway));
    }

    #[test]
    fn bad_subnets_are_named() {
        assert!(matches!(
            Subnet::new("10.0.0.0/33", Ipv4Addr::LOCALHOST),
            Err(NetworkError::Cidr(_))
        ));
        assert!(matches!(
            Subnet::new("10.0.0.0/24", Ipv4Addr::new(10, 0, 1, 1)),
            Err(NetworkError::Gateway { .. })
        ));
        assert!(matches!(
            Subnet::new("10.0.0.0/30", Ipv4Addr::new(10, 0, 0, 1)),
            Err(NetworkError::TooSmall(_))
        ));
    }

    #[test]
    fn macs_are_local_unicast_and_round_trip() {
        let mac = MacAddress::of(
            &InstallationId::from_entropy([1; 3]),
            &Handle::from_entropy([2; 5]),
        );
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_eq!(MacAddress::try_from(mac.to_string()), Ok(mac));
        for bad in ["+1:aa:bb:cc:dd:ee", "52:aa:bb:cc:dd", "52:aa:bb:cc:dd:e"] {
            assert!(MacAddress::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}

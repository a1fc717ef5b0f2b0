//! Listening sockets: the ports that lead to guests, and the resolver's.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

use crate::error::HelperError;
use crate::protocol::Transport;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds and, for TCP, listens. An IPv6 socket takes IPv6 only, so that both families can be bound side by side.
pub(crate) fn bind_socket(
    transport: Transport,
    address: IpAddr,
    port: u16,
) -> Result<OwnedFd, HelperError> {
    let address = SocketAddr::new(address, port);
    let operation = || format!("bind {address}/{transport}");
    let fail = |errno: Errno| match errno {
        Errno::ADDRINUSE => HelperError::PortTaken { transport, address },
        Errno::ADDRNOTAVAIL => HelperError::NoSuchAddress { address },
        other => HelperError::kernel(operation(), other.raw_os_error()),
    };
    if port == 0 {
        return Err(fail(Errno::INVAL));
    }
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, protocol) = match transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let socket = socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(protocol),
    )
    .map_err(fail)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).map_err(fail)?;
    }
    match transport {
        Transport::Tcp => {
            // Connections of a former process that still wind down must not keep the port; a listener does.
            sockopt::set_socket_reuseaddr(&socket, true).map_err(fail)?;
            bind(&socket, &address).map_err(fail)?;
            listen(&socket, BACKLOG).map_err(fail)?;
        }
        // With SO_REUSEADDR a UDP port could be taken twice.
        Transport::Udp => bind(&socket, &address).map_err(fail)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_way_to_find_its_owner() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let error = bind_socket(Transport::Tcp, IpAddr::from([0, 0, 0, 0]), port).unwrap_err();
        assert!(matches!(error, HelperError::PortTaken { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains(&format!("port {port}/tcp")), "{words}");
        assert!(words.contains("ss -tlnp"), "{words}");
    }

    #[test]
    fn both_families_can_be_bound_side_by_side() {
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let four = bind_socket(Transport::Udp, "0.0.0.0".parse().unwrap(), port).unwrap();
        let six = bind_socket(Transport::Udp, "::".parse().unwrap(), port);
        match six {
            Ok(_) => {}
            // A machine without IPv6.
            Err(HelperError::Kernel { errno, .. }) => {
                assert_eq!(errno, Errno::AFNOSUPPORT.raw_os_error());
            }
            Err(other) => panic!("{other}"),
        }
        let again = bind_socket(Transport::Udp, "0.0.0.0".parse().unwrap(), port);
        assert!(matches!(again, Err(HelperError::PortTaken { .. })));
        drop(four);
    }
}

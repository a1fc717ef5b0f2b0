//! Published ports: listening sockets of ours whose traffic is carried to a guest in user space.
//!
//! Every published port has them, in both modes. They reserve the port (a taken one is an error at create), serve
//! the host itself (127.0.0.1, ::1), guests that come back by the host's address, and IPv6; in bridge mode the
//! traffic of other machines never reaches them, it is redirected before. Guests see the gateway as their peer.

mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use warren_core::network::{PortMapping, Protocol};
use warren_helper::{Helper, HelperError, HelperExt, Verb};

/// The sockets of one published port. Dropping it closes them and ends every connection through them.
#[derive(Debug)]
pub(crate) struct PublishedPort {
    _stop: DropGuard,
}

/// Binds a port on all addresses of both families.
pub(crate) async fn bind(
    helper: &Arc<dyn Helper>,
    mapping: &PortMapping,
) -> Result<Vec<OwnedFd>, HelperError> {
    let mut sockets = Vec::with_capacity(2);
    for address in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        let port = mapping.host_port;
        let verb = match mapping.protocol {
            Protocol::Tcp => Verb::BindTcp { address, port },
            Protocol::Udp => Verb::BindUdp { address, port },
        };
        match helper.descriptor(verb).await {
            Ok(socket) => sockets.push(socket),
            // A host without IPv6.
            Err(HelperError::Kernel { errno, .. })
                if address.is_ipv6() && errno == nix::errno::Errno::EAFNOSUPPORT as i32 => {}
            Err(HelperError::NoSuchAddress { .. }) if address.is_ipv6() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// Starts carrying what comes in by `sockets` to `target`.
pub(crate) fn serve(
    sockets: Vec<OwnedFd>,
    protocol: Protocol,
    target: SocketAddr,
) -> std::io::Result<PublishedPort> {
    let stop = CancellationToken::new();
    for socket in sockets {
        match protocol {
            Protocol::Tcp => tcp::spawn(socket, target, stop.clone())?,
            Protocol::Udp => udp::spawn(socket, target, stop.clone())?,
        }
    }
    Ok(PublishedPort {
        _stop: stop.drop_guard(),
    })
}

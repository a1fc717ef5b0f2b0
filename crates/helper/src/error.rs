//! Why a verb was not carried out, in words that a user can act on.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::protocol::Transport;
use crate::values::InvalidValue;

/// A verb that failed. Crosses the socket, so it carries numbers and words and no live error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum HelperError {
    /// An argument has the wrong shape.
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    /// The caller may not do this.
    #[error("no permission to {operation}: it needs root or CAP_NET_ADMIN")]
    Permission {
        /// What was tried.
        operation: String,
    },
    /// The kernel refused.
    #[error("could not {operation}: {}", std::io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// What was tried.
        operation: String,
        /// The kernel's answer.
        errno: i32,
    },
    /// A port that somebody else listens on.
    #[error("port {}/{transport} on {} is taken: `ss -{}lnp 'sport = :{}'` shows by whom", address.port(), address.ip(), transport.letter(), address.port())]
    PortTaken {
        /// TCP or UDP.
        transport: Transport,
        /// What was to be bound.
        address: SocketAddr,
    },
    /// An address that no device here has.
    #[error("{address} is not an address of this host")]
    NoSuchAddress {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The bridge's name belongs to something that Warren must not change.
    #[error("{reason}")]
    BridgeRefused {
        /// What is in the way, and what to do.
        reason: String,
    },
    /// The network that was asked for is in use elsewhere on this host.
    #[error(
        "{subnet} overlaps {other} of {device}: choose another SUBNET_CIDR and SUBNET_GATEWAY, or free that one"
    )]
    SubnetInUse {
        /// What was asked for.
        subnet: String,
        /// What is in the way.
        other: String,
        /// Where it is.
        device: String,
    },
    /// A device name that belongs to another installation.
    #[error("device {device} belongs to {owner}")]
    NotOurs {
        /// The device.
        device: String,
        /// What its alias says.
        owner: String,
    },
    /// Something was to be there and is not.
    #[error("{what} is not there")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A program that is not installed.
    #[error("{program} is not installed: {hint}")]
    Missing {
        /// Its name.
        program: String,
        /// How to get it.
        hint: String,
    },
    /// `nft` refused a transaction; nothing of it was applied.
    #[error("nftables refused the rules: {message}")]
    Rules {
        /// The first lines of what it said.
        message: String,
    },
    /// A bridge takes no more ports (BR_MAX_PORTS in net/bridge/br_private.h: 1,023).
    #[error("bridge {bridge} is full: it takes no more than 1023 devices")]
    BridgeFull {
        /// Its name.
        bridge: String,
    },
    /// Something took longer than it may.
    #[error("{operation} did not finish in time")]
    Timeout {
        /// What was waited for.
        operation: String,
    },
}

impl HelperError {
    /// A failed system call, with permission told apart.
    pub(crate) fn kernel(operation: impl Into<String>, errno: i32) -> Self {
        let operation = operation.into();
        if errno == rustix::io::Errno::PERM.raw_os_error()
            || errno == rustix::io::Errno::ACCESS.raw_os_error()
        {
            Self::Permission { operation }
        } else {
            Self::Kernel { operation, errno }
        }
    }

    pub(crate) fn io(operation: impl Into<String>, error: &std::io::Error) -> Self {
        Self::kernel(
            operation,
            error
                .raw_os_error()
                .unwrap_or_else(|| rustix::io::Errno::IO.raw_os_error()),
        )
    }
}

//! The verbs, their arguments and their answers.
//!
//! The set is closed and every argument bounded; nothing here holds a path, a command or the text of a rule.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::blocking::BlockingChain;
use crate::error::HelperError;
use crate::values::{BridgeName, Handle, Installation, Mtu};

/// One privileged effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Makes the bridge, marks it as ours, gives it the gateway's address and sets it up. A bridge that is there
    /// without our mark is used as it is when it already carries that address, and refused when it does not.
    EnsureBridge {
        /// Whose it is.
        installation: Installation,
        /// Its name.
        bridge: BridgeName,
        /// The gateway's address with the length of the network's prefix.
        gateway: Ipv4Net,
        /// Its MTU.
        mtu: Mtu,
    },
    /// Removes the bridge if it carries our mark.
    DeleteBridge {
        /// Whose it must be.
        installation: Installation,
        /// Its name.
        bridge: BridgeName,
    },
    /// Makes a persistent TAP for an instance and puts it into the bridge.
    EnsureTap {
        /// Whose it is.
        installation: Installation,
        /// Which instance's.
        handle: Handle,
        /// The bridge it joins.
        bridge: BridgeName,
        /// Its MTU.
        mtu: Mtu,
        /// Who may open it without privileges.
        owner: Option<u32>,
    },
    /// Opens the instance's TAP; the answer carries one descriptor. One opener at a time.
    OpenTap {
        /// Whose it is.
        installation: Installation,
        /// Which instance's.
        handle: Handle,
    },
    /// Removes the instance's TAP.
    DeleteTap {
        /// Whose it is.
        installation: Installation,
        /// Which instance's.
        handle: Handle,
    },
    /// Replaces all rules of the installation in one transaction.
    ApplyRules {
        /// All that should be there.
        rules: RuleSet,
    },
    /// Removes all rules of the installation.
    DeleteRules {
        /// Whose.
        installation: Installation,
    },
    /// Opens a listening TCP socket; the answer carries one descriptor.
    BindTcp {
        /// Where. `::` takes IPv6 only.
        address: IpAddr,
        /// Which port, never 0.
        port: u16,
    },
    /// Opens a UDP socket; the answer carries one descriptor.
    BindUdp {
        /// Where. `::` takes IPv6 only.
        address: IpAddr,
        /// Which port, never 0.
        port: u16,
    },
    /// Switches IPv4 forwarding on.
    EnableForwarding,
    /// Lists every device that carries the installation's id, whether its rules are there, and which ports they
    /// publish.
    ListDevices {
        /// Whose.
        installation: Installation,
    },
    /// Lists chains of others that would drop what this bridge forwards.
    ListBlockingChains {
        /// Whose rules are not to be looked at.
        installation: Installation,
        /// The bridge in question.
        bridge: BridgeName,
    },
    /// Forgets tracked connections from and to a guest, so that a later guest with its address does not get them.
    FlushConntrack {
        /// The guest's address.
        address: Ipv4Addr,
    },
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its name as nftables and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Its option letter in `ss`.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Tcp => 't',
            Self::Udp => 'u',
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that should be in the installation's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSet {
    /// Whose table.
    pub installation: Installation,
    /// The bridge that guests are behind.
    pub bridge: BridgeName,
    /// The gateway's address with the length of the network's prefix.
    pub gateway: Ipv4Net,
    /// Whom the rules treat as guests.
    pub guests: Guests,
    /// The ports that lead to guests.
    pub published: Vec<Publish>,
}

/// Whom the rules treat as guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guests {
    /// Whatever comes in by the bridge: it is ours, and nobody else is on it.
    WholeBridge,
    /// Only these addresses: the bridge is the user's own, and others may be on it.
    Addresses(Vec<Ipv4Addr>),
}

/// One port of the host, on every address it has, that leads to a port of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's port.
    pub host_port: u16,
    /// The guest's address.
    pub guest_address: Ipv4Addr,
    /// The guest's port.
    pub guest_port: u16,
}

/// Whose the bridge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BridgeOwner {
    /// Made by this installation, and removed with it.
    Warren,
    /// The user's own: never changed, never removed.
    User,
}

/// Something on this host that carries the installation's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedDevice {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: OwnedKind,
}

/// What an owned thing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnedKind {
    /// A bridge of ours.
    Bridge,
    /// The TAP of an instance.
    Tap(Handle),
    /// That TAP's place in a bridge.
    Port(Handle),
    /// The nftables table.
    Rules,
    /// A published port in it.
    Published(Publish),
}

/// What a verb returned, without descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done; nothing to tell.
    Done,
    /// The bridge is there.
    Bridge {
        /// Whose it is.
        owner: BridgeOwner,
    },
    /// The TAP is there.
    Tap {
        /// Its name.
        name: String,
    },
    /// What is there.
    Devices {
        /// All of it.
        devices: Vec<OwnedDevice>,
    },
    /// Chains that would drop forwarded traffic.
    Blocking {
        /// All of them.
        chains: Vec<BlockingChain>,
    },
}

/// What a verb returned, with the descriptors that came along.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub reply: Reply,
    /// Descriptors, in the order the verb documents.
    pub descriptors: Vec<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            descriptors: Vec::new(),
        }
    }
}

/// Carries verbs out.
pub trait Helper: Send + Sync + 'static {
    /// Carries one verb out. Every `Ensure`, `Apply` and `Delete` verb may be repeated; deleting what is not there
    /// succeeds.
    fn call(&self, verb: Verb) -> BoxFuture<'_, Result<Answer, HelperError>>;
}

/// Verbs as functions, with their answers taken apart.
pub trait HelperExt: Helper {
    /// Carries out a verb whose answer is one descriptor.
    fn descriptor(&self, verb: Verb) -> BoxFuture<'_, Result<OwnedFd, HelperError>> {
        Box::pin(async move {
            self.call(verb)
                .await?
                .descriptors
                .pop()
                .ok_or(HelperError::NotFound {
                    what: "the descriptor in the helper's answer".into(),
                })
        })
    }

    /// Carries out a verb whose answer does not matter.
    fn act(&self, verb: Verb) -> BoxFuture<'_, Result<(), HelperError>> {
        Box::pin(async move { self.call(verb).await.map(|_| ()) })
    }

    /// [`Verb::EnsureBridge`].
    fn ensure_bridge(
        &self,
        installation: Installation,
        bridge: BridgeName,
        gateway: Ipv4Net,
        mtu: Mtu,
    ) -> BoxFuture<'_, Result<BridgeOwner, HelperError>> {
        Box::pin(async move {
            let verb = Verb::EnsureBridge {
                installation,
                bridge,
                gateway,
                mtu,
            };
            match self.call(verb).await?.reply {
                Reply::Bridge { owner } => Ok(owner),
                other => Err(unexpected(&other)),
            }
        })
    }

    /// [`Verb::EnsureTap`]; gives the device's name.
    fn ensure_tap(
        &self,
        installation: Installation,
        handle: Handle,
        bridge: BridgeName,
        mtu: Mtu,
        owner: Option<u32>,
    ) -> BoxFuture<'_, Result<String, HelperError>> {
        Box::pin(async move {
            let verb = Verb::EnsureTap {
                installation,
                handle,
                bridge,
                mtu,
                owner,
            };
            match self.call(verb).await?.reply {
                Reply::Tap { name } => Ok(name),
                other => Err(unexpected(&other)),
            }
        })
    }

    /// [`Verb::ListDevices`].
    fn list_devices(
        &self,
        installation: Installation,
    ) -> BoxFuture<'_, Result<Vec<OwnedDevice>, HelperError>> {
        Box::pin(async move {
            match self.call(Verb::ListDevices { installation }).await?.reply {
                Reply::Devices { devices } => Ok(devices),
                other => Err(unexpected(&other)),
            }
        })
    }

    /// [`Verb::ListBlockingChains`].
    fn list_blocking_chains(
        &self,
        installation: Installation,
        bridge: BridgeName,
    ) -> BoxFuture<'_, Result<Vec<BlockingChain>, HelperError>> {
        Box::pin(async move {
            let verb = Verb::ListBlockingChains {
                installation,
                bridge,
            };
            match self.call(verb).await?.reply {
                Reply::Blocking { chains } => Ok(chains),
                other => Err(unexpected(&other)),
            }
        })
    }
}

impl<T: Helper + ?Sized> HelperExt for T {}

fn unexpected(reply: &Reply) -> HelperError {
    HelperError::NotFound {
        what: format!("the expected answer of the helper (it said {reply:?})"),
    }
}

//! The guests' network on one host: attach an instance, publish its ports, take it away again.

use super::{InstanceHome, Presence};
use crate::PortError;
use crate::host::NetworkReport;
use crate::inventory::Item;
use crate::network::{MacAddress, PortMapping};
use crate::ports::hypervisor::Nic;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// What an instance wants of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentSpec {
    /// Whose.
    pub home: InstanceHome,
    /// The names under which others find it: DNS labels, unique on this host.
    pub names: Vec<String>,
    /// The address reserved for it in the pool; `None` where the mode has no pool.
    pub address: Option<Ipv4Addr>,
    /// The ports to publish.
    pub ports: Vec<PortMapping>,
}

/// What the guest is told, so that it need not ask (no DHCP).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// Its interface.
    pub mac: MacAddress,
    /// Its address and prefix.
    pub address: Ipv4Net,
    /// Its default route.
    pub gateway: Ipv4Addr,
    /// Its name servers.
    pub nameservers: Vec<IpAddr>,
    /// Its search domains.
    pub search: Vec<String>,
    /// The link's MTU.
    pub mtu: u16,
}

/// A finished attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// For the hypervisor.
    pub nic: Nic,
    /// For the guest's agent.
    pub guest: GuestNetwork,
}

/// The network of this host.
#[async_trait]
pub trait Network: Send + Sync {
    /// The mode, its subnet, what it cannot do, and warnings about this host's own rules.
    async fn report(&self) -> Result<NetworkReport, PortError>;
    /// Whether an attachment could be made now: every port that is taken is a Conflict
    /// (`port_taken`) that names it. Changes nothing. Ports this installation's `handle` holds itself are free to it.
    async fn preflight(&self, spec: &AttachmentSpec) -> Result<(), PortError>;
    /// Makes (or re-makes, after a restart) everything of an attachment: device, rules, listening sockets, names.
    async fn ensure(&self, spec: &AttachmentSpec) -> Result<Attachment, PortError>;
    /// Whether everything of it is there, or something. What an earlier process has left is something.
    async fn observe(&self, spec: &AttachmentSpec) -> Result<Presence, PortError>;
    /// Takes all of it away; succeeds when there is nothing.
    async fn release(&self, home: &InstanceHome) -> Result<(), PortError>;
    /// Everything of the network on this host that carries this installation's id, as the kernel has it: for the
    /// sweep and the inventory. Of an instance: [`Part::Network`](crate::inventory::Part::Network).
    async fn owned(&self) -> Result<Vec<Item>, PortError>;
    /// Removes what `owned` found for a handle that belongs to nothing any more.
    async fn sweep(&self, handle: &crate::Handle) -> Result<(), PortError>;
    /// Removes everything of this installation, bridge and rules included. For a host that runs nothing.
    async fn tear_down(&self) -> Result<(), PortError>;
    /// Bytes received and sent by the guest on its interface.
    async fn usage(&self, home: &InstanceHome) -> Result<NetworkUsage, PortError>;
}

/// Traffic of one guest, from the guest's point of view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsage {
    /// Bytes the guest received.
    pub received: u64,
    /// Bytes the guest sent.
    pub sent: u64,
}

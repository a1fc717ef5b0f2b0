//! Bridge mode: a bridge, a TAP per guest, NAT, published ports, names.
//!
//! | traffic | way |
//! |---|---|
//! | guest to guest | the bridge |
//! | guest to the outside | forwarded, masqueraded |
//! | guest to the gateway | DNS, ping; everything else of the host is dropped |
//! | guest to any address of the host, published port | our listening socket |
//! | the host itself to a published port | our listening socket |
//! | another machine, IPv4, to a published port | DNAT |
//! | another machine, IPv6, to a published port | our listening socket |
//! | anything else to a guest | dropped, unless it answers |
//!
//! `route_localnet` stays off, and what guests send to 127.0.0.0/8 is dropped besides. The host's own rules are
//! not touched; where they stand in the way, [`Network::report`] says so.
//!
//! One task ([`owner`]) holds all state and makes every change, so that rules are written once for all changes that
//! wait; this module is its handle and implements the port.

mod owner;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::sync::{mpsc, oneshot};
use warren_core::host::{NetworkMode, NetworkReport};
use warren_core::inventory::Item;
use warren_core::network::Subnet;
use warren_core::ports::network::{Attachment, AttachmentSpec, Network, NetworkUsage};
use warren_core::ports::{InstanceHome, Presence};
use warren_core::{Handle, InstallationId, PortError};
use warren_helper::{BridgeName, Helper, HelperExt, Installation, Mtu};

use crate::error::from_helper;
use owner::{Owner, Request};

/// Requests that may wait for the owner task.
const QUEUE: usize = 256;

/// How bridge mode is set up.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Gives every name.
    pub installation: InstallationId,
    /// The bridge (BRIDGE_NAME).
    pub bridge: String,
    /// The guests' network (SUBNET_CIDR, SUBNET_GATEWAY).
    pub subnet: Subnet,
    /// Where names that are not ours are looked up (DNS_SERVER), in order.
    pub dns_servers: Vec<SocketAddr>,
    /// The domain that guests are found in.
    pub domain: String,
    /// Who may open TAPs without privileges; `None` is root only.
    pub tap_owner: Option<u32>,
    /// The MTU of bridge and TAPs.
    pub mtu: u16,
}

impl BridgeConfig {
    /// What the documentation promises as defaults, for an installation and a network.
    pub fn new(installation: InstallationId, subnet: Subnet) -> Self {
        Self {
            installation,
            bridge: "vmbr0".into(),
            subnet,
            dns_servers: vec![SocketAddr::from(([1, 1, 1, 1], 53))],
            domain: "warren.internal".into(),
            tap_owner: None,
            mtu: 1500,
        }
    }
}

/// The configuration with every value checked.
#[derive(Debug, Clone)]
struct Checked {
    installation: Installation,
    installation_id: InstallationId,
    bridge: BridgeName,
    subnet: Subnet,
    gateway: Ipv4Net,
    dns_servers: Vec<SocketAddr>,
    domain: String,
    tap_owner: Option<u32>,
    mtu: Mtu,
}

/// The network of a host that has privileges.
#[derive(Clone)]
pub struct BridgeNetwork {
    config: Checked,
    helper: Arc<dyn Helper>,
    owner: mpsc::Sender<Request>,
}

impl BridgeNetwork {
    /// Checks the configuration and starts the task that owns the network. Nothing on the host is changed before
    /// the first attachment. Needs a Tokio runtime; the task ends with the last handle.
    ///
    /// # Errors
    /// `network_invalid` for a bridge name, MTU or installation id that cannot be.
    pub fn start(config: BridgeConfig, helper: Arc<dyn Helper>) -> Result<Self, PortError> {
        let invalid = |error: warren_helper::InvalidValue| from_helper(error.into());
        let gateway = Ipv4Net::new(config.subnet.gateway, config.subnet.cidr.prefix_len())
            .map_err(|error| PortError::invalid("network_invalid", error.to_string()))?;
        let config = Checked {
            installation: Installation::new(config.installation.as_str()).map_err(invalid)?,
            installation_id: config.installation,
            bridge: BridgeName::new(&config.bridge).map_err(invalid)?,
            subnet: config.subnet,
            gateway,
            dns_servers: config.dns_servers,
            domain: config.domain,
            tap_owner: config.tap_owner,
            mtu: Mtu::try_from(u32::from(config.mtu)).map_err(invalid)?,
        };
        let (owner, requests) = mpsc::channel(QUEUE);
        tokio::spawn(Owner::new(config.clone(), Arc::clone(&helper)).run(requests));
        Ok(Self {
            config,
            helper,
            owner,
        })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, PortError> {
        let gone = || PortError::bug("network_gone", "the network's task has ended");
        let (reply, answer) = oneshot::channel();
        self.owner.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    fn helper_handle(handle: &Handle) -> Result<warren_helper::Handle, PortError> {
        warren_helper::Handle::new(handle.as_str()).map_err(|error| from_helper(error.into()))
    }
}

#[async_trait]
impl Network for BridgeNetwork {
    async fn report(&self) -> Result<NetworkReport, PortError> {
        let mut warnings = self.ask(Request::Warnings).await?;
        let blocking = self
            .helper
            .list_blocking_chains(self.config.installation.clone(), self.config.bridge.clone())
            .await;
        match blocking {
            Ok(chains) => warnings.extend(
                chains
                    .iter()
                    .map(|chain| blocking_words(chain, self.config.bridge.as_str())),
            ),
            Err(error) => warnings.push(format!(
                "could not look at this host's own firewall rules: {error}"
            )),
        }
        Ok(NetworkReport {
            mode: NetworkMode::Bridge,
            subnet: Some(self.config.subnet.clone()),
            reason: format!(
                "bridge {} with {} and NAT, a TAP for each guest",
                self.config.bridge, self.config.subnet.cidr
            ),
            warnings,
        })
    }

    async fn preflight(&self, spec: &AttachmentSpec) -> Result<(), PortError> {
        // An address is reserved only once everything else is known to fit.
        if spec.address.is_some() {
            check_address(&self.config, spec)?;
        }
        self.ask(|reply| Request::Preflight(spec.clone(), reply))
            .await?
    }

    async fn ensure(&self, spec: &AttachmentSpec) -> Result<Attachment, PortError> {
        check_address(&self.config, spec)?;
        self.ask(|reply| Request::Ensure(spec.clone(), reply))
            .await?
    }

    async fn observe(&self, spec: &AttachmentSpec) -> Result<Presence, PortError> {
        self.ask(|reply| Request::Observe(spec.clone(), reply))
            .await?
    }

    async fn release(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.sweep(&home.handle).await
    }

    async fn owned(&self) -> Result<Vec<Item>, PortError> {
        self.ask(Request::Owned).await?
    }

    async fn sweep(&self, handle: &Handle) -> Result<(), PortError> {
        self.ask(|reply| Request::Release(handle.clone(), reply))
            .await?
    }

    async fn tear_down(&self) -> Result<(), PortError> {
        self.ask(Request::TearDown).await?
    }

    async fn usage(&self, home: &InstanceHome) -> Result<NetworkUsage, PortError> {
        let tap = Self::helper_handle(&home.handle)?.tap_name(&self.config.installation);
        // Of the process's own network namespace, whichever sysfs is mounted.
        let table = std::fs::read_to_string("/proc/self/net/dev")
            .map_err(|error| PortError::io("read the devices' counters", error))?;
        counters(&table, &tap).ok_or_else(|| {
            PortError::not_found("network_device_missing", format!("TAP {tap} is not there"))
        })
    }
}

fn check_address(config: &Checked, spec: &AttachmentSpec) -> Result<(), PortError> {
    let subnet = &config.subnet;
    let address = spec.address.ok_or_else(|| {
        PortError::bug(
            "address_missing",
            "bridge mode needs an address from the pool",
        )
    })?;
    let usable = subnet.cidr.contains(&address)
        && address != subnet.gateway
        && address != subnet.cidr.network()
        && address != subnet.cidr.broadcast();
    if usable {
        return Ok(());
    }
    Err(PortError::conflict(
        "address_outside_subnet",
        format!("address {address} is not for a guest in {}", subnet.cidr),
    )
    .with_hint(
        "SUBNET_CIDR was changed since this instance was created: change it back, or create the instance anew",
    ))
}

fn blocking_words(chain: &warren_helper::BlockingChain, bridge: &str) -> String {
    let what = if chain.hook == "forward" {
        "what guests exchange with other machines"
    } else {
        "what guests ask this host's name server"
    };
    let remedy = match (chain.chain.as_str(), chain.hook.as_str()) {
        (_, "input") => format!(
            "nft insert rule {} {} {} iifname {bridge} meta l4proto '{{ tcp, udp }}' th dport 53 accept",
            chain.family, chain.table, chain.chain
        ),
        ("FORWARD", _) => format!(
            "iptables -I FORWARD -i {bridge} -j ACCEPT; iptables -I FORWARD -o {bridge} -j ACCEPT"
        ),
        _ => format!(
            "nft insert rule {family} {table} {name} iifname {bridge} accept; nft insert rule {family} {table} {name} oifname {bridge} accept",
            family = chain.family,
            table = chain.table,
            name = chain.chain
        ),
    };
    format!(
        "this host's own firewall (table {} {}, chain {}) drops {what}; let it pass: {remedy}",
        chain.family, chain.table, chain.chain
    )
}

/// The counters of one device in `/proc/net/dev` (proc(5)), turned to the guest's point of view.
fn counters(table: &str, device: &str) -> Option<NetworkUsage> {
    let numbers = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    let mut columns = numbers.split_whitespace();
    let sent = columns.next()?.parse().ok()?;
    let received = columns.nth(7)?.parse().ok()?;
    Some(NetworkUsage { received, sent })
}

/// Name servers as guests can reach them: not those on this host's loopback.
pub(crate) fn reachable(servers: &[SocketAddr]) -> Vec<IpAddr> {
    servers
        .iter()
        .map(SocketAddr::ip)
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_guests() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
             wtabcdk3j2h1g0:   100       1    0    0    0     0          0         0      200       2    0    0    0     0       0          0\n";
        let usage = counters(table, "wtabcdk3j2h1g0");
        assert_eq!(
            usage,
            Some(NetworkUsage {
                received: 200,
                sent: 100
            })
        );
        assert_eq!(counters(table, "wtabcd"), None);
    }
}

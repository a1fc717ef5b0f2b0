//! The one task that owns bridge mode's state: who is attached, with which ports and names.
//!
//! It takes all requests that wait, carries out what each needs of its own (a TAP, sockets), writes the rules once
//! for all of them, and then answers. If the rules are refused, everybody whose change was in them hears of it, and
//! the new ones are taken out again, so that one bad entry cannot stop later changes.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use warren_core::inventory::{Item, Kind, Part};
use warren_core::network::{MacAddress, PortMapping, Protocol};
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::{Nic, NicBackend};
use warren_core::ports::network::{Attachment, AttachmentSpec, GuestNetwork};
use warren_core::{ErrorClass, Handle, PortError};
use warren_crashpoint::reached;
use warren_helper::{
    BridgeOwner, Guests, Helper, HelperError, HelperExt, OwnedDevice, OwnedKind, Publish, RuleSet,
    Transport, Verb,
};

use super::{Checked, reachable};
use crate::dns::{self, DnsServer, NameTable};
use crate::error::from_helper;
use crate::publish::{self, PublishedPort};

/// Requests that share one change of the rules.
const BATCH: usize = 64;

type Reply<T> = oneshot::Sender<Result<T, PortError>>;

/// What may be asked of the owner.
pub(super) enum Request {
    Preflight(AttachmentSpec, Reply<()>),
    Ensure(AttachmentSpec, Reply<Attachment>),
    Observe(AttachmentSpec, Reply<Presence>),
    Release(Handle, Reply<()>),
    Owned(Reply<Vec<Item>>),
    TearDown(Reply<()>),
    Warnings(oneshot::Sender<Vec<String>>),
}

/// Answers that wait for the rules.
enum Pending {
    Attached(Box<Attachment>, Handle, Reply<Attachment>),
    Released(Handle, Option<Ipv4Addr>, Reply<()>),
}

struct Attached {
    spec: AttachmentSpec,
    address: Ipv4Addr,
    ports: HashMap<PortMapping, PublishedPort>,
}

/// What is there once for all guests.
struct Base {
    owner: BridgeOwner,
    /// `None` when somebody else has port 53 on the gateway's address.
    dns: Option<DnsServer>,
}

pub(super) struct Owner {
    config: Checked,
    helper: Arc<dyn Helper>,
    names: Arc<NameTable>,
    base: Option<Base>,
    attached: HashMap<Handle, Attached>,
    dns_problem: Option<String>,
    /// What the kernel was told last, until somebody is found to have changed it: most instances change nothing of it.
    written: Option<RuleSet>,
}

impl Owner {
    pub(super) fn new(config: Checked, helper: Arc<dyn Helper>) -> Self {
        Self {
            names: Arc::new(NameTable::new(&config.domain)),
            config,
            helper,
            base: None,
            attached: HashMap::new(),
            dns_problem: None,
            written: None,
        }
    }

    /// Serves until the last handle is gone. What is on the host stays: guests outlive this process.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(BATCH);
        while requests.recv_many(&mut batch, BATCH).await > 0 {
            let mut pending = Vec::new();
            for request in batch.drain(..) {
                // Whoever hung up no longer wants it; what was begun is taken away by release.
                self.serve(request, &mut pending).await;
            }
            if !pending.is_empty() {
                self.settle(pending).await;
            }
        }
    }

    async fn serve(&mut self, request: Request, pending: &mut Vec<Pending>) {
        match request {
            Request::Preflight(spec, reply) => {
                let _ = reply.send(self.preflight(&spec).await);
            }
            Request::Ensure(spec, reply) => match self.attach(&spec).await {
                Ok(attachment) => pending.push(Pending::Attached(
                    Box::new(attachment),
                    spec.home.handle,
                    reply,
                )),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Request::Release(handle, reply) => {
                let address = self.detach(&handle);
                pending.push(Pending::Released(handle, address, reply));
            }
            Request::Observe(spec, reply) => {
                let _ = reply.send(self.observe(&spec).await);
            }
            Request::Owned(reply) => {
                // Whoever asks may find out that the rules are not what they were.
                self.written = None;
                let _ = reply.send(self.owned().await);
            }
            Request::TearDown(reply) => {
                // What waits is answered first, so that its rules are not written after the table is gone.
                self.settle(std::mem::take(pending)).await;
                let _ = reply.send(self.tear_down().await);
            }
            Request::Warnings(reply) => {
                let _ = reply.send(self.dns_problem.iter().cloned().collect());
            }
        }
    }

    /// Writes the rules and answers everybody who waited for them.
    async fn settle(&mut self, pending: Vec<Pending>) {
        if pending.is_empty() {
            return;
        }
        self.take_over_rules().await;
        let written = self.write_rules().await;
        reached("network.rules-settled");
        for one in pending {
            match one {
                Pending::Attached(attachment, handle, reply) => {
                    let answer = match &written {
                        Ok(()) => Ok(*attachment),
                        Err(error) => {
                            self.detach(&handle);
                            Err(from_helper(error.clone()))
                        }
                    };
                    let _ = reply.send(answer);
                }
                Pending::Released(handle, address, reply) => {
                    // A TAP must go even when rules cannot be written; the error is told all the same.
                    let removed = self.remove_tap(&handle, address).await;
                    reached("network.tap-removed");
                    let answer = removed.and(written.clone().map_err(from_helper));
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// Rules of an earlier process hold what is released now, and nobody else will take it out of them.
    async fn take_over_rules(&mut self) {
        if self.base.is_some() {
            return;
        }
        let there = self
            .devices()
            .await
            .is_ok_and(|devices| devices.iter().any(|device| device.kind == OwnedKind::Rules));
        if there && let Err(error) = self.ensure_base().await {
            tracing::warn!(%error, "the rules of an earlier process stay as they are");
        }
    }

    async fn write_rules(&mut self) -> Result<(), HelperError> {
        let Some(base) = &self.base else {
            // Nothing was attached since this process started, and there are no rules of an earlier one.
            return Ok(());
        };
        let guests = match base.owner {
            BridgeOwner::Warren => Guests::WholeBridge,
            BridgeOwner::User => {
                let mut addresses: Vec<_> = self.attached.values().map(|one| one.address).collect();
                addresses.sort_unstable();
                Guests::Addresses(addresses)
            }
        };
        let published = self.attached.values().flat_map(|one| {
            one.spec.ports.iter().map(|mapping| Publish {
                transport: transport(mapping.protocol),
                host_port: mapping.host_port,
                guest_address: one.address,
                guest_port: mapping.guest_port,
            })
        });
        let mut published: Vec<Publish> = published.collect();
        published.sort_by_key(|one| (one.transport, one.host_port));
        let rules = RuleSet {
            installation: self.config.installation.clone(),
            bridge: self.config.bridge.clone(),
            gateway: self.config.gateway,
            guests,
            published,
        };
        if self.written.as_ref() == Some(&rules) {
            return Ok(());
        }
        self.written = None;
        let verb = Verb::ApplyRules {
            rules: rules.clone(),
        };
        self.helper.act(verb).await?;
        self.written = Some(rules);
        Ok(())
    }

    async fn preflight(&self, spec: &AttachmentSpec) -> Result<(), PortError> {
        let own = self.attached.get(&spec.home.handle);
        for mapping in &spec.ports {
            let held = own.is_some_and(|own| {
                own.ports.keys().any(|port| {
                    port.host_port == mapping.host_port && port.protocol == mapping.protocol
                })
            });
            if !held {
                self.bind(&spec.home.handle, mapping).await?;
            }
        }
        Ok(())
    }

    async fn attach(&mut self, spec: &AttachmentSpec) -> Result<Attachment, PortError> {
        let handle = &spec.home.handle;
        let address = spec
            .address
            .ok_or_else(|| PortError::bug("address_missing", "no address"))?;
        if let Some((other, _)) = self
            .attached
            .iter()
            .find(|(other, one)| *other != handle && one.address == address)
        {
            return Err(PortError::conflict(
                "address_taken",
                format!("address {address} belongs to instance {other}"),
            ));
        }
        self.ensure_base().await?;
        reached("network.base-ready");
        let ports = self.take_ports(spec, address).await?;
        reached("network.ports-bound");
        let tap = self
            .helper
            .ensure_tap(
                self.config.installation.clone(),
                helper_handle(handle)?,
                self.config.bridge.clone(),
                self.config.mtu,
                self.config.tap_owner,
            )
            .await
            .map_err(from_helper)?;
        reached("network.tap-ready");
        self.names.set(handle, &spec.names, address);
        self.attached.insert(
            handle.clone(),
            Attached {
                spec: spec.clone(),
                address,
                ports,
            },
        );
        self.attachment(handle, address, tap)
    }

    fn attachment(
        &self,
        handle: &Handle,
        address: Ipv4Addr,
        tap: String,
    ) -> Result<Attachment, PortError> {
        let mac = MacAddress::of(&self.config.installation_id, handle);
        let prefix = self.config.gateway.prefix_len();
        let has_dns = self.base.as_ref().is_some_and(|base| base.dns.is_some());
        Ok(Attachment {
            nic: Nic {
                mac,
                backend: NicBackend::Tap { name: tap },
            },
            guest: GuestNetwork {
                mac,
                address: ipnet::Ipv4Net::new(address, prefix)
                    .map_err(|error| PortError::bug("network_invalid", error.to_string()))?,
                gateway: self.config.gateway.addr(),
                nameservers: if has_dns {
                    vec![self.config.gateway.addr().into()]
                } else {
                    reachable(&self.config.dns_servers)
                },
                search: vec![self.names.domain().to_owned()],
                mtu: u16::try_from(self.config.mtu.get()).unwrap_or(u16::MAX),
            },
        })
    }

    /// The sockets of every port the instance wants: those it has already, and new ones. Those it no longer wants
    /// close when its old entry is replaced.
    async fn take_ports(
        &mut self,
        spec: &AttachmentSpec,
        address: Ipv4Addr,
    ) -> Result<HashMap<PortMapping, PublishedPort>, PortError> {
        let handle = &spec.home.handle;
        // A port that now leads elsewhere must be closed before it can be bound anew.
        if let Some(own) = self.attached.get_mut(handle) {
            let same_place = own.address == address;
            own.ports
                .retain(|port, _| same_place && spec.ports.contains(port));
        }
        let mut fresh = HashMap::new();
        for mapping in &spec.ports {
            let held = self
                .attached
                .get(handle)
                .is_some_and(|own| own.ports.contains_key(mapping));
            if held {
                continue;
            }
            let sockets = self.bind(handle, mapping).await?;
            let target = SocketAddr::from((address, mapping.guest_port));
            let port = publish::serve(sockets, mapping.protocol, target)
                .map_err(|error| PortError::io(format!("publish {mapping}"), error))?;
            fresh.insert(mapping.clone(), port);
        }
        if let Some(own) = self.attached.get_mut(handle) {
            fresh.extend(own.ports.drain());
        }
        Ok(fresh)
    }

    async fn bind(
        &self,
        handle: &Handle,
        mapping: &PortMapping,
    ) -> Result<Vec<std::os::fd::OwnedFd>, PortError> {
        let holder = self.attached.iter().find(|(other, one)| {
            *other != handle
                && one.ports.keys().any(|port| {
                    port.host_port == mapping.host_port && port.protocol == mapping.protocol
                })
        });
        if let Some((_, one)) = holder {
            return Err(PortError::new(
                ErrorClass::Conflict,
                "port_taken",
                format!(
                    "host port {}/{} is published by instance {}",
                    mapping.host_port, mapping.protocol, one.spec.home.id
                ),
            )
            .with_hint("publish another host port, or remove that instance"));
        }
        publish::bind(&self.helper, mapping)
            .await
            .map_err(from_helper)
    }

    /// The bridge, forwarding and the name server. The bridge is looked at each time: somebody may have removed it.
    async fn ensure_base(&mut self) -> Result<(), PortError> {
        let owner = self
            .helper
            .ensure_bridge(
                self.config.installation.clone(),
                self.config.bridge.clone(),
                self.config.gateway,
                self.config.mtu,
            )
            .await
            .map_err(from_helper)?;
        if let Some(base) = &mut self.base {
            base.owner = owner;
            return Ok(());
        }
        self.helper
            .act(Verb::EnableForwarding)
            .await
            .map_err(from_helper)?;
        let dns = match self.serve_names().await {
            Ok(server) => Some(server),
            Err(error) => {
                let words = format!(
                    "guests cannot find each other by name: {}; they use {:?} directly",
                    error.message,
                    reachable(&self.config.dns_servers)
                );
                tracing::warn!("{words}");
                self.dns_problem = Some(words);
                None
            }
        };
        self.base = Some(Base { owner, dns });
        Ok(())
    }

    async fn serve_names(&self) -> Result<DnsServer, PortError> {
        let address = self.config.gateway.addr().into();
        let udp = Verb::BindUdp { address, port: 53 };
        let tcp = Verb::BindTcp { address, port: 53 };
        let udp = self.helper.descriptor(udp).await.map_err(from_helper)?;
        let tcp = self.helper.descriptor(tcp).await.map_err(from_helper)?;
        dns::serve(
            udp,
            tcp,
            Arc::clone(&self.names),
            self.config.gateway.trunc(),
            self.config.dns_servers.clone(),
        )
        .map_err(|error| PortError::io("serve names", error))
    }

    async fn observe(&mut self, spec: &AttachmentSpec) -> Result<Presence, PortError> {
        let ours = self
            .attached
            .get(&spec.home.handle)
            .is_some_and(|one| one.spec == *spec);
        let handle = helper_handle(&spec.home.handle)?;
        if !ours {
            // A cheap look, because it is on the way of every create: an earlier process may have left its TAP.
            let tap = handle.tap_name(&self.config.installation);
            let left = self.attached.contains_key(&spec.home.handle)
                || nix::net::if_::if_nametoindex(tap.as_str()).is_ok();
            return Ok(if left {
                Presence::Partial
            } else {
                Presence::Absent
            });
        }
        let devices = self.devices().await?;
        let is_there = |kind: OwnedKind| devices.iter().any(|device| device.kind == kind);
        let rules = is_there(OwnedKind::Rules);
        if !rules {
            self.written = None;
        }
        Ok(if rules && is_there(OwnedKind::Port(handle)) {
            Presence::Present
        } else {
            Presence::Partial
        })
    }

    async fn devices(&self) -> Result<Vec<OwnedDevice>, PortError> {
        self.helper
            .list_devices(self.config.installation.clone())
            .await
            .map_err(from_helper)
    }

    /// Everything of ours that the kernel has.
    async fn owned(&self) -> Result<Vec<Item>, PortError> {
        let item = |device: OwnedDevice| {
            let (kind, part) = match device.kind {
                OwnedKind::Bridge => (Kind::Device, Part::Installation),
                OwnedKind::Rules => (Kind::Rules, Part::Installation),
                OwnedKind::Tap(handle) => (Kind::Device, of_instance(&handle)?),
                OwnedKind::Port(handle) => (Kind::BridgePort, of_instance(&handle)?),
                OwnedKind::Published(publish) => {
                    let part = Part::Published {
                        address: publish.guest_address,
                    };
                    let shown = format!(
                        "{}/{} to {}:{}",
                        publish.host_port,
                        publish.transport,
                        publish.guest_address,
                        publish.guest_port
                    );
                    return Some(Item::new(Kind::PublishedPort, shown, part));
                }
            };
            Some(Item::new(kind, device.name, part))
        };
        Ok(self.devices().await?.into_iter().filter_map(item).collect())
    }

    /// Forgets an instance here; its sockets close at once.
    fn detach(&mut self, handle: &Handle) -> Option<Ipv4Addr> {
        self.names.remove(handle);
        self.attached.remove(handle).map(|one| one.address)
    }

    async fn remove_tap(
        &self,
        handle: &Handle,
        address: Option<Ipv4Addr>,
    ) -> Result<(), PortError> {
        let verb = Verb::DeleteTap {
            installation: self.config.installation.clone(),
            handle: helper_handle(handle)?,
        };
        self.helper.act(verb).await.map_err(from_helper)?;
        if let Some(address) = address {
            self.helper
                .act(Verb::FlushConntrack { address })
                .await
                .map_err(from_helper)?;
        }
        Ok(())
    }

    async fn tear_down(&mut self) -> Result<(), PortError> {
        for handle in self.attached.keys().cloned().collect::<Vec<_>>() {
            self.detach(&handle);
        }
        self.base = None;
        self.written = None;
        let installation = || self.config.installation.clone();
        let mut failed = None;
        let mut verbs = vec![Verb::DeleteRules {
            installation: installation(),
        }];
        match self.devices().await {
            Ok(devices) => {
                verbs.extend(devices.into_iter().filter_map(|device| match device.kind {
                    OwnedKind::Tap(handle) => Some(Verb::DeleteTap {
                        installation: installation(),
                        handle,
                    }),
                    OwnedKind::Bridge
                    | OwnedKind::Port(_)
                    | OwnedKind::Rules
                    | OwnedKind::Published(_) => None,
                }))
            }
            Err(error) => failed = Some(error),
        }
        verbs.push(Verb::DeleteBridge {
            installation: installation(),
            bridge: self.config.bridge.clone(),
        });
        // Everything is tried, whatever fails.
        for verb in verbs {
            if let Err(error) = self.helper.act(verb).await {
                failed.get_or_insert(from_helper(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A name that is no handle of ours was made by somebody else under our prefix.
fn of_instance(handle: &warren_helper::Handle) -> Option<Part> {
    Some(Part::Network {
        handle: handle.as_str().parse().ok()?,
    })
}

fn helper_handle(handle: &Handle) -> Result<warren_helper::Handle, PortError> {
    warren_helper::Handle::new(handle.as_str()).map_err(|error| from_helper(error.into()))
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

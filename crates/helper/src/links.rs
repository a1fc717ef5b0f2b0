//! Bridges, TAPs and addresses by rtnetlink.
//!
//! A bridge of ours is known by its alias and, in the instant between making and marking it, by its MAC address,
//! which is derived from the installation's id and fixed so that guests' neighbour tables stay right as TAPs come
//! and go (a bridge otherwise takes the lowest MAC of its ports).

use std::net::{IpAddr, Ipv4Addr};

use futures::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec};

use crate::error::HelperError;
use crate::protocol::{BridgeOwner, OwnedDevice, OwnedKind};
use crate::tap;
use crate::values::{BridgeName, Handle, Installation, Mtu};
use warren_crashpoint::reached;

/// A netlink connection for the time of one verb.
pub(crate) struct Links {
    netlink: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What we look at in a device.
#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    alias: Option<String>,
    mac: Vec<u8>,
    kind: Option<InfoKind>,
    mtu: u32,
    controller: Option<u32>,
    up: bool,
}

impl Links {
    /// Opens a connection; the task that serves it ends with the value.
    pub(crate) fn open() -> Result<Self, HelperError> {
        let (connection, netlink, _) = rtnetlink::new_connection()
            .map_err(|error| HelperError::io("open a netlink socket", &error))?;
        Ok(Self {
            netlink,
            connection: tokio::spawn(connection),
        })
    }

    pub(crate) async fn ensure_bridge(
        &self,
        installation: &Installation,
        bridge: &BridgeName,
        gateway: Ipv4Net,
        mtu: Mtu,
    ) -> Result<BridgeOwner, HelperError> {
        let name = bridge.as_str();
        let found = self.find(name).await?;
        self.check_overlap(found.as_ref().map(|device| device.index), gateway)
            .await?;
        let device = match found {
            Some(device) if is_ours(&device, installation) => device,
            Some(device) => return self.use_users_bridge(&device, gateway).await,
            None => {
                let new = LinkBridge::new(name)
                    .address(bridge_mac(installation).to_vec())
                    .build();
                match self.netlink.link().add(new).execute().await {
                    Ok(()) => {}
                    Err(error) => return Err(netlink_error(format!("make bridge {name}"), error)),
                }
                reached("bridge.made");
                self.find(name)
                    .await?
                    .ok_or_else(|| HelperError::NotFound {
                        what: format!("bridge {name}, made a moment ago,"),
                    })?
            }
        };
        self.settle_bridge(&device, installation, gateway, mtu)
            .await?;
        Ok(BridgeOwner::Warren)
    }

    /// Brings a bridge of ours to what it should be, writing only what differs.
    async fn settle_bridge(
        &self,
        device: &Device,
        installation: &Installation,
        gateway: Ipv4Net,
        mtu: Mtu,
    ) -> Result<(), HelperError> {
        let alias = installation.bridge_alias();
        if device.alias.as_deref() != Some(&alias) || device.mtu != mtu.get() || !device.up {
            let change = LinkUnspec::new_with_index(device.index)
                .append_extra_attribute(LinkAttribute::IfAlias(alias))
                .mtu(mtu.get())
                .up()
                .build();
            self.set(format!("set up bridge {}", device.name), change)
                .await?;
            reached("bridge.marked");
        }
        let mut present = false;
        for message in self.addresses(Some(device.index)).await? {
            let Some(net) = address_of(&message) else {
                continue;
            };
            if net == gateway {
                present = true;
            } else {
                // Left from another configuration of ours; it would keep a route to a network that is no more.
                self.netlink
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(|error| {
                        netlink_error(format!("remove {net} from {}", device.name), error)
                    })?;
            }
        }
        if present {
            return Ok(());
        }
        self.netlink
            .address()
            .add(
                device.index,
                IpAddr::V4(gateway.addr()),
                gateway.prefix_len(),
            )
            .execute()
            .await
            .or_else(|error| match errno_of(&error) {
                Some(errno) if errno == nix::errno::Errno::EEXIST as i32 => Ok(()),
                _ => Err(netlink_error(
                    format!("give {gateway} to bridge {}", device.name),
                    error,
                )),
            })
    }

    /// A bridge that we did not make serves when it has the gateway's address; it is left as it is.
    async fn use_users_bridge(
        &self,
        device: &Device,
        gateway: Ipv4Net,
    ) -> Result<BridgeOwner, HelperError> {
        let name = &device.name;
        if device.kind != Some(InfoKind::Bridge) {
            return Err(HelperError::BridgeRefused {
                reason: format!(
                    "{name} is there and is not a bridge: set BRIDGE_NAME to another name"
                ),
            });
        }
        if let Some(owner) = device
            .alias
            .as_deref()
            .and_then(|alias| alias.strip_prefix("warren:"))
        {
            return Err(HelperError::BridgeRefused {
                reason: format!(
                    "bridge {name} belongs to the Warren installation {owner}: set BRIDGE_NAME, SUBNET_CIDR and \
                     SUBNET_GATEWAY to others for this one"
                ),
            });
        }
        let has_gateway = self
            .addresses(Some(device.index))
            .await?
            .iter()
            .filter_map(address_of)
            .any(|net| net.addr() == gateway.addr());
        if !has_gateway {
            return Err(HelperError::BridgeRefused {
                reason: format!(
                    "bridge {name} was not made by Warren and does not have the address {gateway}: give it that \
                     address (`ip address add {gateway} dev {name}`), set SUBNET_CIDR and SUBNET_GATEWAY to what it \
                     has, or set BRIDGE_NAME to a name that is free"
                ),
            });
        }
        if !device.up {
            return Err(HelperError::BridgeRefused {
                reason: format!(
                    "bridge {name} was not made by Warren and is down: `ip link set {name} up`"
                ),
            });
        }
        Ok(BridgeOwner::User)
    }

    /// Refuses a network that another device already is in: routes would be ambiguous.
    async fn check_overlap(
        &self,
        except: Option<u32>,
        gateway: Ipv4Net,
    ) -> Result<(), HelperError> {
        for message in self.addresses(None).await? {
            let index = message.header.index;
            let Some(net) = address_of(&message) else {
                continue;
            };
            let overlaps = net.contains(&gateway.network()) || gateway.contains(&net.network());
            if Some(index) == except || !overlaps {
                continue;
            }
            let device = self
                .name_of(index)
                .await?
                .unwrap_or_else(|| format!("device {index}"));
            return Err(HelperError::SubnetInUse {
                subnet: gateway.trunc().to_string(),
                other: net.to_string(),
                device,
            });
        }
        Ok(())
    }

    pub(crate) async fn delete_bridge(
        &self,
        installation: &Installation,
        bridge: &BridgeName,
    ) -> Result<(), HelperError> {
        match self.find(bridge.as_str()).await? {
            Some(device) if is_ours(&device, installation) => {
                self.delete(device.index, &device.name).await
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) async fn ensure_tap(
        &self,
        installation: &Installation,
        handle: &Handle,
        bridge: &BridgeName,
        mtu: Mtu,
        owner: Option<u32>,
    ) -> Result<String, HelperError> {
        let name = handle.tap_name(installation);
        let alias = installation.tap_alias(handle);
        let controller =
            self.find(bridge.as_str())
                .await?
                .ok_or_else(|| HelperError::NotFound {
                    what: format!("bridge {bridge}"),
                })?;
        let found = self.find(&name).await?;
        let made_here = found.is_none();
        let device = match found {
            Some(device) => device,
            None => {
                let tap = tap::attach(&name)?;
                tap::persist(&tap, &name, owner)?;
                reached("tap.made");
                self.find(&name)
                    .await?
                    .ok_or_else(|| HelperError::NotFound {
                        what: format!("TAP {name}, made a moment ago,"),
                    })?
            }
        };
        check_tap(&device, &alias)?;
        let settled = device.alias.as_deref() == Some(&alias)
            && device.controller == Some(controller.index)
            && device.mtu == mtu.get()
            && device.up;
        if !settled {
            let change = LinkUnspec::new_with_index(device.index)
                .append_extra_attribute(LinkAttribute::IfAlias(alias))
                .controller(controller.index)
                .mtu(mtu.get())
                .up()
                .build();
            let joined = self
                .set(format!("put TAP {name} into {bridge}"), change)
                .await;
            if joined.is_err() && made_here {
                // What cannot be used is not left; why it cannot is what is told.
                drop(self.delete(device.index, &name).await);
            }
            joined.map_err(|error| match error {
                HelperError::Kernel { errno, .. } if errno == nix::errno::Errno::EXFULL as i32 => {
                    HelperError::BridgeFull {
                        bridge: bridge.to_string(),
                    }
                }
                other => other,
            })?;
            reached("tap.joined");
        }
        Ok(name)
    }

    /// Whether the TAP is there and ours, before it is opened.
    pub(crate) async fn expect_tap(
        &self,
        installation: &Installation,
        handle: &Handle,
    ) -> Result<String, HelperError> {
        let name = handle.tap_name(installation);
        let device = self
            .find(&name)
            .await?
            .ok_or_else(|| HelperError::NotFound {
                what: format!("TAP {name}"),
            })?;
        check_tap(&device, &installation.tap_alias(handle))?;
        Ok(name)
    }

    pub(crate) async fn delete_tap(
        &self,
        installation: &Installation,
        handle: &Handle,
    ) -> Result<(), HelperError> {
        let name = handle.tap_name(installation);
        let Some(device) = self.find(&name).await? else {
            return Ok(());
        };
        check_tap(&device, &installation.tap_alias(handle))?;
        self.delete(device.index, &name).await?;
        reached("tap.deleted");
        Ok(())
    }

    /// Every device that carries the installation's id.
    pub(crate) async fn owned(
        &self,
        installation: &Installation,
    ) -> Result<Vec<OwnedDevice>, HelperError> {
        let mut links = self.netlink.link().get().execute();
        let mut owned = Vec::new();
        while let Some(message) = links.next().await {
            let message = message.map_err(|error| netlink_error("list devices", error))?;
            let device = device_of(message);
            let kind = match device.kind {
                Some(InfoKind::Bridge) if is_ours(&device, installation) => OwnedKind::Bridge,
                Some(InfoKind::Tun) => match tap_handle(&device, installation) {
                    Some(handle) => {
                        if device.controller.is_some() {
                            owned.push(OwnedDevice {
                                name: device.name.clone(),
                                kind: OwnedKind::Port(handle.clone()),
                            });
                        }
                        OwnedKind::Tap(handle)
                    }
                    None => continue,
                },
                _ => continue,
            };
            owned.push(OwnedDevice {
                name: device.name,
                kind,
            });
        }
        Ok(owned)
    }

    async fn find(&self, name: &str) -> Result<Option<Device>, HelperError> {
        let mut links = self.netlink.link().get().match_name(name).execute();
        self.one(links.try_next().await, || format!("look for device {name}"))
    }

    async fn name_of(&self, index: u32) -> Result<Option<String>, HelperError> {
        let mut links = self.netlink.link().get().match_index(index).execute();
        let found = self.one(links.try_next().await, || {
            format!("look for device {index}")
        })?;
        Ok(found.map(|device| device.name))
    }

    fn one(
        &self,
        answer: Result<Option<LinkMessage>, rtnetlink::Error>,
        operation: impl Fn() -> String,
    ) -> Result<Option<Device>, HelperError> {
        match answer {
            Ok(message) => Ok(message.map(device_of)),
            Err(error) if errno_of(&error) == Some(nix::errno::Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(netlink_error(operation(), error)),
        }
    }

    async fn addresses(&self, index: Option<u32>) -> Result<Vec<AddressMessage>, HelperError> {
        let mut request = self.netlink.address().get();
        if let Some(index) = index {
            request = request.set_link_index_filter(index);
        }
        request
            .execute()
            .try_collect()
            .await
            .map_err(|error| netlink_error("list addresses", error))
    }

    async fn set(&self, operation: String, change: LinkMessage) -> Result<(), HelperError> {
        self.netlink
            .link()
            .set(change)
            .execute()
            .await
            .map_err(|error| netlink_error(operation, error))
    }

    async fn delete(&self, index: u32, name: &str) -> Result<(), HelperError> {
        match self.netlink.link().del(index).execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno_of(&error) == Some(nix::errno::Errno::ENODEV as i32) => Ok(()),
            Err(error) => Err(netlink_error(format!("remove {name}"), error)),
        }
    }
}

fn device_of(message: LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mac: Vec::new(),
        kind: None,
        mtu: 0,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::IfAlias(alias) => device.alias = Some(alias),
            LinkAttribute::Address(mac) => device.mac = mac,
            LinkAttribute::Mtu(mtu) => device.mtu = mtu,
            LinkAttribute::Controller(index) => device.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                device.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    device
}

/// The IPv4 address in a message, with its prefix. IPv6 addresses on the bridge are the kernel's own business.
fn address_of(message: &AddressMessage) -> Option<Ipv4Net> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let pick = |want_local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) if want_local => Some(*address),
                AddressAttribute::Address(IpAddr::V4(address)) if !want_local => Some(*address),
                _ => None,
            })
    };
    let address: Ipv4Addr = pick(true).or_else(|| pick(false))?;
    Ipv4Net::new(address, message.header.prefix_len).ok()
}

fn is_ours(device: &Device, installation: &Installation) -> bool {
    device.kind == Some(InfoKind::Bridge)
        && match &device.alias {
            Some(alias) => *alias == installation.bridge_alias(),
            None => device.mac == bridge_mac(installation),
        }
}

/// The handle in a TAP's alias or, where a crash left it unmarked, in its name.
fn tap_handle(device: &Device, installation: &Installation) -> Option<Handle> {
    let handle = match &device.alias {
        Some(alias) => alias
            .strip_prefix(&installation.bridge_alias())?
            .strip_prefix(':')?,
        None => device.name.strip_prefix(&installation.tap_prefix())?,
    };
    Handle::new(handle).ok()
}

fn check_tap(device: &Device, alias: &str) -> Result<(), HelperError> {
    let owner = match (&device.kind, &device.alias) {
        (Some(InfoKind::Tun), None) => return Ok(()),
        (Some(InfoKind::Tun), Some(found)) if found == alias => return Ok(()),
        (_, Some(found)) => found.clone(),
        (_, None) => "somebody else: it is not a TAP".into(),
    };
    Err(HelperError::NotOurs {
        device: device.name.clone(),
        owner,
    })
}

/// Locally administered and unicast (IEEE 802c); the rest is FNV-1a over the id.
fn bridge_mac(installation: &Installation) -> [u8; 6] {
    let hash = installation
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

fn errno_of(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

fn netlink_error(operation: impl Into<String>, error: rtnetlink::Error) -> HelperError {
    let errno = errno_of(&error).unwrap_or_else(|| {
        tracing::debug!(%error, "netlink gave no error number");
        nix::errno::Errno::EIO as i32
    });
    HelperError::kernel(operation, errno)
}

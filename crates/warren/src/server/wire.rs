//! Where adapters meet ports: the only place that knows both.

use super::config::{Accel, Config, NetworkChoice};
use super::data_dir::{DataDir, Place};
use super::fake_guests;
use anyhow::Context;
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use warren_agent::{Agent, AgentConfig, AgentLink, Ports, SealKey};
use warren_core::network::Subnet;
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::ports::{Clock, HostLink, Hypervisor, Network};
use warren_helper::{Helper, InProcess};
use warren_hypervisor::{AccelChoice, Cache, Fake, KernelChoice, Qemu, QemuConfig};
use warren_network::{BridgeConfig, BridgeNetwork, NoNetwork, UserConfig, UserNetwork};

/// The agent that is PID 1 in every guest: static, built with this binary (`build.rs`).
static GUEST_AGENT: &[u8] = include_bytes!(env!("WARREN_GUEST_AGENT"));

/// A hypervisor that was asked for and cannot be had, and why.
pub(crate) type Unusable = (String, String);

/// The drivers that the configuration names, and those that cannot be used here, with the reason.
pub(crate) fn hypervisors(
    config: &Config,
    fallback_cache: &Path,
) -> (Vec<Arc<dyn Hypervisor>>, Vec<Unusable>) {
    let mut drivers: Vec<Arc<dyn Hypervisor>> = Vec::new();
    let mut unusable = Vec::new();
    for kind in &config.hypervisors {
        match kind {
            HypervisorKind::QemuMicrovm => drivers.push(Arc::new(qemu(config, fallback_cache))),
            HypervisorKind::Fake => drivers.push(Arc::new(Fake::new(fake_guests::serve()))),
            HypervisorKind::Qemu
            | HypervisorKind::CloudHypervisor
            | HypervisorKind::Firecracker
            | HypervisorKind::Vz => {
                unusable.push((
                    kind.to_string(),
                    "this version of Warren has no driver for it yet".to_owned(),
                ));
            }
        }
    }
    (drivers, unusable)
}

fn qemu(config: &Config, fallback_cache: &Path) -> Qemu {
    let kernel = match &config.kernel {
        Some(image) => KernelChoice::File {
            image: image.clone(),
            modules: None,
        },
        None => KernelChoice::Auto,
    };
    let accel = match config.accel {
        Accel::Auto => AccelChoice::Auto,
        Accel::Kvm => AccelChoice::Kvm,
        Accel::Tcg => AccelChoice::Tcg,
    };
    let settings = QemuConfig {
        binary: config.qemu.clone(),
        accel,
        cache: Cache::from_environment(fallback_cache),
        kernel,
        guest_agent: Bytes::from_static(GUEST_AGENT),
        extra_cmdline: Vec::new(),
    };
    Qemu::new(settings, helper())
}

fn helper() -> Arc<dyn Helper> {
    Arc::new(InProcess)
}

/// The hidden subcommand under which this binary guards one guest's user-mode network.
pub(crate) const NETWORK_GUARD: &str = "network-guard";

/// Whether a bridge can be had, or why not.
fn may_bridge() -> Result<(), String> {
    let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::NET_ADMIN)
    });
    if !capable {
        return Err("a bridge needs CAP_NET_ADMIN: run the server as root".to_owned());
    }
    if !["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
        .iter()
        .any(|nft| Path::new(nft).exists())
    {
        return Err("a bridge needs nft: install nftables".to_owned());
    }
    Ok(())
}

fn bridge_network(config: &Config, data: &Place) -> anyhow::Result<BridgeNetwork> {
    let subnet = Subnet::new(&config.subnet_cidr, config.subnet_gateway)
        .context("SUBNET_CIDR and SUBNET_GATEWAY")?;
    let settings = BridgeConfig {
        bridge: config.bridge_name.clone(),
        dns_servers: vec![SocketAddr::new(config.dns_server, 53)],
        ..BridgeConfig::new(data.installation.clone(), subnet)
    };
    BridgeNetwork::start(settings, helper())
        .map_err(|error| anyhow::anyhow!("{}", error.sentence()))
}

fn user_network(config: &Config, data: &Place) -> anyhow::Result<UserNetwork> {
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let settings = UserConfig {
        installation: data.installation.clone(),
        instances: data.instances.clone(),
        dns_servers: vec![SocketAddr::new(config.dns_server, 53)],
        guard: vec![binary.into_os_string(), NETWORK_GUARD.into()],
    };
    UserNetwork::start(settings, helper()).map_err(|error| anyhow::anyhow!("{}", error.sentence()))
}

/// The guests' network: what was asked for, or the best that works.
///
/// # Errors
/// A bad subnet, or a mode that was asked for and does not work here.
pub(crate) fn network(config: &Config, data: &Place) -> anyhow::Result<Arc<dyn Network>> {
    Ok(match config.network {
        NetworkChoice::None => Arc::new(NoNetwork),
        NetworkChoice::Bridge => {
            may_bridge().map_err(|reason| anyhow::anyhow!("{reason}, or choose --network user"))?;
            Arc::new(bridge_network(config, data)?)
        }
        NetworkChoice::User => Arc::new(user_network(config, data)?),
        NetworkChoice::Auto => match may_bridge() {
            Ok(()) => Arc::new(bridge_network(config, data)?),
            Err(no_bridge) => match user_network(config, data) {
                Ok(network) => {
                    tracing::info!(reason = no_bridge, "guests are connected in user mode");
                    Arc::new(network)
                }
                Err(no_user) => {
                    tracing::warn!(bridge = no_bridge, user = %no_user, "guests have no network: neither mode works here");
                    Arc::new(NoNetwork)
                }
            },
        },
    })
}

/// The adapters of this host, and what the agent is told.
///
/// # Errors
/// When a directory or the network cannot be set up.
pub(crate) fn adapters(
    config: &Config,
    data: &DataDir,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<(AgentConfig, Ports)> {
    let (hypervisors, unusable) = hypervisors(config, &data.cache());
    let store = super::images::open(config, data)?;
    let ports = Ports {
        hypervisors,
        images: store.clone(),
        registry: store.clone(),
        outlet: store.clone(),
        commits: store,
        volumes: super::images::volumes(data)?,
        network: network(config, &data.place())?,
        clock,
    };
    let settings = AgentConfig {
        data: data.root().to_owned(),
        instances: data.instances(),
        set_aside: data.set_aside(),
        installation: data.installation.clone(),
        seal: SealKey::new(data.host_secret()?.bytes()),
        unusable,
    };
    Ok((settings, ports))
}

/// The host's side: the agent over its adapters.
///
/// # Errors
/// When a directory or the network cannot be set up.
pub(crate) fn host(
    config: &Config,
    data: &DataDir,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn HostLink>> {
    let (settings, ports) = adapters(config, data, clock)?;
    let agent =
        Agent::start(settings, ports).map_err(|error| anyhow::anyhow!("{}", error.sentence()))?;
    Ok(Arc::new(AgentLink(agent)))
}

//! What the parts of the agent share: its adapters, where it keeps its things, and what others may see and
//! do of one instance.

use crate::guest_session::GuestSession;
use crate::log_store::LogStore;
use crate::saved::SealKey;
use crate::status_board::StatusBoard;
use crate::trace::Cause;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};
use warren_core::instance::InstanceIntent;
use warren_core::ports::network::AttachmentSpec;
use warren_core::ports::{
    Clock, Commits, Hypervisor, ImageOutlet, Images, InstanceHome, Network, Registry, Volumes,
};
use warren_core::{InstallationId, InstanceId};

/// The adapters this host has.
#[derive(Clone)]
pub struct Ports {
    /// Usable hypervisors, best first.
    pub hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Their content, as a registry serves it.
    pub registry: Arc<dyn Registry>,
    /// Their ways out.
    pub outlet: Arc<dyn ImageOutlet>,
    /// Images of instances' changes.
    pub commits: Arc<dyn Commits>,
    /// Writable disks.
    pub volumes: Arc<dyn Volumes>,
    /// The guests' network.
    pub network: Arc<dyn Network>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Where the agent keeps its things.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The data directory, of which the others are parts.
    pub data: PathBuf,
    /// `<data>/instances`: one directory per instance, named by its handle.
    pub instances: PathBuf,
    /// `<data>/set-aside`: disks of instances of which no record can be read any more.
    pub set_aside: PathBuf,
    /// In every name.
    pub installation: InstallationId,
    /// With which this host seals what it saves of machines.
    pub seal: SealKey,
    /// Hypervisors that were asked for and do not work here: name and reason, for the report.
    pub unusable: Vec<(String, String)>,
}

/// What all actors share.
pub(crate) struct Context {
    pub(crate) ports: Ports,
    pub(crate) config: AgentConfig,
    pub(crate) board: StatusBoard,
}

/// What others may see and do of one instance.
pub(crate) struct InstanceShared {
    pub(crate) home: InstanceHome,
    pub(crate) wish: watch::Sender<InstanceIntent>,
    /// Who asked for the newest of them.
    pub(crate) cause: Cause,
    pub(crate) session: watch::Sender<Option<Arc<GuestSession>>>,
    /// Whether no more output is to come: the run is over and no restart is pending.
    pub(crate) output_over: watch::Sender<bool>,
    /// Makes the actor look at everything anew.
    pub(crate) look_again: Notify,
    pub(crate) workload_log: LogStore,
    pub(crate) console_log: LogStore,
}

impl InstanceShared {
    pub(crate) fn new(home: InstanceHome, intent: InstanceIntent) -> std::io::Result<Self> {
        Ok(InstanceShared {
            workload_log: LogStore::open(home.directory.join("workload.log"))?,
            console_log: LogStore::open(home.directory.join("console.log"))?,
            home,
            wish: watch::Sender::new(intent),
            cause: Cause::default(),
            session: watch::Sender::new(None),
            output_over: watch::Sender::new(false),
            look_again: Notify::new(),
        })
    }
}

/// The instances that have an actor.
pub(crate) type Actors = Mutex<BTreeMap<InstanceId, Arc<InstanceShared>>>;

/// The writable disk's place.
pub(crate) fn disk_path(home: &InstanceHome) -> PathBuf {
    home.directory.join("disk.ext4")
}

/// What the network is asked for.
pub(crate) fn attachment_spec(home: &InstanceHome, intent: &InstanceIntent) -> AttachmentSpec {
    let mut names = vec![intent.slug.clone()];
    if let Some(hostname) = &intent.spec.hostname
        && *hostname != intent.slug
    {
        names.push(hostname.to_ascii_lowercase());
    }
    AttachmentSpec {
        home: home.clone(),
        names,
        address: intent.address,
        ports: intent.spec.ports.clone(),
    }
}

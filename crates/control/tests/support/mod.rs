//! A host that plays its part without machines: what an instance does is written in its command.
//!
//! - `["exit", "N"]`: runs, then ends with N;
//! - `["fail"]`: its start fails;
//! - `["hang"]`: stays Initializing;
//! - anything else: runs until it is stopped.

mod clock;
mod commands;
mod exec;
mod files;
mod images;
mod life;
mod link;
mod registry;
mod sockets;
mod upkeep;

pub(crate) use clock::TestClock;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::sync::{broadcast, watch};
use warren_core::host::{HostReport, NetworkMode, NetworkReport};
use warren_core::image::{ImageConfig, ImageRecord};
use warren_core::instance::{InstanceIntent, InstanceStatus};
use warren_core::inventory::Item;
use warren_core::network::Subnet;
use warren_core::ports::guest_commands::DetachedCommand;
use warren_core::ports::host_link::{LogLine, OutputStream};
use warren_core::ports::hypervisor::{Accelerator, HypervisorKind, HypervisorReport};
use warren_core::{InstanceId, MemoryMib, Timestamp};

/// A host without machines.
pub(crate) struct Host {
    pub(crate) intents: Mutex<BTreeMap<InstanceId, InstanceIntent>>,
    statuses: Mutex<BTreeMap<InstanceId, InstanceStatus>>,
    changes: broadcast::Sender<InstanceStatus>,
    images: Mutex<Vec<ImageRecord>>,
    pub(crate) tree: Mutex<files::Tree>,
    commands: Mutex<Vec<(InstanceId, DetachedCommand)>>,
    pub(crate) taken_ports: Mutex<BTreeSet<u16>>,
    pub(crate) logs: Mutex<Vec<LogLine>>,
    pub(crate) applied: Mutex<usize>,
    pub(crate) synced: Mutex<usize>,
    pub(crate) refuse_applies: Mutex<usize>,
    pub(crate) report: Mutex<HostReport>,
    pub(crate) pulls_held: watch::Sender<bool>,
    /// What each look at the host finds; the last one is found for ever.
    pub(crate) looks: Mutex<Vec<Vec<Item>>>,
    pub(crate) removed: Mutex<Vec<Item>>,
    /// Ids of images that are found damaged.
    pub(crate) damaged: Mutex<BTreeSet<String>>,
    /// How often it was asked for a routine prune.
    pub(crate) tidied: Mutex<usize>,
    content: registry::Content,
}

pub(crate) fn now() -> Timestamp {
    Timestamp::now_utc()
}

pub(crate) fn image(id: &str, name: &str) -> ImageRecord {
    ImageRecord {
        id: id.into(),
        name: name.into(),
        digest: format!("sha256:{:0>64}", id.len()),
        platform: "linux/amd64".into(),
        created_at: now(),
        size_bytes: 1 << 20,
        config: ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["run".into()],
            env: vec!["PATH=/bin".into()],
            ..ImageConfig::default()
        },
        tags: BTreeMap::new(),
    }
}

impl Host {
    pub(crate) fn new() -> Arc<Self> {
        let subnet = Subnet::new("10.9.0.0/16", [10, 9, 0, 1].into()).expect("a subnet");
        Arc::new(Host {
            intents: Mutex::default(),
            statuses: Mutex::default(),
            changes: broadcast::Sender::new(4096),
            images: Mutex::new(vec![
                image("img-nginx", "docker.io/library/nginx:1.27"),
                image("busybox", "localhost:5000/team/busybox:latest"),
            ]),
            tree: Mutex::new(files::beginning()),
            commands: Mutex::default(),
            taken_ports: Mutex::default(),
            logs: Mutex::new(
                (1..=10)
                    .map(|seq| LogLine {
                        seq,
                        at: now() - std::time::Duration::from_secs(100 - seq),
                        stream: OutputStream::Stdout,
                        text: format!("line {seq}"),
                    })
                    .collect(),
            ),
            applied: Mutex::new(0),
            synced: Mutex::new(0),
            refuse_applies: Mutex::new(0),
            report: Mutex::new(HostReport {
                cpus: 8,
                memory: MemoryMib(1 << 20),
                disk_free: 1 << 40,
                disk_total: 1 << 41,
                hypervisors: vec![HypervisorReport {
                    kind: HypervisorKind::Fake,
                    version: "1".into(),
                    binary: "/none".into(),
                    accelerator: Accelerator::None,
                    reason: "a double".into(),
                    kernel: "none".into(),
                    capabilities: vec!["pause".into()],
                }],
                unusable: vec![("firecracker".into(), "it is not on PATH".into())],
                network: NetworkReport {
                    mode: NetworkMode::Bridge,
                    subnet: Some(subnet),
                    reason: "a double".into(),
                    warnings: Vec::new(),
                },
            }),
            pulls_held: watch::Sender::new(false),
            looks: Mutex::default(),
            removed: Mutex::default(),
            damaged: Mutex::default(),
            tidied: Mutex::new(0),
            content: registry::Content::default(),
        })
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().expect("no test panics with it")
    }

    /// The image with the id `id` has this digest.
    pub(crate) fn use_digest(&self, id: &str, digest: &str) {
        for image in Self::lock(&self.images)
            .iter_mut()
            .filter(|image| image.id == id)
        {
            digest.clone_into(&mut image.digest);
        }
    }
}

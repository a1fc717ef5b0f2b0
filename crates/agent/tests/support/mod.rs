//! A host whose parts do their work in turns that a seed decides: the same seed, the same run. Nothing in it
//! waits for time or for the kernel.

use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use time::macros::datetime;
use warren_core::host::{NetworkMode, NetworkReport};
use warren_core::image::{ImageConfig, ImageRecord};
use warren_core::instance::{Desired, InstanceIntent, InstanceSpec};
use warren_core::inventory::{Item, Kind, Part};
use warren_core::network::MacAddress;
use warren_core::ports::hypervisor::{
    Accelerator, Hypervisor, HypervisorKind, HypervisorReport, MachineConfig, Nic, NicBackend,
    ProcessIdentity, VmmSeen, VmmUsage,
};
use warren_core::ports::images::{
    ImageUpkeep, LoadRequest, ProgressSink, PruneRequest, PullRequest, PushRequest, Pushed,
};
use warren_core::ports::network::{
    Attachment, AttachmentSpec, GuestNetwork, Network, NetworkUsage,
};
use warren_core::ports::{Clock, Images, InstanceHome, Presence, Volumes};
use warren_core::storage::{ImagesUsage, Pruned, Repair, Verification};
use warren_core::units::{ByteSize, MemoryMib};
use warren_core::{Handle, InstallationId, PortError, Timestamp};

/// Decides whose turn it is: every await of a part of the host gives way a number of times that comes from here.
pub(crate) struct Turns(Mutex<u64>);

impl Turns {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Turns(Mutex::new(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        )))
    }

    /// xorshift64*.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    /// Lets others go first, or not.
    pub(crate) async fn pass(&self) {
        for _ in 0..self.below(5) {
            GiveWay(false).await;
        }
    }
}

struct GiveWay(bool);

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What the kernel holds, and what was wrongly taken away from it.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) taps: BTreeSet<Handle>,
    /// Instances that were asked for and not asked away.
    pub(crate) wanted: BTreeSet<Handle>,
    pub(crate) swept: Vec<Handle>,
    pub(crate) wronged: Vec<Handle>,
    /// Everything that happened, in order.
    pub(crate) history: Vec<String>,
}

/// A network of nothing but names.
pub(crate) struct TurnNetwork {
    pub(crate) turns: Arc<Turns>,
    pub(crate) kernel: Arc<Mutex<Kernel>>,
}

impl TurnNetwork {
    fn kernel(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Network for TurnNetwork {
    async fn report(&self) -> Result<NetworkReport, PortError> {
        Ok(NetworkReport {
            mode: NetworkMode::Bridge,
            subnet: None,
            reason: String::new(),
            warnings: Vec::new(),
        })
    }

    async fn preflight(&self, _spec: &AttachmentSpec) -> Result<(), PortError> {
        Ok(())
    }

    async fn ensure(&self, spec: &AttachmentSpec) -> Result<Attachment, PortError> {
        self.turns.pass().await;
        {
            let mut kernel = self.kernel();
            kernel.taps.insert(spec.home.handle.clone());
            kernel.history.push(format!("made {}", spec.home.handle));
        }
        // The device is there, the rules are not: where a sweep would hurt most.
        self.turns.pass().await;
        let mac = MacAddress::of(&spec.home.installation, &spec.home.handle);
        Ok(Attachment {
            nic: Nic {
                mac,
                backend: NicBackend::Tap {
                    name: "tap".to_owned(),
                },
            },
            guest: GuestNetwork {
                mac,
                address: "10.0.0.2/24".parse().expect("an address"),
                gateway: [10, 0, 0, 1].into(),
                nameservers: Vec::new(),
                search: Vec::new(),
                mtu: 1500,
            },
        })
    }

    async fn observe(&self, spec: &AttachmentSpec) -> Result<Presence, PortError> {
        self.turns.pass().await;
        Ok(if self.kernel().taps.contains(&spec.home.handle) {
            Presence::Partial
        } else {
            Presence::Absent
        })
    }

    async fn release(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.turns.pass().await;
        {
            let mut kernel = self.kernel();
            kernel.taps.remove(&home.handle);
            kernel.history.push(format!("released {}", home.handle));
        }
        self.turns.pass().await;
        Ok(())
    }

    async fn owned(&self) -> Result<Vec<Item>, PortError> {
        self.turns.pass().await;
        let part = |handle: &Handle| Part::Network {
            handle: handle.clone(),
        };
        let taps: Vec<Item> = {
            let mut kernel = self.kernel();
            kernel.history.push("looked".to_owned());
            let item = |handle| Item::new(Kind::Device, "tap", part(handle));
            kernel.taps.iter().map(item).collect()
        };
        // What was seen is old by the time it is told.
        self.turns.pass().await;
        Ok(taps)
    }

    async fn sweep(&self, handle: &Handle) -> Result<(), PortError> {
        self.turns.pass().await;
        let mut kernel = self.kernel();
        if kernel.wanted.contains(handle) {
            kernel.wronged.push(handle.clone());
        }
        kernel.taps.remove(handle);
        kernel.swept.push(handle.clone());
        kernel.history.push(format!("swept {handle}"));
        Ok(())
    }

    async fn tear_down(&self) -> Result<(), PortError> {
        Ok(())
    }

    async fn usage(&self, _home: &InstanceHome) -> Result<NetworkUsage, PortError> {
        Ok(NetworkUsage::default())
    }
}

/// Machines that boot for ever.
pub(crate) struct TurnMachines {
    pub(crate) turns: Arc<Turns>,
    pub(crate) running: Mutex<BTreeMap<Handle, ProcessIdentity>>,
}

impl TurnMachines {
    pub(crate) fn new(turns: &Arc<Turns>) -> Arc<Self> {
        Arc::new(TurnMachines {
            turns: Arc::clone(turns),
            running: Mutex::default(),
        })
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<Handle, ProcessIdentity>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Hypervisor for TurnMachines {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Fake
    }

    async fn probe(&self) -> Result<HypervisorReport, PortError> {
        Ok(HypervisorReport {
            kind: HypervisorKind::Fake,
            version: String::new(),
            binary: PathBuf::new(),
            accelerator: Accelerator::None,
            reason: String::new(),
            kernel: String::new(),
            capabilities: Vec::new(),
        })
    }

    async fn start(&self, machine: &MachineConfig) -> Result<ProcessIdentity, PortError> {
        self.turns.pass().await;
        let process = ProcessIdentity {
            pid: 1 << 23,
            start_time: 1,
            boot_id: "boot".to_owned(),
        };
        self.running()
            .insert(machine.home.handle.clone(), process.clone());
        Ok(process)
    }

    async fn observe(&self, home: &InstanceHome) -> Result<VmmSeen, PortError> {
        self.turns.pass().await;
        Ok(match self.running().get(&home.handle).cloned() {
            Some(process) => VmmSeen::Running { process },
            None => VmmSeen::Absent,
        })
    }

    async fn open_channel(&self, _home: &InstanceHome) -> Result<OwnedFd, PortError> {
        std::future::pending().await
    }

    async fn open_console(&self, _home: &InstanceHome) -> Result<OwnedFd, PortError> {
        Err(PortError::retry("no_console", "no console"))
    }

    async fn wait_exit(&self, _home: &InstanceHome) -> Result<(), PortError> {
        std::future::pending().await
    }

    async fn destroy(&self, home: &InstanceHome) -> Result<(), PortError> {
        self.turns.pass().await;
        self.running().remove(&home.handle);
        Ok(())
    }

    async fn usage(&self, _home: &InstanceHome) -> Result<VmmUsage, PortError> {
        Ok(VmmUsage::default())
    }
}

/// Images and disks that are there as soon as somebody asks.
pub(crate) struct TurnDisks(pub(crate) Arc<Turns>);

#[async_trait]
impl Volumes for TurnDisks {
    async fn ensure_empty(&self, _path: &Path, _size: ByteSize) -> Result<(), PortError> {
        self.0.pass().await;
        Ok(())
    }

    async fn observe(&self, _path: &Path) -> Result<Presence, PortError> {
        Ok(Presence::Absent)
    }

    async fn remove(&self, _path: &Path) -> Result<(), PortError> {
        self.0.pass().await;
        Ok(())
    }

    async fn usage(&self, _path: &Path) -> Result<ByteSize, PortError> {
        Ok(ByteSize(0))
    }

    async fn ready_made(&self) -> Result<ByteSize, PortError> {
        Ok(ByteSize(0))
    }
}

#[async_trait]
impl Images for TurnDisks {
    fn check_pull(&self, _: &PullRequest) -> Result<(), PortError> {
        Err(not_here())
    }

    async fn push(&self, _: PushRequest, _: ProgressSink) -> Result<Pushed, PortError> {
        Err(not_here())
    }

    async fn pull(&self, _: PullRequest, _: ProgressSink) -> Result<ImageRecord, PortError> {
        Err(not_here())
    }

    async fn load(&self, _: LoadRequest, _: ProgressSink) -> Result<Vec<ImageRecord>, PortError> {
        Err(not_here())
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        Ok(Vec::new())
    }

    async fn find(&self, _wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        Ok(None)
    }

    async fn disk(&self, _digest: &str) -> Result<PathBuf, PortError> {
        self.0.pass().await;
        Ok(PathBuf::from("/nonexistent/image"))
    }

    async fn remove(&self, _id: &str, _in_use: &[String]) -> Result<(), PortError> {
        Ok(())
    }

    fn upkeep(&self) -> &dyn ImageUpkeep {
        self
    }
}

#[async_trait]
impl ImageUpkeep for TurnDisks {
    async fn mark_used(&self, _digest: &str) -> Result<(), PortError> {
        Ok(())
    }

    async fn usage(&self, _in_use: &[String]) -> Result<ImagesUsage, PortError> {
        Err(not_here())
    }

    async fn prune(&self, _request: PruneRequest) -> Result<Pruned, PortError> {
        Err(not_here())
    }

    async fn verify(&self, _id: &str, _repair: Repair) -> Result<Verification, PortError> {
        Err(not_here())
    }
}

fn not_here() -> PortError {
    PortError::unsupported("no_images", "this host has no images")
}

/// Time that passes when somebody sleeps.
pub(crate) struct TurnClock {
    pub(crate) turns: Arc<Turns>,
    pub(crate) passed: Mutex<Duration>,
    /// By how much somebody has moved the wall clock.
    pub(crate) moved: Mutex<time::Duration>,
}

impl TurnClock {
    pub(crate) fn new(turns: &Arc<Turns>) -> Self {
        TurnClock {
            turns: Arc::clone(turns),
            passed: Mutex::default(),
            moved: Mutex::default(),
        }
    }
}

#[async_trait]
impl Clock for TurnClock {
    fn now(&self) -> Timestamp {
        let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        datetime!(2026-01-01 00:00 UTC) + self.monotonic() + moved
    }

    fn monotonic(&self) -> Duration {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sleep(&self, time: Duration) {
        self.turns.pass().await;
        GiveWay(false).await;
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }
}

pub(crate) fn installation() -> InstallationId {
    InstallationId::from_entropy([1; 3])
}

/// An instance with an interface.
pub(crate) fn intent(number: u8, generation: u64, desired: Desired) -> InstanceIntent {
    InstanceIntent {
        id: format!("i{number}").parse().expect("an id"),
        handle: Handle::from_entropy([number; 5]),
        tenant: "default".to_owned(),
        spec: InstanceSpec {
            name: format!("i{number}"),
            image: "i".to_owned(),
            vcpus: 1,
            memory: MemoryMib(64),
            memory_max: MemoryMib(64),
            disk: ByteSize(16 << 20),
            env: Default::default(),
            entrypoint: None,
            cmd: Some(vec!["sleep".to_owned(), "1000".to_owned()]),
            working_dir: None,
            user: None,
            hostname: None,
            ssh_keys: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            network: Default::default(),
            restart: Default::default(),
            hypervisor: Default::default(),
            terminal: Default::default(),
            stdin: Default::default(),
            removal: Default::default(),
            timeout_seconds: None,
            carried: Default::default(),
        },
        slug: format!("i{number}"),
        image_digest: "sha256:0".to_owned(),
        image_config: ImageConfig::default(),
        generation,
        desired,
        run: 1,
        address: Some([10, 0, 0, 10 + number].into()),
        stop_grace_seconds: 1,
        created_at: datetime!(2026-01-01 00:00 UTC),
    }
}

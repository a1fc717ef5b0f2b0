//! Every step and every teardown, carried out twice (reliability: the same result): on the fake hypervisor with the
//! guest's double, with real disks and real files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::context::{AgentConfig, Ports};
use crate::status_board::StatusBoard;
use crate::support::{Kernel, TurnClock, TurnDisks, TurnNetwork, Turns, installation, intent};
use crate::{Agent, AgentLink, SealKey};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::net::UnixStream;
use warren_core::planner::STARTS;
use warren_core::ports::hypervisor::{HypervisorKind, VmmSeen};
use warren_core::ports::{HostLink, Presence};
use warren_core::state::StateName;
use warren_guest::double::{Behaviour, Double};
use warren_guest::protocol::AttachKey;
use warren_hypervisor::Fake;
use warren_hypervisor::fake::{Failure, GuestLine, GuestSide};
use warren_image::{ImageStore, Options, WritableDisks};

/// Guests that keep their state between hosts.
fn guests() -> Arc<Fake> {
    let known: Arc<Mutex<HashMap<ProcessIdentity, Double>>> = Arc::default();
    Arc::new(Fake::new(Arc::new(move |side: GuestSide| {
        if side.line == GuestLine::Console {
            return;
        }
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let power = side.power;
        let guest = known.entry(side.process.clone()).or_insert_with(|| {
            let guest = Double::new(Behaviour::default());
            let over = guest.clone();
            tokio::spawn(async move {
                over.powered_off().await;
                power.off();
            });
            guest
        });
        let guest = guest.clone();
        let words = &side.machine.boot_args;
        let key = words
            .iter()
            .find_map(|word| word.strip_prefix("warren.attach="));
        let key: AttachKey = key.unwrap().parse().unwrap();
        let stream = UnixStream::from_std(side.stream.into()).unwrap();
        tokio::spawn(async move {
            let _ended = guest.serve(stream, &key).await;
        });
    })))
}

/// A world with one instance in it.
struct World {
    context: Context,
    shared: InstanceShared,
    intent: InstanceIntent,
    wishes: watch::Receiver<InstanceIntent>,
    record: HostRecord,
    hypervisor: Arc<dyn Hypervisor>,
    kernel: Arc<Mutex<Kernel>>,
    session: Option<Arc<GuestSession>>,
    attachment: Option<Attachment>,
    image_disk: Option<PathBuf>,
    process: Option<ProcessIdentity>,
}

/// What can be seen of the world.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    files: BTreeMap<String, u64>,
    vmm: VmmSeen,
    network: Presence,
    disk: Presence,
    taps: usize,
}

/// A host with nothing on it, and what its kernel holds.
fn host(data: &Path, hypervisor: Arc<dyn Hypervisor>) -> (AgentConfig, Ports, Arc<Mutex<Kernel>>) {
    let turns = Turns::new(1);
    let kernel = Arc::new(Mutex::new(Kernel::default()));
    let config = AgentConfig {
        data: data.to_owned(),
        instances: data.join("instances"),
        set_aside: data.join("set-aside"),
        installation: installation(),
        seal: SealKey::new(&[7; 32]),
        unusable: Vec::new(),
    };
    let store = Arc::new(ImageStore::open(data, Options::default()).unwrap());
    let ports = Ports {
        hypervisors: vec![hypervisor],
        images: Arc::new(TurnDisks(Arc::clone(&turns))),
        registry: store.clone(),
        outlet: store.clone(),
        commits: store,
        volumes: Arc::new(WritableDisks::open(data).unwrap()),
        network: Arc::new(TurnNetwork {
            turns: Arc::clone(&turns),
            kernel: Arc::clone(&kernel),
        }),
        clock: Arc::new(TurnClock::new(&turns)),
    };
    (config, ports, kernel)
}

impl World {
    fn new(data: &Path) -> Self {
        let hypervisor: Arc<dyn Hypervisor> = guests();
        let (config, ports, kernel) = host(data, Arc::clone(&hypervisor));
        let intent = intent(1, 1, Desired::Running);
        let home = InstanceHome {
            id: intent.id.clone(),
            handle: intent.handle.clone(),
            installation: installation(),
            directory: config.instances.join(intent.handle.as_str()),
        };
        let shared = InstanceShared::new(home, intent.clone()).unwrap();
        World {
            wishes: shared.wish.subscribe(),
            record: HostRecord::new(intent.clone(), HypervisorKind::Fake),
            context: Context {
                ports,
                config,
                board: StatusBoard::new(),
            },
            shared,
            intent,
            hypervisor,
            kernel,
            session: None,
            attachment: None,
            image_disk: None,
            process: None,
        }
    }

    async fn carry_out(&self, step: Step) -> Result<Effect, PortError> {
        let scope = StepScope {
            context: &self.context,
            shared: &self.shared,
            intent: &self.intent,
            wishes: self.wishes.clone(),
            record: &self.record,
            hypervisor: &self.hypervisor,
            session: self.session.as_ref(),
            attachment: self.attachment.as_ref(),
            image_disk: self.image_disk.as_ref(),
            process: self.process.as_ref(),
        };
        scope.carry_out(step).await
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Image(path) => self.image_disk = Some(path),
            Effect::Network(attachment) => self.attachment = Some(*attachment),
            Effect::Started(process) | Effect::Restored(process) => self.process = Some(process),
            Effect::Attached(session) => self.session = Some(session),
            _ => {}
        }
    }

    async fn look(&self) -> Sight {
        let home = &self.shared.home;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&home.directory).into_iter().flatten() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            // A log grows, and a record says when.
            let grows = name.ends_with(".log") || name == "record.json";
            let size = if grows {
                0
            } else {
                entry.metadata().unwrap().len()
            };
            files.insert(name, size);
        }
        let ports = &self.context.ports;
        let spec = attachment_spec(home, &self.intent);
        Sight {
            files,
            vmm: self.hypervisor.observe(home).await.unwrap(),
            network: ports.network.observe(&spec).await.unwrap(),
            disk: ports.volumes.observe(&disk_path(home)).await.unwrap(),
            taps: self.kernel.lock().unwrap().taps.len(),
        }
    }
}

/// A whole life, with every step there is: none can be done before those it stands on.
const LIFE: [Step; 22] = [
    Step::RecordIntent,
    Step::EnsureImage,
    Step::EnsureDisk,
    Step::EnsureNetwork,
    Step::StartVmm,
    Step::AttachGuest,
    Step::BootGuest,
    Step::Pause,
    Step::SaveMachine,
    Step::DestroyVmm,
    Step::ReleaseNetwork,
    Step::EnsureNetwork,
    Step::RestoreVmm,
    Step::Resume,
    Step::AttachGuest,
    Step::ShutDownGuest,
    Step::RecordExit,
    Step::DestroyVmm,
    Step::ReleaseNetwork,
    Step::RemoveSaved,
    Step::RemoveDisk,
    Step::RemoveDirectory,
];

#[tokio::test]
async fn every_step_and_every_teardown_done_twice_leaves_what_it_left_when_done_once() {
    let data = tempfile::tempdir().unwrap();
    let mut world = World::new(data.path());
    let mut refused = Vec::new();
    assert_eq!(
        LIFE.iter().collect::<BTreeSet<_>>(),
        Step::ALL.iter().collect()
    );
    for step in LIFE {
        let effect = world.carry_out(step).await.unwrap_or_else(|error| {
            panic!("{step:?}: {error:?}");
        });
        world.apply(effect);
        let once = world.look().await;
        match world.carry_out(step).await {
            Ok(effect) => world.apply(effect),
            Err(error) => refused.push((step, error.code)),
        }
        assert_eq!(
            world.look().await,
            once,
            "{step:?} a second time changed something"
        );
    }
    // The contract of every hypervisor: one machine of a home, and never a second. All else does the same once more.
    let twice = [Step::StartVmm, Step::RestoreVmm].map(|step| (step, "vmm_running"));
    assert_eq!(refused, twice);
    let nothing = world.look().await;
    assert_eq!((nothing.files.len(), nothing.taps), (0, 0));
    // Teardown of what is not there is fine as well.
    for step in [
        Step::DestroyVmm,
        Step::ReleaseNetwork,
        Step::RemoveSaved,
        Step::RemoveDisk,
        Step::RemoveDirectory,
    ] {
        world
            .carry_out(step)
            .await
            .unwrap_or_else(|error| panic!("{step:?}: {error:?}"));
        assert_eq!(world.look().await, nothing, "{step:?}");
    }
}

#[tokio::test]
async fn a_vmm_that_is_gone_before_its_guest_is_looked_for_is_started_again_a_few_times() {
    for deaths in 1..=STARTS {
        let data = tempfile::tempdir().unwrap();
        let machines = guests();
        machines.inject(Failure::DiesAtStart(deaths));
        let (config, ports, _kernel) = host(data.path(), machines);
        let link = AgentLink(Agent::start(config, ports).unwrap());
        link.sync(Vec::new()).await.unwrap();
        let mut statuses = link.statuses().await.unwrap();
        let mut intent = intent(1, 1, Desired::Running);
        intent.spec.network = NetworkChoice::Disabled;
        link.apply(intent).await.unwrap();
        let settled = loop {
            let status = statuses.next().await.unwrap();
            if !matches!(
                status.state.name(),
                StateName::Created | StateName::Initializing
            ) {
                break status;
            }
        };
        if deaths < STARTS {
            assert_eq!(
                settled.state.name(),
                StateName::Running,
                "{deaths}: {settled:?}"
            );
        } else {
            assert_eq!(settled.failure.unwrap().code, MACHINE_ENDED);
        }
    }
}

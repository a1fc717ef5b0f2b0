//! The agent as a whole: its actors by instance, and [`HostLink`] in front of them.

use crate::actor::Actor;
use crate::adopt;
use crate::attach;
use crate::commit::Committing;
use crate::context::{Actors, AgentConfig, Context, InstanceShared, Ports, disk_path};
use crate::evidence;
use crate::guest_session::{GuestSession, guest_error};
use crate::images::AgentImages;
use crate::inventory;
use crate::record::HostRecord;
use crate::status_board::StatusBoard;
use crate::storage;
use crate::sweep;
use crate::trace::Cause;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;
use warren_core::host::HostReport;
use warren_core::instance::{Desired, Gone, HypervisorChoice, InstanceIntent, InstanceStatus};
use warren_core::inventory::Item;
use warren_core::ports::host_link::{
    Evidence, ExecCommand, ExecSession, GuestUsage, HostImages, HostRecords, HostUpkeep, LogLine,
    LogQuery, LogSource, OutputStream, RECORD_IN_DOUBT, Usage,
};
use warren_core::ports::hypervisor::{HypervisorKind, HypervisorReport};
use warren_core::ports::network::AttachmentSpec;
use warren_core::ports::{
    BoxStream, GuestCommands, GuestFiles, GuestSockets, HostLink, Hypervisor, InstanceHome,
};
use warren_core::state::InstanceState;
use warren_core::storage::HostStorage;
use warren_core::{InstanceId, MemoryMib, PortError, Timestamp};

/// How long a request waits for a guest whose session is just being (re)made.
const SESSION_PATIENCE: Duration = Duration::from_secs(10);
/// How long a guest may take to answer a question about its memory.
const STATS_PATIENCE: Duration = Duration::from_secs(2);

/// One host's agent.
pub struct Agent {
    context: Arc<Context>,
    actors: Arc<Actors>,
    images: AgentImages,
    synced: watch::Sender<bool>,
}

impl Agent {
    /// Starts the agent: adopts what its directories tell of. Sweeps nothing before the first
    /// [`HostLink::sync`]. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When its directories cannot be made or read.
    pub fn start(config: AgentConfig, ports: Ports) -> Result<Arc<Self>, PortError> {
        for directory in [&config.instances, &config.set_aside] {
            std::fs::create_dir_all(directory).map_err(|error| {
                PortError::io(format_args!("making {}", directory.display()), error)
            })?;
        }
        let actors = Arc::<Actors>::default();
        let board = StatusBoard::new();
        let images = AgentImages::new(
            Arc::clone(&ports.images),
            Arc::clone(&ports.registry),
            Arc::clone(&ports.outlet),
            Arc::clone(&actors),
            Committing::new(
                Arc::clone(&ports.commits),
                Arc::clone(&actors),
                board.clone(),
            ),
        );
        let records = adopt::take_over(&config.instances)?;
        let agent = Arc::new(Agent {
            context: Arc::new(Context {
                ports,
                config,
                board,
            }),
            actors,
            images,
            synced: watch::Sender::new(false),
        });
        for record in records {
            let id = record.intent.id.clone();
            if let Err(error) = agent.spawn(record, &Cause::default()) {
                tracing::error!(instance = %id, %error, "cannot adopt an instance");
            }
        }
        tokio::spawn(sweep::sweep_forever(
            Arc::downgrade(&agent.context),
            Arc::downgrade(&agent.actors),
            agent.synced.subscribe(),
        ));
        Ok(agent)
    }

    fn actors(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Arc<InstanceShared>>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn home(&self, intent: &InstanceIntent) -> InstanceHome {
        InstanceHome {
            id: intent.id.clone(),
            handle: intent.handle.clone(),
            installation: self.context.config.installation.clone(),
            directory: self.context.config.instances.join(intent.handle.as_str()),
        }
    }

    fn hypervisor(&self, kind: HypervisorKind) -> Option<Arc<dyn Hypervisor>> {
        self.context
            .ports
            .hypervisors
            .iter()
            .find(|driver| driver.kind() == kind)
            .cloned()
    }

    fn choose(&self, choice: HypervisorChoice) -> Result<HypervisorKind, PortError> {
        let missing = |what: String| {
            PortError::unsupported("hypervisor_unusable", what)
                .with_hint("`warren doctor` tells what this host can use")
        };
        match choice {
            HypervisorChoice::Auto => self
                .context
                .ports
                .hypervisors
                .first()
                .map(|driver| driver.kind())
                .ok_or_else(|| missing("no hypervisor works on this host".to_owned())),
            HypervisorChoice::Only(kind) => self
                .hypervisor(kind)
                .map(|driver| driver.kind())
                .ok_or_else(|| missing(format!("{kind} does not work on this host"))),
        }
    }

    /// Starts the actor of a record, unless there is one.
    fn spawn(self: &Arc<Self>, record: HostRecord, cause: &Cause) -> Result<(), PortError> {
        let id = record.intent.id.clone();
        let home = self.home(&record.intent);
        let hypervisor = self.hypervisor(record.hypervisor).ok_or_else(|| {
            PortError::unsupported(
                "hypervisor_unusable",
                format!("{} does not work on this host", record.hypervisor),
            )
        })?;
        let shared = InstanceShared::new(home, record.intent.clone())
            .map_err(|error| PortError::io("opening the instance's logs", error))?;
        shared.cause.replace(cause);
        let shared = Arc::new(shared);
        {
            let mut actors = self.actors();
            if actors.contains_key(&id) {
                return Ok(());
            }
            actors.insert(id.clone(), Arc::clone(&shared));
        }
        let actor = Actor::new(Arc::clone(&self.context), shared, record, hypervisor);
        let agent = Arc::downgrade(self);
        tokio::spawn(async move {
            let span = tracing::info_span!("actor", instance = %id);
            let outcome = tokio::spawn(actor.run().instrument(span)).await;
            let Some(agent) = agent.upgrade() else { return };
            match outcome {
                Ok(()) => {
                    agent.actors().remove(&id);
                    agent.context.board.forget(&id);
                }
                Err(error) => tracing::error!(instance = %id, %error, "an instance's actor died"),
            }
        });
        Ok(())
    }

    fn shared(&self, id: &InstanceId) -> Result<Arc<InstanceShared>, PortError> {
        self.actors().get(id).cloned().ok_or_else(|| {
            PortError::not_found(
                "instance_not_here",
                format!("instance {id} is not on this host"),
            )
        })
    }

    pub(crate) async fn session(&self, id: &InstanceId) -> Result<Arc<GuestSession>, PortError> {
        let shared = self.shared(id)?;
        let mut session = shared.session.subscribe();
        let found = tokio::time::timeout(SESSION_PATIENCE, session.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(session)) => Ok(Arc::clone(
                session
                    .as_ref()
                    .expect("waited for a session that is there"),
            )),
            Ok(Err(_)) | Err(_) => Err(PortError::retry(
                "guest_unreachable",
                format!("the guest of {id} does not answer"),
            )
            .with_hint("see its console: warren logs --source console")),
        }
    }

    fn accept(self: &Arc<Self>, intent: InstanceIntent) -> Result<(), PortError> {
        let known = self.actors().get(&intent.id).cloned();
        if let Some(shared) = known {
            shared.wish.send_if_modified(|current| {
                let newer = intent.generation > current.generation;
                if newer {
                    shared.cause.replace(&Cause::here());
                    *current = intent;
                }
                newer
            });
            return Ok(());
        }
        let record = match self.choose(intent.spec.hypervisor) {
            Ok(kind) => HostRecord::new(intent, kind),
            // What cannot be run can still be deleted: nothing of it was ever here.
            Err(_) if intent.desired == Desired::Deleted => {
                self.publish_gone(&intent);
                return Ok(());
            }
            Err(error) => {
                self.publish_unusable(&intent, &error);
                return Ok(());
            }
        };
        self.spawn(record, &Cause::here())
    }

    fn publish_gone(&self, intent: &InstanceIntent) {
        let status = InstanceStatus {
            generation: intent.generation,
            state: InstanceState::Stopped,
            gone: Gone::Yes,
            ..InstanceStatus::unreported(intent)
        };
        self.context.board.publish(status);
        self.context.board.forget(&intent.id);
    }

    fn publish_unusable(&self, intent: &InstanceIntent, error: &PortError) {
        self.context.board.publish(InstanceStatus {
            generation: intent.generation,
            run: intent.run,
            state: InstanceState::Stopped,
            failure: Some(error.into()),
            ..InstanceStatus::unreported(intent)
        });
    }
}

impl AgentLink {
    /// Instances that are here and not wanted there. An instance is recorded before its host hears of it and
    /// forgotten after its host has; so one that is unknown means that the record is not the right one.
    fn unknown_to(&self, intents: &[InstanceIntent]) -> Vec<String> {
        let wanted: std::collections::BTreeSet<&InstanceId> =
            intents.iter().map(|intent| &intent.id).collect();
        self.0
            .actors()
            .iter()
            .filter(|(id, shared)| {
                !wanted.contains(id) && shared.wish.borrow().desired != Desired::Deleted
            })
            .map(|(id, _)| id.to_string())
            .collect()
    }
}

/// [`HostLink`] needs an `Arc` of the agent, because actors outlive the call that starts them.
pub struct AgentLink(pub Arc<Agent>);

#[async_trait]
impl HostLink for AgentLink {
    async fn apply(&self, intent: InstanceIntent) -> Result<(), PortError> {
        self.0.accept(intent)
    }

    async fn sync(&self, intents: Vec<InstanceIntent>) -> Result<(), PortError> {
        let unknown = self.unknown_to(&intents);
        if !unknown.is_empty() {
            self.0.synced.send_replace(false);
            return Err(PortError::conflict(
                RECORD_IN_DOUBT,
                format!(
                    "instances are here that the record of intent does not know ({})",
                    unknown.join(", ")
                ),
            )
            .with_hint("`warren system recover` takes them into the record again"));
        }
        for intent in intents {
            let id = intent.id.clone();
            if let Err(error) = self.0.accept(intent) {
                tracing::error!(instance = %id, %error, "cannot take over an instance");
            }
        }
        self.0.synced.send_replace(true);
        Ok(())
    }

    async fn statuses(&self) -> Result<BoxStream<InstanceStatus>, PortError> {
        Ok(Box::pin(self.0.context.board.subscribe()))
    }

    async fn report(&self) -> Result<HostReport, PortError> {
        let ports = &self.0.context.ports;
        let mut unusable = self.0.context.config.unusable.clone();
        let mut hypervisors: Vec<HypervisorReport> = Vec::new();
        for driver in &ports.hypervisors {
            match driver.probe().await {
                Ok(report) => hypervisors.push(report),
                Err(error) => unusable.push((driver.kind().to_string(), error.sentence())),
            }
        }
        let disk = rustix::fs::statvfs(&self.0.context.config.instances)
            .map_err(|error| PortError::io("looking at the data directory", error.into()))?;
        let cpus = std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        Ok(HostReport {
            cpus,
            memory: MemoryMib(rustix::system::sysinfo().totalram >> 20),
            disk_free: disk.f_bavail.saturating_mul(disk.f_frsize),
            disk_total: disk.f_blocks.saturating_mul(disk.f_frsize),
            hypervisors,
            unusable,
            network: ports.network.report().await?,
        })
    }

    async fn preflight(&self, mut spec: AttachmentSpec) -> Result<(), PortError> {
        // Control knows ids; directories and the installation are this host's.
        spec.home.installation = self.0.context.config.installation.clone();
        spec.home.directory = self
            .0
            .context
            .config
            .instances
            .join(spec.home.handle.as_str());
        self.0.context.ports.network.preflight(&spec).await
    }

    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<BoxStream<LogLine>, PortError> {
        let shared = self.0.shared(id)?;
        let over = shared.output_over.subscribe();
        let read = |error| PortError::io("reading the log", error);
        match query.source {
            LogSource::Workload => shared.workload_log.lines(query, over).map_err(read),
            LogSource::Console => shared.console_log.lines(query, over).map_err(read),
            LogSource::Vmm => {
                let lines =
                    plain_lines(&shared.home.directory.join("vmm.log"), query).map_err(read)?;
                Ok(Box::pin(futures::stream::iter(lines)))
            }
        }
    }

    async fn exec(&self, id: &InstanceId, command: ExecCommand) -> Result<ExecSession, PortError> {
        let session = self.0.session(id).await?;
        let request = attach::request(command);
        let handle = session.client.exec(request).await.map_err(guest_error)?;
        Ok(attach::session(handle))
    }

    async fn attach(
        &self,
        id: &InstanceId,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError> {
        attach::attach(self.0.session(id).await?, terminal).await
    }

    async fn usage(&self, id: &InstanceId) -> Result<Usage, PortError> {
        let shared = self.0.shared(id)?;
        let ports = &self.0.context.ports;
        let kind = HostRecord::read(&shared.home.directory)
            .ok()
            .flatten()
            .map(|record| record.hypervisor);
        let driver = kind.and_then(|kind| self.0.hypervisor(kind));
        let session = shared.session.borrow().clone();
        let disk = disk_path(&shared.home);
        let (vmm, network, disk, guest) = tokio::join!(
            async {
                match &driver {
                    Some(driver) => driver.usage(&shared.home).await.unwrap_or_default(),
                    None => warren_core::ports::hypervisor::VmmUsage::default(),
                }
            },
            ports.network.usage(&shared.home),
            ports.volumes.usage(&disk),
            async {
                match &session {
                    Some(session) => tokio::time::timeout(STATS_PATIENCE, session.client.stats())
                        .await
                        .ok()?
                        .ok(),
                    None => None,
                }
            },
        );
        let network = network.unwrap_or_default();
        Ok(Usage {
            cpu_seconds: vmm.cpu.as_secs_f64(),
            memory_rss: vmm.memory_rss,
            memory_vms: vmm.memory_vms,
            guest: guest.map(|guest| GuestUsage {
                uptime_seconds: seconds(guest.uptime_millis),
                cpu_seconds: seconds(guest.cpu_busy_millis),
                memory_total: guest.memory_total_bytes,
                memory_available: guest.memory_available_bytes,
                disk_total: guest.disk_total_bytes,
                disk_free: guest.disk_free_bytes,
                disk_read: guest.disk_read_bytes,
                disk_written: guest.disk_written_bytes,
                tasks: guest.tasks,
            }),
            // The host counts where it can; the guest's own count serves where a user-mode stack hides the traffic.
            network_received: network
                .received
                .max(guest.map_or(0, |guest| guest.network_rx_bytes)),
            network_sent: network
                .sent
                .max(guest.map_or(0, |guest| guest.network_tx_bytes)),
            disk: disk.map_or(0, |size| size.0),
        })
    }

    async fn storage(&self, in_use: &[String]) -> Result<HostStorage, PortError> {
        let homes: Vec<InstanceHome> = (self.0.actors().values())
            .map(|shared| shared.home.clone())
            .collect();
        storage::of_host(&self.0.context, homes, in_use).await
    }

    fn images(&self) -> &dyn HostImages {
        &self.0.images
    }

    fn files(&self) -> &dyn GuestFiles {
        self
    }

    fn commands(&self) -> &dyn GuestCommands {
        self
    }

    fn sockets(&self) -> &dyn GuestSockets {
        self
    }

    fn upkeep(&self) -> &dyn HostUpkeep {
        self
    }
}

#[async_trait]
impl HostUpkeep for AgentLink {
    async fn inventory(&self) -> Result<Vec<Item>, PortError> {
        inventory::take_inventory(&self.0.context.config, &self.0.context.ports).await
    }

    async fn remove(&self, item: &Item) -> Result<(), PortError> {
        let owner = item.part.handle().and_then(|handle| {
            let actors = self.0.actors();
            actors
                .values()
                .find(|shared| shared.home.handle == *handle)
                .cloned()
        });
        // What belongs to an instance is taken away by the one task that owns it: it may have been started
        // since somebody looked.
        if let Some(shared) = owner {
            shared.look_again.notify_one();
            return Ok(());
        }
        inventory::remove(&self.0.context.config, &self.0.context.ports, item).await
    }

    async fn records(&self) -> Result<HostRecords, PortError> {
        adopt::host_records(&self.0.context.config.instances)
    }

    async fn evidence(&self, id: &InstanceId) -> Result<Vec<Evidence>, PortError> {
        let home = self.0.shared(id)?.home.clone();
        evidence::of_instance(&self.0.context, home).await
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

/// The lines of a bounded plain-text file that somebody else writes.
fn plain_lines(path: &std::path::Path, query: LogQuery) -> std::io::Result<Vec<LogLine>> {
    const MOST: usize = 10_000;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let at = file
        .metadata()?
        .modified()
        .map_or(Timestamp::UNIX_EPOCH, Timestamp::from);
    let mut lines: Vec<LogLine> = std::io::BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .take(MOST)
        .zip(1..)
        .map(|(text, seq)| LogLine {
            seq,
            at,
            stream: OutputStream::Stderr,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
        .filter(|line| query.after.is_none_or(|after| line.seq > after))
        .filter(|line| query.period.contains(line.at))
        .collect();
    if let Some(tail) = query.tail {
        let keep = usize::try_from(tail).unwrap_or(usize::MAX).min(lines.len());
        lines.drain(..lines.len() - keep);
    }
    Ok(lines)
}

//! A host that plays its part without machines: what an instance does is written in its command.
//!
//! - `["exit", "N"]`: runs, then ends with N;
//! - `["fail"]`: its start fails;
//! - `["hang"]`: stays Initializing;
//! - anything else: runs until it is stopped.

mod files;
mod registry;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use warren_core::error::Failure;
use warren_core::host::{HostReport, NetworkMode, NetworkReport};
use warren_core::image::{ImageConfig, ImageProgress, ImageRecord};
use warren_core::instance::{Desired, Exit, Gone, InstanceIntent, InstanceStatus};
use warren_core::inventory::Item;
use warren_core::network::Subnet;
use warren_core::ports::host_link::{
    Evidence, ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, Follow, HostImages,
    HostLink, HostRecords, HostUpkeep, ImageImport, ImageUpdate, LogLine, LogQuery, OutputStream,
    PushUpdate, RECORD_IN_DOUBT, Usage,
};
use warren_core::ports::hypervisor::{
    Accelerator, HypervisorKind, HypervisorReport, ProcessIdentity,
};
use warren_core::ports::images::{PruneRequest, PullRequest, PushRequest, Pushed};
use warren_core::ports::network::AttachmentSpec;
use warren_core::ports::{BoxStream, Clock, GuestFiles, ImageOutlet, Registry};
use warren_core::state::InstanceState;
use warren_core::storage::{
    HostStorage, ImagePart, ImageUsage, ImagesUsage, InstanceStorage, PartCheck, PartState,
    PruneMode, PruneScope, Pruned, PrunedImage, Repair, Verification,
};
use warren_core::{ErrorClass, InstanceId, MemoryMib, PortError, Timestamp};

/// A host without machines.
pub(crate) struct Host {
    pub(crate) intents: Mutex<BTreeMap<InstanceId, InstanceIntent>>,
    statuses: Mutex<BTreeMap<InstanceId, InstanceStatus>>,
    changes: broadcast::Sender<InstanceStatus>,
    images: Mutex<Vec<ImageRecord>>,
    pub(crate) tree: Mutex<files::Tree>,
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

fn vmm() -> ProcessIdentity {
    ProcessIdentity {
        pid: 1,
        start_time: 1,
        boot_id: "boot".into(),
    }
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
            taken_ports: Mutex::default(),
            logs: Mutex::new(
                (1..=10)
                    .map(|seq| LogLine {
                        seq,
                        at: now(),
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

    fn say(&self, intent: &InstanceIntent, change: impl FnOnce(&mut InstanceStatus)) {
        let mut statuses = Self::lock(&self.statuses);
        let status = statuses
            .entry(intent.id.clone())
            .or_insert_with(|| InstanceStatus::unreported(intent));
        status.generation = intent.generation;
        change(status);
        let _ = self.changes.send(status.clone());
    }

    fn ended(&self, intent: &InstanceIntent, code: i32) {
        self.say(intent, |status| {
            status.state = InstanceState::Stopped;
            status.run = intent.run;
            status.stopped_at = Some(now());
            status.exit = Some(Exit {
                code: Some(code),
                message: None,
                at: now(),
            });
        });
    }

    /// The workload of an instance ends by itself.
    pub(crate) fn end(&self, id: &str, code: i32) {
        let intent = Self::lock(&self.intents)[&id.parse::<InstanceId>().expect("an id")].clone();
        self.ended(&intent, code);
    }

    /// An instance's state is this, whatever was wanted.
    pub(crate) fn force(&self, id: &str, state: InstanceState) {
        let intent = Self::lock(&self.intents)[&id.parse::<InstanceId>().expect("an id")].clone();
        self.say(&intent, |status| {
            status.state = state;
            status.failure = None;
            status.exit = None;
        });
    }

    fn play(&self, intent: &InstanceIntent) {
        let words: Vec<&str> = intent
            .spec
            .cmd
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let since = now();
        let running = Self::lock(&self.statuses)
            .get(&intent.id)
            .is_some_and(|s| s.run == intent.run && s.state.vmm().is_some());
        match (intent.desired, words.as_slice()) {
            (Desired::Deleted, _) => {
                self.say(intent, |status| {
                    status.state = InstanceState::Stopped;
                    status.gone = Gone::Yes;
                });
                Self::lock(&self.statuses).remove(&intent.id);
                Self::lock(&self.intents).remove(&intent.id);
            }
            (Desired::Stopped, _) => self.ended(intent, 143),
            (Desired::Paused, _) => self.say(intent, |status| {
                status.state = InstanceState::Paused { vmm: vmm(), since };
            }),
            (Desired::Running, ["fail"]) => self.say(intent, |status| {
                status.state = InstanceState::Stopped;
                status.run = intent.run;
                status.failure = Some(Failure {
                    class: ErrorClass::Invalid,
                    code: "start_failed".into(),
                    message: "the double was told to fail".into(),
                });
            }),
            (Desired::Running, ["hang"]) => self.say(intent, |status| {
                status.state = InstanceState::Initializing { vmm: vmm(), since };
                status.run = intent.run;
            }),
            (Desired::Running, words) => {
                if !running {
                    self.say(intent, |status| {
                        status.state = InstanceState::Initializing { vmm: vmm(), since };
                        status.run = intent.run;
                        status.exit = None;
                        status.failure = None;
                    });
                }
                self.say(intent, |status| {
                    status.state = InstanceState::Running { vmm: vmm(), since };
                    status.started_at = Some(since);
                    status.hypervisor = Some(HypervisorKind::Fake);
                });
                if let ["exit", code] = words {
                    self.ended(intent, code.parse().expect("a number"));
                }
            }
        }
    }

    fn take(&self, intent: InstanceIntent) {
        let newer = Self::lock(&self.intents)
            .get(&intent.id)
            .is_none_or(|held| held.generation < intent.generation);
        if newer {
            Self::lock(&self.intents).insert(intent.id.clone(), intent.clone());
            self.play(&intent);
        }
    }
}

#[async_trait]
impl HostLink for Host {
    async fn apply(&self, intent: InstanceIntent) -> Result<(), PortError> {
        {
            let mut refuse = Self::lock(&self.refuse_applies);
            if *refuse > 0 {
                *refuse -= 1;
                return Err(PortError::retry(
                    "host_busy",
                    "the double was told to refuse",
                ));
            }
        }
        *Self::lock(&self.applied) += 1;
        self.take(intent);
        Ok(())
    }

    async fn sync(&self, intents: Vec<InstanceIntent>) -> Result<(), PortError> {
        let unknown = Self::lock(&self.intents)
            .keys()
            .any(|id| !intents.iter().any(|intent| intent.id == *id));
        if unknown {
            return Err(PortError::conflict(
                RECORD_IN_DOUBT,
                "instances are here that the record does not know",
            ));
        }
        *Self::lock(&self.synced) += 1;
        for intent in intents {
            self.take(intent);
        }
        Ok(())
    }

    async fn statuses(&self) -> Result<BoxStream<InstanceStatus>, PortError> {
        let statuses = Self::lock(&self.statuses);
        let changes = BroadcastStream::new(self.changes.subscribe());
        let current: Vec<_> = statuses.values().cloned().collect();
        Ok(stream::iter(current)
            .chain(changes.filter_map(|change| async move { change.ok() }))
            .boxed())
    }

    async fn report(&self) -> Result<HostReport, PortError> {
        Ok(Self::lock(&self.report).clone())
    }

    async fn preflight(&self, spec: AttachmentSpec) -> Result<(), PortError> {
        let taken = Self::lock(&self.taken_ports);
        match spec
            .ports
            .iter()
            .find(|port| taken.contains(&port.host_port))
        {
            Some(port) => Err(PortError::conflict(
                "port_taken",
                format!("port {} of this host is taken", port.host_port),
            )),
            None => Ok(()),
        }
    }

    async fn logs(&self, _: &InstanceId, query: LogQuery) -> Result<BoxStream<LogLine>, PortError> {
        let mut lines: Vec<LogLine> = Self::lock(&self.logs)
            .iter()
            .filter(|line| query.after.is_none_or(|after| line.seq > after))
            .cloned()
            .collect();
        if let Some(tail) = query.tail {
            let skip = lines
                .len()
                .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
            lines.drain(..skip);
        }
        let lines = stream::iter(lines);
        Ok(match query.follow {
            Follow::No => lines.boxed(),
            Follow::Yes => lines.chain(stream::pending()).boxed(),
        })
    }

    async fn exec(&self, _: &InstanceId, command: ExecCommand) -> Result<ExecSession, PortError> {
        Ok(session(command))
    }

    async fn attach(
        &self,
        _: &InstanceId,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError> {
        Ok(session(ExecCommand {
            command: vec!["cat".into()],
            terminal,
            ..ExecCommand::default()
        }))
    }

    async fn usage(&self, _: &InstanceId) -> Result<Usage, PortError> {
        Ok(Usage {
            cpu_seconds: 1.5,
            memory_rss: 64 << 20,
            ..Usage::default()
        })
    }

    async fn storage(&self, in_use: &[String]) -> Result<HostStorage, PortError> {
        let images = Self::lock(&self.images);
        let usage = |record: &ImageRecord| {
            let instances = in_use.iter().filter(|it| **it == record.digest).count();
            ImageUsage {
                id: record.id.clone(),
                name: record.name.clone(),
                digest: record.digest.clone(),
                size: 100,
                shared: 40,
                unique: 60,
                reclaimable: if instances == 0 { 60 } else { 0 },
                instances,
                last_used: Some(record.created_at),
            }
        };
        Ok(HostStorage {
            images: ImagesUsage {
                images: images.iter().map(usage).collect(),
                total: 160,
                ..ImagesUsage::default()
            },
            instances: Self::lock(&self.intents)
                .keys()
                .map(|id| InstanceStorage {
                    id: id.clone(),
                    disk: 7,
                    logs: 2,
                    other: 1,
                })
                .collect(),
            templates: 30,
            set_aside: 0,
        })
    }

    fn images(&self) -> &dyn HostImages {
        self
    }

    fn files(&self) -> &dyn GuestFiles {
        self
    }

    fn upkeep(&self) -> &dyn HostUpkeep {
        self
    }
}

#[async_trait]
impl HostUpkeep for Host {
    async fn inventory(&self) -> Result<Vec<Item>, PortError> {
        let mut looks = Self::lock(&self.looks);
        Ok(match looks.len() {
            0 => Vec::new(),
            1 => looks[0].clone(),
            _ => looks.remove(0),
        })
    }

    async fn remove(&self, item: &Item) -> Result<(), PortError> {
        Self::lock(&self.looks)
            .iter_mut()
            .for_each(|look| look.retain(|one| one != item));
        Self::lock(&self.removed).push(item.clone());
        Ok(())
    }

    async fn records(&self) -> Result<HostRecords, PortError> {
        Ok(HostRecords {
            intents: Self::lock(&self.intents).values().cloned().collect(),
            ..HostRecords::default()
        })
    }

    async fn evidence(&self, id: &InstanceId) -> Result<Vec<Evidence>, PortError> {
        let intent = Self::lock(&self.intents).get(id).cloned();
        let record = serde_json::json!({"intent": intent, "attach_key": "never to be seen"});
        let piece = |name: &str, text: String| Evidence {
            name: name.to_owned(),
            text,
        };
        Ok(vec![
            piece("record.json", record.to_string()),
            piece("processes.txt", "qemu-system-x86_64\n-m\n256".to_owned()),
        ])
    }
}

struct Input(mpsc::Sender<ExecInput>);

#[async_trait]
impl ExecSink for Input {
    async fn send(&mut self, input: ExecInput) -> Result<(), PortError> {
        self.0
            .send(input)
            .await
            .map_err(|_| PortError::conflict("command_ended", "the command has ended"))
    }
}

/// `cat` gives back what it gets; anything else says its words on both outputs and ends with 3.
fn session(command: ExecCommand) -> ExecSession {
    let (input, mut inputs) = mpsc::channel(4);
    let (outputs, output) = mpsc::channel(4);
    tokio::spawn(async move {
        let data = |stream, text: String| Ok(ExecOutput::Data(stream, Bytes::from(text)));
        let code = if command.command == ["cat"] {
            loop {
                let said = match inputs.recv().await {
                    None => return,
                    Some(ExecInput::CloseStdin) => break 0,
                    Some(ExecInput::Signal(signal)) => break 128 + signal,
                    Some(ExecInput::Stdin(bytes)) => {
                        Ok(ExecOutput::Data(OutputStream::Stdout, bytes))
                    }
                    Some(ExecInput::Resize { rows, columns }) => {
                        data(OutputStream::Stdout, format!("{rows}x{columns}"))
                    }
                };
                if outputs.send(said).await.is_err() {
                    return;
                }
            }
        } else {
            let words = command.command.join(" ");
            let _ = outputs.send(data(OutputStream::Stdout, words)).await;
            let _ = outputs
                .send(data(OutputStream::Stderr, "oops".into()))
                .await;
            3
        };
        let _ = outputs
            .send(Ok(ExecOutput::Exited {
                code,
                message: None,
            }))
            .await;
    });
    ExecSession {
        input: Box::new(Input(input)),
        output: ReceiverStream::new(output).boxed(),
    }
}

#[async_trait]
impl HostImages for Host {
    async fn check_pull(&self, request: &PullRequest) -> Result<(), PortError> {
        match request.reference.starts_with("forbidden.example/") {
            true => Err(PortError::new(
                ErrorClass::Denied,
                "registry_not_allowed",
                "this host pulls from elsewhere",
            )),
            false => Ok(()),
        }
    }

    async fn import(&self, import: ImageImport) -> Result<BoxStream<ImageUpdate>, PortError> {
        let mut held = self.pulls_held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        let result = match import {
            ImageImport::Pull(pull) if pull.reference.starts_with("localhost:5000/") => {
                let id = pull.id.unwrap_or_else(|| "pulled".into());
                Ok(vec![image(&id, &pull.reference)])
            }
            ImageImport::Pull(pull) => Err(PortError::not_found(
                "registry_has_no_such_image",
                format!("there is no {} in its registry", pull.reference),
            )),
            ImageImport::Commit(_, commit) if commit.changes.iter().any(|one| one == "RUN x") => {
                Err(PortError::invalid("image_malformed", "RUN changes nothing"))
            }
            ImageImport::Commit(_, commit) => {
                let id = commit.id.unwrap_or_else(|| "committed".into());
                Ok(vec![image(&id, &commit.name)])
            }
            ImageImport::Load(load) => match std::fs::read(&load.path) {
                Ok(bytes) if bytes.starts_with(b"archive") => {
                    let name = load
                        .name
                        .unwrap_or_else(|| "localhost/loaded:latest".into());
                    Ok(vec![image("loaded", &name)])
                }
                Ok(_) => Err(PortError::invalid("not_an_archive", "this is no archive")),
                Err(error) => Err(PortError::io("the archive cannot be read", error)),
            },
        };
        if let Ok(records) = &result {
            let mut images = Self::lock(&self.images);
            for record in records {
                images.retain(|held| held.id != record.id);
                images.push(record.clone());
            }
        }
        Ok(stream::iter([
            ImageUpdate::Progress(ImageProgress::Resolved {
                digest: "sha256:ab".into(),
                layers: 1,
                total_bytes: 10,
            }),
            ImageUpdate::Progress(ImageProgress::Finishing),
            ImageUpdate::Done(result),
        ])
        .boxed())
    }

    async fn push(&self, request: PushRequest) -> Result<BoxStream<PushUpdate>, PortError> {
        let mut held = self.pulls_held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        let result = match request.target.starts_with("localhost:5000/") {
            true => Ok(Pushed {
                target: request.target,
                digest: "sha256:ab".into(),
                layers: 2,
                sent_bytes: 10,
            }),
            false => Err(PortError::retry(
                "registry_unreachable",
                format!("nobody listens at {}", request.target),
            )),
        };
        Ok(stream::iter([
            PushUpdate::Progress(ImageProgress::Finishing),
            PushUpdate::Done(result),
        ])
        .boxed())
    }

    async fn list(&self) -> Result<Vec<ImageRecord>, PortError> {
        Ok(Self::lock(&self.images).clone())
    }

    async fn find(&self, wanted: &str) -> Result<Option<ImageRecord>, PortError> {
        Ok(Self::lock(&self.images)
            .iter()
            .find(|image| image.id == wanted || image.name == wanted || image.digest == wanted)
            .cloned())
    }

    async fn remove(&self, id: &str, in_use: &[String]) -> Result<(), PortError> {
        let mut images = Self::lock(&self.images);
        if images
            .iter()
            .any(|image| image.id == id && in_use.contains(&image.digest))
        {
            return Err(PortError::conflict("image_in_use", "it is in use"));
        }
        images.retain(|image| image.id != id);
        Ok(())
    }

    async fn prune(&self, request: PruneRequest) -> Result<Pruned, PortError> {
        let mut images = Self::lock(&self.images);
        let doomed: Vec<ImageRecord> = match request.scope {
            PruneScope::Unused => images
                .iter()
                .filter(|image| !request.in_use.contains(&image.digest))
                .cloned()
                .collect(),
            PruneScope::Unreferenced => Vec::new(),
            PruneScope::Routine => {
                *Self::lock(&self.tidied) += 1;
                Vec::new()
            }
        };
        if request.mode == PruneMode::Remove {
            images.retain(|image| doomed.iter().all(|gone| gone.id != image.id));
        }
        Ok(Pruned {
            bytes: doomed.len() as u64 * 60,
            disks: doomed.len(),
            blobs: 0,
            images: doomed
                .into_iter()
                .map(|image| PrunedImage {
                    id: image.id,
                    name: image.name,
                    digest: image.digest,
                })
                .collect(),
        })
    }

    async fn verify(&self, id: &str, repair: Repair) -> Result<Verification, PortError> {
        let images = Self::lock(&self.images);
        let Some(image) = images.iter().find(|image| image.id == id) else {
            return Err(PortError::not_found("image_not_here", "it is not here"));
        };
        let state = match (Self::lock(&self.damaged).contains(id), repair) {
            (false, _) => PartState::Sound,
            (true, Repair::No) => PartState::Damaged,
            (true, Repair::Yes) => PartState::Repaired,
        };
        Ok(Verification {
            id: image.id.clone(),
            name: image.name.clone(),
            digest: image.digest.clone(),
            parts: vec![PartCheck {
                part: ImagePart::Disk,
                digest: image.digest.clone(),
                state,
            }],
            advice: (state == PartState::Damaged).then(|| "repair it".to_owned()),
        })
    }

    fn registry(&self) -> &dyn Registry {
        &self.content
    }

    fn outlet(&self) -> &dyn ImageOutlet {
        &self.content
    }
}

/// The real clock, whose wall can be pushed forward.
pub(crate) struct TestClock {
    started: std::time::Instant,
    /// Time that has passed besides what really has.
    pub(crate) passed: Mutex<Duration>,
    /// By how much somebody has moved the wall clock.
    pub(crate) moved: Mutex<time::Duration>,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(TestClock {
            started: std::time::Instant::now(),
            passed: Mutex::default(),
            moved: Mutex::default(),
        })
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        now()
            + *self.passed.lock().expect("no test panics with it")
            + *self.moved.lock().expect("no test panics with it")
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed() + *self.passed.lock().expect("no test panics with it")
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

//! A hypervisor without machines, for tests of everything above the port.
//!
//! Each "machine" is a file in its home directory (`fake.json`) with an identity that no process has, so it
//! survives a restart of Warren as a real VMM does and nothing can be signalled by mistake. What a guest would say
//! comes from a double that is handed in: it gets the other end of every channel and console that is opened.
//! It passes the same contract suite as QEMU. Failures can be injected.

mod board;

use crate::process::boot_id;
use crate::sockets;
use async_trait::async_trait;
use board::Board;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use warren_core::PortError;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{
    Accelerator, Hypervisor, HypervisorKind, HypervisorReport, MachineConfig, Pause,
    ProcessIdentity, Suspend, VMM_NOT_RUNNING, VmmSeen, VmmUsage,
};
use warren_crashpoint::reached;

/// The file in the home directory.
const FILE: &str = "fake.json";
/// Above every pid that Linux gives (`PID_MAX_LIMIT`, 4 Mi).
const FIRST_PID: u32 = 1 << 23;
/// How often a machine that another process may change is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Which line of a guest was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestLine {
    /// The agent's channel.
    Channel,
    /// The serial console.
    Console,
}

/// The guest's end of a line.
#[derive(Debug)]
pub struct GuestSide {
    /// Which line.
    pub line: GuestLine,
    /// The guest's machine, as it was started.
    pub machine: MachineConfig,
    /// Which start of it: changes when the machine is started anew.
    pub process: ProcessIdentity,
    /// A connected stream: non-blocking, close-on-exec. It ends when the machine does.
    pub stream: OwnedFd,
    /// To end the machine from inside, as a guest does that powers off.
    pub power: PowerSwitch,
}

/// A guest's way to end its own machine.
#[derive(Debug, Clone)]
pub struct PowerSwitch {
    home: InstanceHome,
    process: ProcessIdentity,
}

impl PowerSwitch {
    /// Ends the machine, if it is still that one.
    pub fn off(&self) {
        if let Err(error) = end(&self.home, Some(&self.process)) {
            tracing::warn!(%error, "could not end a fake machine");
        }
    }

    /// Waits until that machine is over, whoever ends it.
    pub async fn ended(&self) {
        let mut changes = Board::watch(&self.home.directory);
        while running(&self.home).is_ok_and(|state| state.process == self.process)
            && changes.changed().await.is_ok()
        {}
    }
}

/// Answers for guests. Called in an async context, and must not block.
pub type ServeGuest = Arc<dyn Fn(GuestSide) + Send + Sync>;

/// A failure to inject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The next so many starts fail.
    Starts(u32),
    /// The next so many starts succeed and their VMM dies at once.
    DiesAtStart(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Power {
    Running,
    Paused,
    /// The "process" is gone; the file is what it left.
    Dead,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    machine: MachineConfig,
    process: ProcessIdentity,
    power: Power,
}

/// The driver.
pub struct Fake {
    serve_guest: ServeGuest,
    failures: Mutex<Vec<Failure>>,
}

impl Fake {
    /// A driver whose guests are played by `serve_guest`.
    pub fn new(serve_guest: ServeGuest) -> Self {
        Fake {
            serve_guest,
            failures: Mutex::new(Vec::new()),
        }
    }

    /// Makes something go wrong later.
    pub fn inject(&self, failure: Failure) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(failure);
    }

    /// Ends a machine as if its VMM had been killed.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn die(home: &InstanceHome) -> Result<(), PortError> {
        end(home, None)
    }

    fn next_failure(&self) -> Option<Failure> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, failure) = match failures.first()?.clone() {
            Failure::Starts(count) => (
                Failure::Starts(count.saturating_sub(1)),
                Failure::Starts(count),
            ),
            Failure::DiesAtStart(count) => (
                Failure::DiesAtStart(count.saturating_sub(1)),
                Failure::DiesAtStart(count),
            ),
        };
        match left {
            Failure::Starts(0) | Failure::DiesAtStart(0) => {
                failures.remove(0);
            }
            Failure::Starts(_) | Failure::DiesAtStart(_) => failures[0] = left,
        }
        Some(failure)
    }

    fn open(&self, home: &InstanceHome, line: GuestLine) -> Result<OwnedFd, PortError> {
        let state = running(home)?;
        let fail = |error| PortError::io("could not open a line to the guest", error);
        let (ours, theirs) = sockets::pair().map_err(fail)?;
        Board::keep(&home.directory, theirs.try_clone().map_err(fail)?);
        (self.serve_guest)(GuestSide {
            line,
            machine: state.machine,
            process: state.process.clone(),
            stream: theirs,
            power: PowerSwitch {
                home: home.clone(),
                process: state.process,
            },
        });
        Ok(ours)
    }
}

fn path(home: &InstanceHome) -> PathBuf {
    home.directory.join(FILE)
}

fn read(home: &InstanceHome) -> Result<Option<State>, PortError> {
    let bytes = match std::fs::read(path(home)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PortError::io("could not read the fake machine", error)),
    };
    // A damaged file is a dead machine's.
    Ok(serde_json::from_slice(&bytes).ok().map(|mut state: State| {
        if state.process.boot_id != boot_id() {
            state.power = Power::Dead;
        }
        state
    }))
}

fn write(home: &InstanceHome, state: &State) -> Result<(), PortError> {
    let fail = |error| PortError::io("could not write the fake machine", error);
    let bytes = serde_json::to_vec(state).map_err(|error| fail(error.into()))?;
    // Whole for other processes. After a crash of the host no machine runs, so nothing here need be durable.
    let (path, aside) = (path(home), home.directory.join(".fake.json.new"));
    std::fs::write(&aside, bytes).map_err(fail)?;
    reached("fake.machine-written-aside");
    std::fs::rename(&aside, &path).map_err(fail)?;
    reached("fake.machine-written");
    Board::changed(&home.directory);
    Ok(())
}

fn already_runs() -> PortError {
    PortError::conflict("vmm_running", "a VMM of this instance already runs")
}

fn running(home: &InstanceHome) -> Result<State, PortError> {
    read(home)?
        .filter(|state| state.power != Power::Dead)
        .ok_or_else(|| PortError::not_found(VMM_NOT_RUNNING, "the instance's VMM does not run"))
}

/// Ends the machine, if it is `process` or none is named.
fn end(home: &InstanceHome, process: Option<&ProcessIdentity>) -> Result<(), PortError> {
    let _turn = Board::turn();
    let Some(mut state) = read(home)? else {
        return Ok(());
    };
    if process.is_none_or(|process| *process == state.process) {
        state.power = Power::Dead;
        write(home, &state)?;
        Board::hang_up(&home.directory);
    }
    Ok(())
}

fn set(home: &InstanceHome, power: Power) -> Result<(), PortError> {
    let _turn = Board::turn();
    let mut state = running(home)?;
    if state.power != power {
        state.power = power;
        write(home, &state)?;
    }
    Ok(())
}

fn seen(home: &InstanceHome) -> Result<VmmSeen, PortError> {
    Ok(match read(home)? {
        None if exists(&path(home)) => VmmSeen::Dead,
        None => VmmSeen::Absent,
        Some(state) => match state.power {
            Power::Running => VmmSeen::Running {
                process: state.process,
            },
            Power::Paused => VmmSeen::Paused {
                process: state.process,
            },
            Power::Dead => VmmSeen::Dead,
        },
    })
}

/// Every write makes a new file.
fn inode(home: &InstanceHome) -> Option<(u64, std::time::SystemTime)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path(home).symlink_metadata().ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Never one that was given before on this boot, also by an earlier process.
fn fresh_identity() -> ProcessIdentity {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    ProcessIdentity {
        pid: FIRST_PID + NEXT.fetch_add(1, Ordering::Relaxed) % FIRST_PID,
        start_time: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        boot_id: boot_id().to_owned(),
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Fake
    }

    async fn probe(&self) -> Result<HypervisorReport, PortError> {
        Ok(HypervisorReport {
            kind: HypervisorKind::Fake,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            binary: PathBuf::new(),
            accelerator: Accelerator::None,
            reason: "nothing is executed: the fake hypervisor was asked for".to_owned(),
            kernel: "none".to_owned(),
            capabilities: ["pause", "standby"].map(str::to_owned).to_vec(),
        })
    }

    async fn start(&self, machine: &MachineConfig) -> Result<ProcessIdentity, PortError> {
        let _turn = Board::turn();
        let home = &machine.home;
        if matches!(
            seen(home)?,
            VmmSeen::Running { .. } | VmmSeen::Paused { .. } | VmmSeen::ShutDown { .. }
        ) {
            return Err(already_runs());
        }
        let power = match self.next_failure() {
            Some(Failure::Starts(_)) => {
                return Err(PortError::retry(
                    "vmm_start_failed",
                    "the fake hypervisor was told to fail",
                ));
            }
            Some(Failure::DiesAtStart(_)) => Power::Dead,
            None => Power::Running,
        };
        let state = State {
            machine: machine.clone(),
            process: fresh_identity(),
            power,
        };
        write(home, &state)?;
        Ok(state.process)
    }

    async fn observe(&self, home: &InstanceHome) -> Result<VmmSeen, PortError> {
        seen(home)
    }

    async fn open_channel(&self, home: &InstanceHome) -> Result<OwnedFd, PortError> {
        self.open(home, GuestLine::Channel)
    }

    async fn open_console(&self, home: &InstanceHome) -> Result<OwnedFd, PortError> {
        self.open(home, GuestLine::Console)
    }

    async fn wait_exit(&self, home: &InstanceHome) -> Result<(), PortError> {
        let mut changes = Board::watch(&home.directory);
        let Ok(State { process, .. }) = running(home) else {
            return Ok(());
        };
        loop {
            match running(home) {
                Ok(state) if state.process == process => {}
                _ => return Ok(()),
            }
            // A change by another process shows in the file only: it is another one then.
            let before = inode(home);
            while tokio::time::timeout(Board::share(LOOK), changes.changed())
                .await
                .is_err()
                && inode(home) == before
            {}
        }
    }

    async fn destroy(&self, home: &InstanceHome) -> Result<(), PortError> {
        let _turn = Board::turn();
        sockets::remove(&path(home))
            .map_err(|error| PortError::io("could not remove the fake machine", error))?;
        reached("fake.machine-removed");
        Board::forget(&home.directory);
        Ok(())
    }

    async fn usage(&self, home: &InstanceHome) -> Result<VmmUsage, PortError> {
        let state = running(home)?;
        let memory = state.machine.memory.bytes();
        Ok(VmmUsage {
            cpu: Duration::ZERO,
            memory_rss: memory / 4,
            memory_vms: memory,
        })
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }
}

/// The machine's file in a directory of what was saved.
fn saved(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Its guest has no memory: restored, it has to be told again what to run.
#[async_trait]
impl Suspend for Fake {
    async fn save(&self, home: &InstanceHome, directory: &Path) -> Result<(), PortError> {
        let _turn = Board::turn();
        let state = running(home)?;
        let fail = |error| PortError::io("could not save the fake machine", error);
        let bytes = serde_json::to_vec(&state).map_err(|error| fail(error.into()))?;
        std::fs::write(saved(directory), bytes).map_err(fail)?;
        reached("fake.machine-saved");
        Ok(())
    }

    async fn restore(
        &self,
        machine: &MachineConfig,
        directory: &Path,
    ) -> Result<ProcessIdentity, PortError> {
        let _turn = Board::turn();
        if running(&machine.home).is_ok() {
            return Err(already_runs());
        }
        let fail = |error| PortError::io("could not read the saved fake machine", error);
        let bytes = std::fs::read(saved(directory)).map_err(fail)?;
        let _whole: State = serde_json::from_slice(&bytes).map_err(|error| fail(error.into()))?;
        let state = State {
            machine: machine.clone(),
            process: fresh_identity(),
            power: Power::Paused,
        };
        write(&machine.home, &state)?;
        reached("fake.machine-restored");
        Ok(state.process)
    }
}

#[async_trait]
impl Pause for Fake {
    async fn pause(&self, home: &InstanceHome) -> Result<(), PortError> {
        set(home, Power::Paused)
    }

    async fn resume(&self, home: &InstanceHome) -> Result<(), PortError> {
        set(home, Power::Running)
    }
}

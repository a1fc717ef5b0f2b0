//! What every driver must do. Each function is one part of the contract and leaves nothing running.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use warren_core::ErrorClass;
use warren_core::MemoryMib;
use warren_core::ports::hypervisor::{Hypervisor, MachineConfig, ProcessIdentity, VmmSeen};
use warren_core::ports::{InstanceHome, hypervisor::Disk, hypervisor::DiskAccess};

/// Waits for no single thing longer than this: an emulated host may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A driver under test, and what only its kind can do.
pub(crate) trait Subject {
    /// A driver as a freshly started Warren would make it.
    fn driver(&self) -> Arc<dyn Hypervisor>;
    /// Kills the VMM from outside.
    fn kill(&self, home: &InstanceHome, process: &ProcessIdentity);
}

/// A home directory of its own, removed at the end.
pub(crate) struct Place {
    pub(crate) root: tempfile::TempDir,
    pub(crate) machine: MachineConfig,
}

impl Place {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let unique: [u8; 8] = std::array::from_fn(|_| random_byte());
        let handle = warren_core::Handle::from_entropy(unique[..5].try_into().unwrap());
        // Longer than a Unix socket's path may be.
        let directory = root.path().join("d".repeat(100)).join(handle.as_str());
        std::fs::create_dir_all(&directory).unwrap();
        let disk = |name: &str, access| {
            let path = directory.join(name);
            std::fs::File::create(&path)
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
            Disk { path, access }
        };
        let disks = vec![
            disk("root,with comma.erofs", DiskAccess::ReadOnly),
            disk("upper.ext4", DiskAccess::ReadWrite),
        ];
        Place {
            machine: MachineConfig {
                home: InstanceHome {
                    id: "contract".parse().unwrap(),
                    handle,
                    installation: warren_core::InstallationId::from_entropy(
                        unique[5..].try_into().unwrap(),
                    ),
                    directory,
                },
                vcpus: 1,
                memory: MemoryMib(128),
                disks,
                nic: None,
                boot_args: vec!["warren.attach=00".to_owned()],
            },
            root,
        }
    }

    pub(crate) fn home(&self) -> &InstanceHome {
        &self.machine.home
    }
}

/// A test that failed leaves a VMM running: end it before its directory goes.
impl Drop for Place {
    fn drop(&mut self) {
        let Ok(record) = std::fs::read(self.home().directory.join("vmm.json")) else {
            return;
        };
        let Ok(record) = serde_json::from_slice::<warren_hypervisor::process::Record>(&record)
        else {
            return;
        };
        if let warren_hypervisor::process::Stage::Started { process } = record.stage
            && warren_hypervisor::process::identify(process.pid) == Some(process.clone())
            && let Some(pid) = rustix::process::Pid::from_raw(process.pid.cast_signed())
        {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn random_byte() -> u8 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u8
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took more than {PATIENCE:?}"))
}

pub(crate) async fn all(subject: &dyn Subject) {
    starts_once_and_is_destroyed(subject).await;
    pauses_and_resumes(subject).await;
    is_saved_and_restored(subject).await;
    a_killed_vmm_is_dead_and_reaped(subject).await;
    a_restarted_warren_adopts(subject).await;
    what_is_not_there_is_said_to_be_absent(subject).await;
}

async fn starts_once_and_is_destroyed(subject: &dyn Subject) {
    let place = Place::new();
    let driver = subject.driver();
    let home = place.home();
    let process = soon("start", driver.start(&place.machine)).await.unwrap();
    assert_eq!(
        driver.observe(home).await.unwrap(),
        VmmSeen::Running {
            process: process.clone()
        }
    );
    let again = driver.start(&place.machine).await.unwrap_err();
    assert_eq!(again.class, ErrorClass::Conflict);
    assert_eq!(again.code, "vmm_running");
    assert_eq!(
        driver.observe(home).await.unwrap(),
        VmmSeen::Running {
            process: process.clone()
        },
        "a refused start changes nothing"
    );
    for stream in [
        driver.open_channel(home).await.unwrap(),
        driver.open_console(home).await.unwrap(),
    ] {
        is_open_and_ours_alone(&stream);
    }
    let usage = driver.usage(home).await.unwrap();
    assert!(usage.memory_rss > 0 && usage.memory_vms >= usage.memory_rss);

    soon("destroy", driver.destroy(home)).await.unwrap();
    assert_eq!(driver.observe(home).await.unwrap(), VmmSeen::Absent);
    assert!(is_gone(&process), "no process and no zombie");
    soon("destroy", driver.destroy(home)).await.unwrap();
    soon("wait_exit", driver.wait_exit(home)).await.unwrap();
    for disk in &place.machine.disks {
        assert!(disk.path.is_file(), "disks stay");
    }
    let next = soon("start", driver.start(&place.machine)).await.unwrap();
    assert_ne!(next, process);
    soon("destroy", driver.destroy(home)).await.unwrap();
}

async fn pauses_and_resumes(subject: &dyn Subject) {
    let place = Place::new();
    let driver = subject.driver();
    let home = place.home();
    let process = driver.start(&place.machine).await.unwrap();
    let pause = driver.pause().unwrap();
    for _ in 0..2 {
        soon("pause", pause.pause(home)).await.unwrap();
        assert_eq!(
            driver.observe(home).await.unwrap(),
            VmmSeen::Paused {
                process: process.clone()
            }
        );
    }
    for _ in 0..2 {
        soon("resume", pause.resume(home)).await.unwrap();
        assert_eq!(
            driver.observe(home).await.unwrap(),
            VmmSeen::Running {
                process: process.clone()
            }
        );
    }
    soon("pause", pause.pause(home)).await.unwrap();
    soon("destroy of a paused machine", driver.destroy(home))
        .await
        .unwrap();
    assert_eq!(driver.observe(home).await.unwrap(), VmmSeen::Absent);
    assert_eq!(
        pause.resume(home).await.unwrap_err().class,
        ErrorClass::NotFound
    );
}

async fn is_saved_and_restored(subject: &dyn Subject) {
    let place = Place::new();
    let driver = subject.driver();
    let home = place.home();
    let suspend = driver.suspend().unwrap();
    let pause = driver.pause().unwrap();
    let saved = place.root.path().join("saved");
    let fresh = || {
        let _ = std::fs::remove_dir_all(&saved);
        std::fs::create_dir(&saved).unwrap();
    };
    fresh();
    let nothing = soon("save of nothing", suspend.save(home, &saved)).await;
    assert_eq!(nothing.unwrap_err().class, ErrorClass::NotFound);

    let process = driver.start(&place.machine).await.unwrap();
    // A second time as well, as after a death between being saved and being noted.
    for _ in 0..2 {
        fresh();
        soon("pause", pause.pause(home)).await.unwrap();
        soon("save", suspend.save(home, &saved)).await.unwrap();
        let paused = VmmSeen::Paused {
            process: process.clone(),
        };
        assert_eq!(driver.observe(home).await.unwrap(), paused);
    }
    let while_it_is_there = suspend.restore(&place.machine, &saved).await.unwrap_err();
    assert_eq!(while_it_is_there.code, "vmm_running");
    soon("resume", pause.resume(home)).await.unwrap();
    let running = |process: &ProcessIdentity| VmmSeen::Running {
        process: process.clone(),
    };
    assert_eq!(driver.observe(home).await.unwrap(), running(&process));
    soon("destroy", driver.destroy(home)).await.unwrap();

    let next = soon("restore", suspend.restore(&place.machine, &saved))
        .await
        .unwrap();
    assert_ne!(next, process);
    let waits = VmmSeen::Paused {
        process: next.clone(),
    };
    assert_eq!(driver.observe(home).await.unwrap(), waits);
    soon("resume", pause.resume(home)).await.unwrap();
    assert_eq!(driver.observe(home).await.unwrap(), running(&next));
    is_open_and_ours_alone(&driver.open_channel(home).await.unwrap());
    soon("destroy", driver.destroy(home)).await.unwrap();
    assert!(is_gone(&next));

    fresh();
    assert!(suspend.restore(&place.machine, &saved).await.is_err());
    assert_eq!(driver.observe(home).await.unwrap(), VmmSeen::Absent);
}

async fn a_killed_vmm_is_dead_and_reaped(subject: &dyn Subject) {
    let place = Place::new();
    let driver = subject.driver();
    let home = place.home();
    let process = driver.start(&place.machine).await.unwrap();
    let waiting = {
        let (driver, home) = (driver.clone(), home.clone());
        tokio::spawn(async move { driver.wait_exit(&home).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    subject.kill(home, &process);
    soon("wait_exit", waiting).await.unwrap().unwrap();
    assert_eq!(driver.observe(home).await.unwrap(), VmmSeen::Dead);
    assert!(is_gone(&process), "no zombie");
    assert_eq!(
        driver.usage(home).await.unwrap_err().class,
        ErrorClass::NotFound
    );
    assert_eq!(
        driver.open_channel(home).await.unwrap_err().class,
        ErrorClass::NotFound
    );
    // A dead one does not stand in the way of a new one.
    let next = soon("start", driver.start(&place.machine)).await.unwrap();
    assert_eq!(
        driver.observe(home).await.unwrap(),
        VmmSeen::Running { process: next }
    );
    soon("destroy", driver.destroy(home)).await.unwrap();
    assert_eq!(driver.observe(home).await.unwrap(), VmmSeen::Absent);
}

async fn a_restarted_warren_adopts(subject: &dyn Subject) {
    let place = Place::new();
    let home = place.home();
    let process = subject.driver().start(&place.machine).await.unwrap();
    let restarted = subject.driver();
    assert_eq!(
        restarted.observe(home).await.unwrap(),
        VmmSeen::Running {
            process: process.clone()
        }
    );
    assert_eq!(
        restarted.start(&place.machine).await.unwrap_err().class,
        ErrorClass::Conflict
    );
    let pause = restarted.pause().unwrap();
    soon("pause", pause.pause(home)).await.unwrap();
    soon("resume", pause.resume(home)).await.unwrap();
    is_open_and_ours_alone(&restarted.open_channel(home).await.unwrap());
    soon("destroy", restarted.destroy(home)).await.unwrap();
    assert!(is_gone(&process));
}

async fn what_is_not_there_is_said_to_be_absent(subject: &dyn Subject) {
    let place = Place::new();
    let driver = subject.driver();
    let mut home = place.home().clone();
    for _ in 0..2 {
        assert_eq!(driver.observe(&home).await.unwrap(), VmmSeen::Absent);
        soon("wait_exit", driver.wait_exit(&home)).await.unwrap();
        soon("destroy", driver.destroy(&home)).await.unwrap();
        for failure in [
            driver.open_channel(&home).await.unwrap_err(),
            driver.open_console(&home).await.unwrap_err(),
            driver.usage(&home).await.unwrap_err(),
            driver.pause().unwrap().pause(&home).await.unwrap_err(),
        ] {
            assert_eq!(failure.class, ErrorClass::NotFound, "{failure}");
            assert_eq!(failure.code, "vmm_not_running");
        }
        // The same with no directory at all.
        home.directory = place.root.path().join("nowhere");
    }
}

fn is_open_and_ours_alone(stream: &OwnedFd) {
    use rustix::fs::OFlags;
    use rustix::io::FdFlags;
    let flags = rustix::fs::fcntl_getfl(stream).unwrap();
    assert!(flags.contains(OFlags::NONBLOCK));
    let flags = rustix::io::fcntl_getfd(stream).unwrap();
    assert!(flags.contains(FdFlags::CLOEXEC));
    assert!(rustix::net::getpeername(stream).is_ok(), "connected");
}

/// Not even a zombie is left.
fn is_gone(process: &ProcessIdentity) -> bool {
    matches!(
        warren_hypervisor::process::liveness(process),
        warren_hypervisor::process::Liveness::Gone
    )
}

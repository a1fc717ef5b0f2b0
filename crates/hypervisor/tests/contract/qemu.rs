//! Real QEMU against the contract, and what only a real VMM can show.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use crate::init;
use crate::skip::skip;
use crate::suite::{self, PATIENCE, Place, Subject};
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::AsyncReadExt;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{
    Accelerator, Hypervisor, Nic, NicBackend, ProcessIdentity, VmmSeen,
};
use warren_hypervisor::process::{Liveness, liveness};
use warren_hypervisor::{AccelChoice, Cache, KernelChoice, Qemu, QemuConfig};

struct Subjects {
    cache: Cache,
}

/// A cache of the tests' own with the machine's kernels in it.
fn cache() -> Cache {
    let own = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("warren-cache");
    std::fs::create_dir_all(&own).unwrap();
    let machines = Cache::from_environment(&own);
    let kernels = machines
        .readable()
        .map(|directory| directory.join("kernels"))
        .find(|kernels| kernels.is_dir());
    if let Some(kernels) = kernels {
        // Another test may have made it.
        let _there = std::os::unix::fs::symlink(kernels, own.join("kernels"));
    }
    Cache::at(own)
}

impl Subjects {
    /// `None`, loudly, where QEMU or a guest kernel is missing.
    fn new(test: &str) -> Option<Self> {
        let cache = cache();
        let path = std::env::var_os("PATH").unwrap();
        let qemu = std::env::split_paths(&path).any(|p| p.join("qemu-system-x86_64").is_file());
        let missing = if !qemu {
            "QEMU is not installed"
        } else if warren_hypervisor::kernel::find(&KernelChoice::Auto, &cache).is_err() {
            "there is no guest kernel in the cache"
        } else {
            return Some(Subjects { cache });
        };
        skip(test, missing);
        None
    }

    fn config(&self) -> QemuConfig {
        QemuConfig {
            binary: None,
            accel: AccelChoice::Auto,
            cache: self.cache.clone(),
            kernel: KernelChoice::Auto,
            guest_agent: init::elf().into(),
            extra_cmdline: Vec::new(),
        }
    }

    fn qemu(&self) -> Qemu {
        Qemu::new(self.config(), Arc::new(NoHelper))
    }
}

/// Most of these tests open no TAP.
struct NoHelper;

impl warren_helper::Helper for NoHelper {
    fn call(
        &self,
        _verb: warren_helper::Verb,
    ) -> futures::future::BoxFuture<'_, Result<warren_helper::Answer, warren_helper::HelperError>>
    {
        Box::pin(async {
            Err(warren_helper::HelperError::Permission {
                operation: "open a TAP".to_owned(),
            })
        })
    }
}

impl Subject for Subjects {
    fn driver(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.qemu())
    }

    fn kill(&self, _home: &InstanceHome, process: &ProcessIdentity) {
        assert_eq!(liveness(process), Liveness::Alive);
        let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

async fn console_until(driver: &Qemu, home: &InstanceHome, wanted: &str) -> String {
    let socket = driver.open_console(home).await.unwrap();
    let stream = std::os::unix::net::UnixStream::from(socket);
    let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
    let mut seen = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !seen.contains(wanted) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the console ended after: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        panic!("no {wanted:?} on the console, but: {seen}");
    }
    seen
}

#[tokio::test]
async fn qemu_keeps_the_contract() {
    let Some(subjects) = Subjects::new("qemu_keeps_the_contract") else {
        return;
    };
    suite::all(&subjects).await;
}

#[tokio::test]
async fn guests_boot_and_reach_init_with_every_kernel() {
    let test = "guests_boot_and_reach_init_with_every_kernel";
    let Some(subjects) = Subjects::new(test) else {
        return;
    };
    // And the user's own, whatever it is: init is all that the test needs of it.
    let own = std::env::var_os("WARREN_KERNEL").map(|image| KernelChoice::File {
        image: image.into(),
        modules: None,
    });
    for kernel in [KernelChoice::Tuned, KernelChoice::Distro]
        .into_iter()
        .chain(own)
    {
        let found = warren_hypervisor::kernel::find(&kernel, &subjects.cache);
        let Ok(found) = found else {
            skip(test, &format!("{kernel:?}: there is none in the cache"));
            continue;
        };
        let config = QemuConfig {
            kernel,
            ..subjects.config()
        };
        let driver = Qemu::new(config, Arc::new(NoHelper));
        let report = driver.probe().await.unwrap();
        assert_ne!(report.accelerator, Accelerator::None);
        assert_eq!(report.kernel, found.description);
        let place = Place::new();
        let begin = Instant::now();
        driver.start(&place.machine).await.unwrap();
        let started = begin.elapsed();
        let seen = driver.observe(place.home()).await.unwrap();
        let answered = begin.elapsed();
        console_until(&driver, place.home(), init::GREETING).await;
        eprintln!(
            "{}: start returned after {started:?}, QMP answered after {answered:?}, init ran after {:?}; {}",
            report.kernel,
            begin.elapsed(),
            report.reason
        );
        assert!(matches!(seen, VmmSeen::Running { .. }));
        let log = std::fs::read_to_string(place.home().directory.join("vmm.log")).unwrap();
        assert_eq!(log, "", "QEMU has nothing to complain about");
        driver.destroy(place.home()).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_reboots_ends_its_vmm() {
    let Some(subjects) = Subjects::new("a_guest_that_reboots_ends_its_vmm") else {
        return;
    };
    let driver = subjects.qemu();
    let mut place = Place::new();
    place.machine.boot_args.push("test-exit".to_owned());
    driver.start(&place.machine).await.unwrap();
    tokio::time::timeout(PATIENCE, driver.wait_exit(place.home()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(driver.observe(place.home()).await.unwrap(), VmmSeen::Dead);
    driver.destroy(place.home()).await.unwrap();
}

#[tokio::test]
async fn a_vmm_without_its_record_is_found_by_its_arguments() {
    let Some(subjects) = Subjects::new("a_vmm_without_its_record_is_found_by_its_arguments") else {
        return;
    };
    let driver = subjects.qemu();
    let place = Place::new();
    let process = driver.start(&place.machine).await.unwrap();
    let running = VmmSeen::Running {
        process: process.clone(),
    };
    for file in ["vmm.json", "vmm.lock"] {
        std::fs::remove_file(place.home().directory.join(file)).unwrap();
        assert_eq!(driver.observe(place.home()).await.unwrap(), running);
    }
    let mut other = place.home().clone();
    other.handle = "aaaaaaaa".parse().unwrap();
    other.directory = place.root.path().to_owned();
    assert_eq!(driver.observe(&other).await.unwrap(), VmmSeen::Absent);
    driver.destroy(place.home()).await.unwrap();
    assert_eq!(liveness(&process), Liveness::Gone);
}

#[tokio::test]
async fn a_stranger_with_a_recorded_pid_gets_no_signal() {
    let Some(subjects) = Subjects::new("a_stranger_with_a_recorded_pid_gets_no_signal") else {
        return;
    };
    let driver = subjects.qemu();
    let place = Place::new();
    driver.start(&place.machine).await.unwrap();
    let path = place.home().directory.join("vmm.json");
    let record = std::fs::read_to_string(&path).unwrap();
    // Start times are counted in ticks of 10 ms: the stranger's must be a later one.
    console_until(&driver, place.home(), init::GREETING).await;
    driver.destroy(place.home()).await.unwrap();

    let mut stranger = std::process::Command::new("sleep")
        .arg("60")
        .process_group(0)
        .spawn()
        .unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&record).unwrap();
    record["process"]["pid"] = stranger.id().into();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(driver.observe(place.home()).await.unwrap(), VmmSeen::Dead);
    driver.wait_exit(place.home()).await.unwrap();
    driver.destroy(place.home()).await.unwrap();
    assert_eq!(driver.observe(place.home()).await.unwrap(), VmmSeen::Absent);
    assert_eq!(stranger.try_wait().unwrap(), None, "it lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_hung_vmm_is_seen_running_and_can_be_destroyed() {
    let Some(subjects) = Subjects::new("a_hung_vmm_is_seen_running_and_can_be_destroyed") else {
        return;
    };
    let driver = subjects.qemu();
    let place = Place::new();
    let process = driver.start(&place.machine).await.unwrap();
    let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let begin = Instant::now();
    let seen = driver.observe(place.home()).await.unwrap();
    assert_eq!(
        seen,
        VmmSeen::Running {
            process: process.clone()
        }
    );
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    driver.destroy(place.home()).await.unwrap();
    assert_eq!(liveness(&process), Liveness::Gone);
}

#[tokio::test]
async fn a_vmm_is_detached_and_has_only_what_is_meant_for_it() {
    let Some(subjects) = Subjects::new("a_vmm_is_detached_and_has_only_what_is_meant_for_it")
    else {
        return;
    };
    let driver = subjects.qemu();
    let place = Place::new();
    // A descriptor that somebody forgot to mark.
    let forgotten = std::fs::File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).unwrap();
    let process = driver.start(&place.machine).await.unwrap();
    console_until(&driver, place.home(), init::GREETING).await;
    let proc = std::path::PathBuf::from(format!("/proc/{}", process.pid));
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let after_name: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    assert_eq!(after_name[4], process.pid.to_string(), "its own session");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(proc.join("fd")).unwrap().flatten() {
        if let Ok(target) = std::fs::read_link(entry.path()) {
            files.push(target.display().to_string());
        }
    }
    assert!(!files.iter().any(|file| file == "/dev/zero"), "{files:?}");
    assert!(files.iter().any(|file| file.ends_with("vmm.lock")));
    let environment = std::fs::read_to_string(proc.join("environ")).unwrap();
    assert!(environment.starts_with("PATH=") && !environment.contains("CARGO"));
    driver.destroy(place.home()).await.unwrap();
}

#[tokio::test]
async fn a_stream_network_is_connected_before_the_guest_runs() {
    let Some(subjects) = Subjects::new("a_stream_network_is_connected_before_the_guest_runs")
    else {
        return;
    };
    let driver = subjects.qemu();
    let mut place = Place::new();
    let socket = place.root.path().join("net.sock");
    place.machine.nic = Some(Nic {
        mac: "52:00:00:00:00:01".to_owned().try_into().unwrap(),
        backend: NicBackend::Stream {
            socket: socket.clone(),
        },
    });
    let refused = driver.start(&place.machine).await.unwrap_err();
    assert!(refused.message.contains("network"), "{refused}");
    let seen = driver.observe(place.home()).await.unwrap();
    assert_eq!(seen, VmmSeen::Absent, "a refused start leaves nothing");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    driver.start(&place.machine).await.unwrap();
    let (_stream, _) = listener.accept().unwrap();
    console_until(&driver, place.home(), init::GREETING).await;
    let log = std::fs::read_to_string(place.home().directory.join("vmm.log")).unwrap();
    assert_eq!(log, "");
    driver.destroy(place.home()).await.unwrap();
}

#[tokio::test]
async fn disks_come_in_the_order_they_were_given() {
    let test = "disks_come_in_the_order_they_were_given";
    let Some(subjects) = Subjects::new(test) else {
        return;
    };
    // Other kernels have no drivers before their init loads modules.
    if warren_hypervisor::kernel::find(&KernelChoice::Tuned, &subjects.cache).is_err() {
        return skip(test, "there is no tuned guest kernel in the cache");
    }
    let driver = subjects.qemu();
    let mut place = Place::new();
    place.machine.boot_args.push("ignore_loglevel".to_owned());
    for (disk, mebibytes) in place.machine.disks.iter().zip([3, 5]) {
        let file = std::fs::File::options()
            .write(true)
            .open(&disk.path)
            .unwrap();
        file.set_len(mebibytes << 20).unwrap();
    }
    driver.start(&place.machine).await.unwrap();
    let console = console_until(&driver, place.home(), init::GREETING).await;
    for disk in ["[vda] 6144 512-byte", "[vdb] 10240 512-byte"] {
        assert!(console.contains(disk), "{disk} in {console}");
    }
    driver.destroy(place.home()).await.unwrap();
}

/// Set in the copy of this test that runs in a network namespace of its own.
const IN_NAMESPACE: &str = "WARREN_TEST_IN_NAMESPACE";

#[test]
fn a_tap_is_opened_by_way_of_the_helper() {
    let test = "a_tap_is_opened_by_way_of_the_helper";
    let Some(subjects) = Subjects::new(test) else {
        return;
    };
    if std::env::var_os(IN_NAMESPACE).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(with_a_tap(&subjects));
    }
    let works = |program: &mut std::process::Command| {
        program.output().is_ok_and(|output| output.status.success())
    };
    if !works(std::process::Command::new("unshare").args(["--net", "true"]))
        || !std::path::Path::new("/dev/net/tun").exists()
    {
        return skip(test, "no network namespace or TAP can be made here");
    }
    let output = std::process::Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("qemu::{test}"), "--nocapture"])
        .env(IN_NAMESPACE, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn with_a_tap(subjects: &Subjects) {
    use warren_helper::{BridgeName, Handle, Helper, HelperExt, InProcess, Installation, Mtu};
    let helper: Arc<dyn Helper> = Arc::new(InProcess);
    let mut place = Place::new();
    let installation = Installation::new(place.home().installation.as_str()).unwrap();
    let handle = Handle::new(place.home().handle.as_str()).unwrap();
    let bridge = BridgeName::new("wbtest").unwrap();
    let mtu = Mtu::try_from(1500).unwrap();
    helper
        .ensure_bridge(
            installation.clone(),
            bridge.clone(),
            "10.99.0.1/24".parse().unwrap(),
            mtu,
        )
        .await
        .unwrap();
    let name = helper
        .ensure_tap(installation, handle, bridge, mtu, None)
        .await
        .unwrap();
    let driver = Qemu::new(subjects.config(), helper);
    let nic = |name: &str| {
        Some(Nic {
            mac: "52:00:00:00:00:01".to_owned().try_into().unwrap(),
            backend: NicBackend::Tap {
                name: name.to_owned(),
            },
        })
    };
    place.machine.nic = nic("wtaaaaaaaaaaaa");
    let refused = driver.start(&place.machine).await.unwrap_err();
    assert_eq!(refused.code, "tap_not_ours");
    place.machine.nic = nic(&name);
    driver.start(&place.machine).await.unwrap();
    console_until(&driver, place.home(), init::GREETING).await;
    let carrier = std::fs::read_to_string(format!("/sys/class/net/{name}/carrier"));
    // Another namespace's /sys shows other devices; then QEMU's silence must do.
    if let Ok(carrier) = carrier {
        assert_eq!(carrier.trim(), "1", "somebody holds the other end");
    }
    let log = std::fs::read_to_string(place.home().directory.join("vmm.log")).unwrap();
    assert_eq!(log, "");
    driver.destroy(place.home()).await.unwrap();
}

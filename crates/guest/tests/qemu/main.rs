//! The agent as PID 1 of a real VM: QEMU's microvm, an EROFS image, an ext4 upper, a virtio-serial channel.
//!
//! Needs `qemu-system-x86_64`, `mkfs.erofs`, `mke2fs`, a static busybox and a guest kernel (`WARREN_KERNEL`, or
//! the newest of `/var/cache/warren/kernels`); without one of them the test is skipped, loudly.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::client::{
    ClientError, FileError, GuestClient, GuestEvent, GuestEvents, unix_nanos_now,
};
use warren_guest::protocol::boot::InterfaceAddress;
use warren_guest::protocol::files::{Depth, FileFault, FileRequest, LastLink, Parents};
use warren_guest::protocol::{
    AttachKey, BootConfig, ExecOutput, ExecRequest, ExitReport, ExitStatus, HostEntry, LogEntry,
    NetworkConfig, StdinMode, Terminal, WorkloadConfig,
};

include!("../build-support/agent.rs");

/// A race that shows once in twenty times shows here.
const ROUNDS: usize = 10;
const SOON: Duration = Duration::from_secs(60);

/// A guest kernel with the modules that have to be in its initramfs.
struct Kernel {
    image: PathBuf,
    modules: Option<PathBuf>,
}

fn kernels() -> Vec<Kernel> {
    if let Some(image) = std::env::var_os("WARREN_KERNEL") {
        return vec![Kernel {
            image: image.into(),
            modules: None,
        }];
    }
    let Ok(entries) = fs::read_dir("/var/cache/warren/kernels") else {
        return Vec::new();
    };
    let mut found: Vec<Kernel> = entries
        .flatten()
        .map(|entry| Kernel {
            image: entry.path().join("vmlinux"),
            modules: Some(entry.path().join("modules")).filter(|modules| modules.is_dir()),
        })
        .filter(|kernel| kernel.image.is_file())
        .collect();
    found.sort_by(|one, other| other.image.cmp(&one.image));
    found
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// What is missing to run the test, in words.
fn missing() -> Option<String> {
    for program in ["qemu-system-x86_64", "mkfs.erofs", "mke2fs", "busybox"] {
        if find_program(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
    }
    kernels()
        .is_empty()
        .then(|| "no guest kernel: run ./dev kernel".to_owned())
}

fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}\n");
    let mut stderr = std::io::stderr();
    stderr.write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("WARREN_SKIP_FILE") {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let program = find_program(program).unwrap();
    let output = Command::new(&program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", program.display());
}

/// The newc archive format of cpio, as Documentation/driver-api/early-userspace/buffer-format.rst gives it.
struct Initramfs(Vec<u8>);

impl Initramfs {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let inode = self.0.len();
        let fields = [
            inode,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn build(agent: &Path, modules: Option<&Path>) -> Vec<u8> {
        let mut archive = Self::new();
        archive.entry("dev", 0o040_755, b"");
        archive.entry("init", 0o100_755, &fs::read(agent).unwrap());
        if let Some(modules) = modules {
            archive.entry("lib", 0o040_755, b"");
            archive.entry("lib/modules", 0o040_755, b"");
            for file in fs::read_dir(modules).unwrap().flatten() {
                let name = format!("lib/modules/{}", file.file_name().to_str().unwrap());
                archive.entry(&name, 0o100_644, &fs::read(file.path()).unwrap());
            }
        }
        archive.entry("TRAILER!!!", 0, b"");
        archive.0
    }
}

struct Vm {
    directory: tempfile::TempDir,
    process: Child,
    key: AttachKey,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            for file in ["serial.log", "qemu.err"] {
                let text = fs::read(self.directory.path().join(file)).unwrap_or_default();
                let _ = std::io::stderr().write_all(&text);
            }
        }
    }
}

impl Vm {
    fn start(kernel: &Kernel) -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-agent");
        let agent = build_guest_agent(&workspace, &target, "x86_64").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

        fs::write(
            path("initrd"),
            Initramfs::build(&agent, kernel.modules.as_deref()),
        )
        .unwrap();
        image(&directory.path().join("root"));
        run(
            "mkfs.erofs",
            &["--quiet", &path("root.erofs"), &path("root")],
        );
        fs::File::create(path("upper.ext4"))
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        run("mke2fs", &["-q", "-t", "ext4", &path("upper.ext4")]);

        let key = AttachKey::random();
        let append = format!("console=ttyS0 quiet reboot=t panic=-1 warren.attach={key}");
        // A distribution's kernel finds its devices on PCI only, or in a microvm's ACPI tables, which QEMU puts where the initrd
        // ends and may write that over.
        let (machine, bus) = match kernel.modules {
            None => (
                "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on",
                "device",
            ),
            Some(_) => ("pc,usb=off,vmport=off,hpet=off", "pci"),
        };
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", machine])
            .args([
                "-cpu",
                "max",
                "-accel",
                "tcg,thread=multi",
                "-m",
                "256",
                "-smp",
                "1",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args(["-serial", &format!("file:{}", path("serial.log"))])
            .args([
                "-kernel",
                kernel.image.to_str().unwrap(),
                "-initrd",
                &path("initrd"),
            ])
            .args(["-append", &append])
            .args(["-device", &format!("virtio-serial-{bus}")])
            .args([
                "-chardev",
                &format!("socket,id=ch,path={},server=on,wait=off", path("ch")),
            ])
            .args(["-device", "virtserialport,chardev=ch,name=warren.0"])
            .args([
                "-drive",
                &format!(
                    "id=r,if=none,format=raw,readonly=on,file={}",
                    path("root.erofs")
                ),
            ])
            .args(["-device", &format!("virtio-blk-{bus},drive=r")])
            .args([
                "-drive",
                &format!("id=u,if=none,format=raw,file={}", path("upper.ext4")),
            ])
            .args(["-device", &format!("virtio-blk-{bus},drive=u")])
            .args(["-netdev", "user,id=n,restrict=on"])
            .args([
                "-device",
                &format!("virtio-net-{bus},netdev=n,mac=52:54:00:12:34:56"),
            ])
            .stdin(Stdio::null())
            .stderr(fs::File::create(path("qemu.err")).unwrap())
            .spawn()
            .unwrap();
        Self {
            directory,
            process,
            key,
        }
    }

    async fn attach(&self) -> (GuestClient, GuestEvents) {
        let path = self.directory.path().join("ch");
        let connect = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    // QEMU has not made its socket yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let stream = timeout(SOON, connect).await.unwrap();
        GuestClient::attach(stream, &self.key, SOON).await.unwrap()
    }

    fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("serial.log")).unwrap())
            .into_owned()
    }

    /// Waits for QEMU to exit by itself.
    async fn gone(&mut self) {
        let deadline = Instant::now() + SOON;
        while self.process.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "QEMU is still there:\n{}",
                self.serial()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A busybox image with the awkward things real images have.
fn image(root: &Path) {
    for directory in ["bin", "etc", "home/web"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(find_program("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in [
        "sh", "cat", "echo", "id", "sleep", "env", "ps", "ip", "tty", "stty", "mount", "seq", "dd",
        "nc", "date", "pwd", "kill", "head", "true",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:1234:1235::/home/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nweb:x:1235:\nextra:x:777:web\n",
    )
    .unwrap();
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        root.join("etc/resolv.conf"),
    )
    .unwrap();
    fs::write(root.join("bin/not-executable"), "x").unwrap();
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

fn config(command: &[&str]) -> BootConfig {
    BootConfig {
        instance_id: "instance-1".to_owned(),
        hostname: "web".to_owned(),
        hosts: vec![HostEntry {
            address: "10.0.2.9".parse().unwrap(),
            names: words(&["db"]),
        }],
        nameservers: vec!["10.0.2.3".parse().unwrap()],
        search: words(&["internal"]),
        networks: vec![NetworkConfig {
            mac: Some("52:54:00:12:34:56".to_owned()),
            addresses: vec![
                InterfaceAddress {
                    address: "10.0.2.15".parse().unwrap(),
                    prefix: 24,
                },
                InterfaceAddress {
                    address: "fd00::15".parse().unwrap(),
                    prefix: 64,
                },
            ],
            gateways: vec!["10.0.2.2".parse().unwrap(), "fd00::1".parse().unwrap()],
            mtu: Some(1400),
        }],
        mounts: Vec::new(),
        workload: WorkloadConfig {
            command: words(command),
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            working_dir: "/srv/made/for/it".to_owned(),
            user: "web".to_owned(),
            stop_signal: "SIGUSR1".to_owned(),
            terminal: None,
            stdin: StdinMode::Null,
        },
        unix_nanos: unix_nanos_now(),
        entropy: vec![7; 64],
        exit_linger_millis: 2000,
    }
}

async fn shell(client: &GuestClient, script: &str) -> (String, ExitReport) {
    let request = ExecRequest {
        command: words(&["sh", "-c", script]),
        ..ExecRequest::default()
    };
    exec(client, request).await
}

async fn exec(client: &GuestClient, request: ExecRequest) -> (String, ExitReport) {
    let mut running = client.exec(request).await.unwrap();
    let got = timeout(SOON, running.output.collect(1 << 20))
        .await
        .unwrap()
        .unwrap();
    (
        String::from_utf8(got.stdout).unwrap() + &String::from_utf8(got.stderr).unwrap(),
        got.exit,
    )
}

async fn event(events: &mut GuestEvents) -> GuestEvent {
    timeout(SOON, events.next()).await.unwrap().unwrap()
}

const COUNTING: &str = "echo $GREETING from $(id -un) in $(pwd); echo oops >&2; \
    trap 'echo stopping; exit 3' USR1; n=0; while true; do n=$((n+1)); echo count $n; sleep 0.05; done";

#[tokio::test]
async fn guest_boots_in_qemu() {
    if let Some(reason) = missing() {
        return skip("guest_boots_in_qemu", &reason);
    }
    for kernel in kernels() {
        whole_life(&kernel).await;
    }
}

async fn whole_life(kernel: &Kernel) {
    let start = Instant::now();
    let mut vm = Vm::start(kernel);
    let (client, mut events) = vm.attach().await;
    assert_eq!(client.instance_id(), None);
    client.boot(config(&["sh", "-c", COUNTING])).await.unwrap();
    match event(&mut events).await {
        GuestEvent::Ready(report) => {
            let line = format!(
                "{}: {report:?} after {:?}\n",
                kernel.image.display(),
                start.elapsed()
            );
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        event(&mut events).await,
        GuestEvent::Started { .. }
    ));
    configuration(&client).await;
    files(&client).await;
    for _ in 0..ROUNDS {
        commands(&client).await;
    }

    // Hosts come and go, in the middle of a command; the workload's count has no holes.
    let mut log = Vec::new();
    let mut next = 1;
    drop((client, events));
    for _ in 0..5 {
        let (client, mut events) = vm.attach().await;
        assert_eq!(client.instance_id(), Some("instance-1"));
        assert!(matches!(event(&mut events).await, GuestEvent::Ready(_)));
        let mut logs = client.logs(next).await.unwrap();
        for _ in 0..3 {
            match timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap() {
                LogEntry::Record(record) => {
                    next = record.seq + 1;
                    log.extend_from_slice(&record.data);
                }
                other => panic!("{other:?}"),
            }
        }
        client.ack_logs(next - 1).await.unwrap();
        let request = ExecRequest {
            command: words(&["cat"]),
            ..ExecRequest::default()
        };
        let mut cat = client.exec(request).await.unwrap();
        cat.input.stdin(&[0x55; 100_000]).await.unwrap();
    }

    // Stopped by its own signal; its exit is told twice, because nobody acknowledged it the first time.
    let (client, mut events) = vm.attach().await;
    assert_eq!(shell(&client, "ps | grep -c ' cat$'").await.0.trim(), "0");
    client
        .shutdown(None, Duration::from_secs(20))
        .await
        .unwrap();
    let exited = GuestEvent::Exited(ExitReport::code(3));
    while event(&mut events).await != exited {}
    drop((client, events));
    let (client, mut events) = vm.attach().await;
    while event(&mut events).await != exited {}
    let mut logs = client.logs(next).await.unwrap();
    while let Some(entry) = timeout(SOON, logs.next()).await.unwrap().unwrap() {
        match entry {
            LogEntry::Record(record) => log.extend_from_slice(&record.data),
            LogEntry::End { .. } => {}
            LogEntry::Gap { from, to } => panic!("gap from {from} to {to}"),
        }
    }
    client.ack_exit().await.unwrap();
    vm.gone().await;
    counted(&String::from_utf8(log).unwrap());
    assert!(
        vm.serial().contains("workload exited: Code(3)"),
        "{}",
        vm.serial()
    );
    let upper = vm.directory.path().join("upper.ext4");
    run("e2fsck", &["-fn", upper.to_str().unwrap()]);
}

fn counted(log: &str) {
    assert!(
        log.contains("hello from web in /srv/made/for/it\n"),
        "{log}"
    );
    assert!(
        log.contains("oops\n") && log.ends_with("stopping\n"),
        "{log}"
    );
    let counts: Vec<u64> = log
        .lines()
        .filter_map(|line| line.strip_prefix("count ")?.parse().ok())
        .collect();
    assert!(counts.len() > 10);
    assert!(
        counts
            .iter()
            .zip(1..)
            .all(|(count, expected)| *count == expected),
        "{counts:?}"
    );
}

async fn configuration(client: &GuestClient) {
    let (ids, _) = shell(client, "id -u; id -g; id -G").await;
    assert_eq!(ids, "1234\n1235\n1235 777\n");
    let root = |script: &str| ExecRequest {
        command: words(&["sh", "-c", script]),
        user: Some("root".to_owned()),
        working_dir: Some("/".to_owned()),
        ..ExecRequest::default()
    };
    let (names, _) = exec(client, root("hostname 2>/dev/null || busybox hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts")).await;
    assert!(
        names.starts_with("web\nweb\nnameserver 10.0.2.3\nsearch internal\n"),
        "{names}"
    );
    assert!(
        names.contains("10.0.2.15\tweb\n") && names.contains("10.0.2.9\tdb\n"),
        "{names}"
    );
    let (network, _) = exec(client, root("ip addr; ip route; ip -6 route")).await;
    for part in [
        "inet 10.0.2.15/24",
        "inet6 fd00::15/64",
        "mtu 1400",
        "default via 10.0.2.2",
        "default via fd00::1",
        "inet 127.0.0.1/8",
    ] {
        assert!(network.contains(part), "{part} in\n{network}");
    }
    // The kernel's own link-local address may still be.
    let tentative = |line: &str| line.contains("fd00::15") && line.contains("tentative");
    assert!(!network.lines().any(tentative), "{network}");
    let (mounts, _) = exec(
        client,
        root("cat /proc/mounts; touch /x 2>/dev/null || busybox touch /x"),
    )
    .await;
    for part in [
        "overlay / overlay",
        "proc /proc",
        "devpts /dev/pts",
        "tmpfs /dev/shm",
        "cgroup2 /sys/fs/cgroup",
    ] {
        assert!(mounts.contains(part), "{part} in\n{mounts}");
    }
    let (date, _) = shell(client, "date +%s").await;
    let seconds: u64 = date.trim().parse().unwrap();
    assert!(seconds.abs_diff(unix_nanos_now() / 1_000_000_000) < 5);
    let stats = client.stats().await.unwrap();
    assert!(
        stats.memory_total_bytes > 100 << 20 && stats.disk_total_bytes > 100 << 20,
        "{stats:?}"
    );
    assert!(
        stats.cpus == 1 && stats.uptime_millis > 0 && stats.tasks > 1,
        "{stats:?}"
    );
}

async fn write(client: &GuestClient, path: &str, data: &[u8]) -> Result<u64, FileError> {
    let request = FileRequest::Write {
        path: path.to_owned(),
        mode: Some(0o640),
        owner: Some((1234, 1235)),
        parents: Parents::Created,
    };
    let mut writer = client.write_file(request).await?;
    writer.write(data).await?;
    writer.finish().await
}

async fn read(client: &GuestClient, path: &str) -> Result<Vec<u8>, FileError> {
    let (_, mut reader) = client.read_file(path, 0, None).await?;
    let mut all = Vec::new();
    while let Some(piece) = timeout(SOON, reader.next()).await.unwrap()? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Files in the workload's root, and in nothing else that the agent could see.
async fn files(client: &GuestClient) {
    let data: Vec<u8> = (0..20_000_000u32).map(|n| (n / 7) as u8).collect();
    let start = Instant::now();
    let written = write(client, "/srv/new/data", &data).await.unwrap();
    let (took, start) = (start.elapsed(), Instant::now());
    assert!(written == data.len() as u64 && read(client, "/srv/new/data").await.unwrap() == data);
    let line = format!(
        "20 MB in within {took:?}, out within {:?}\n",
        start.elapsed()
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    let look = "cd /srv/new; busybox md5sum data | cut -c 1-32; busybox stat -c '%a %u %g' data; busybox ls -A";
    let sum = data_sum(&data);
    let seen = shell(client, look).await.0;
    assert_eq!(seen, format!("{sum}\n640 1234 1235\ndata\n"));

    // Links are the workload's, whatever they say.
    let root = |script: &str| ExecRequest {
        command: words(&["sh", "-c", script]),
        user: Some("root".to_owned()),
        ..ExecRequest::default()
    };
    let links = "busybox ln -s /etc /far; busybox ln -s ../../../etc/passwd /near; busybox ln -s /upper /upper-link; \
                 busybox mkdir /small && mount -t tmpfs -o size=100k none /small; busybox mkfifo /pipe";
    let (said, _) = exec(client, root(links)).await;
    assert_eq!(said, "");
    for path in ["/far/passwd", "/near", "/../../etc/passwd"] {
        let text = read(client, path).await.unwrap();
        assert!(text.starts_with(b"root:x:0:0"), "{path}");
    }
    let fault = |result: Result<_, FileError>| match result {
        Err(FileError::Fault { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    for agents_own in [
        "/init",
        "/newroot",
        "/upper/upper",
        "/upper-link/upper",
        "/lower/bin",
    ] {
        let stat = client.stat_file(agents_own, LastLink::Followed).await;
        assert_eq!(fault(stat.map(drop)), FileFault::NotFound, "{agents_own}");
    }
    for (path, expected) in [
        ("/dev/zero", FileFault::Unsuitable),
        ("/pipe", FileFault::Unsuitable),
        ("/etc", FileFault::IsADirectory),
    ] {
        assert_eq!(
            fault(read(client, path).await.map(drop)),
            expected,
            "{path}"
        );
    }
    let made_up = read(client, "/proc/cpuinfo").await.unwrap();
    assert!(made_up.starts_with(b"processor"));
    let full = write(client, "/small/data", &data).await;
    assert_eq!(fault(full.map(drop)), FileFault::NoSpace);
    assert_eq!(shell(client, "busybox ls -A /small").await.0, "");
    let remove = |path: &str| {
        let (path, depth) = (path.to_owned(), Depth::Recursive);
        client.change_files(FileRequest::Remove { path, depth })
    };
    assert_eq!(fault(remove("/small").await), FileFault::NotPermitted);
    for path in ["/srv/new", "/far", "/near", "/upper-link", "/pipe"] {
        remove(path).await.unwrap();
    }
    assert!(read(client, "/etc/passwd").await.is_ok());
    let mut list = client.list_files("/", Depth::Recursive).await.unwrap();
    let mut paths = Vec::new();
    while let Some(files) = timeout(SOON, list.next()).await.unwrap().unwrap() {
        paths.extend(files.into_iter().map(|file| file.path));
    }
    assert!(paths.iter().any(|path| path == "bin/busybox"), "{paths:?}");
    assert!(!paths.iter().any(|path| path.starts_with("proc/")));
}

/// What `md5sum` says, asked of this machine's.
fn data_sum(data: &[u8]) -> String {
    let mut program = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(data).unwrap();
    let output = program.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

async fn commands(client: &GuestClient) {
    client.ping().await.unwrap();
    assert_eq!(shell(client, "exit 7").await.1, ExitReport::code(7));
    assert_eq!(
        shell(client, "kill -9 $$").await.1.status,
        ExitStatus::Signal(9)
    );
    for (command, code) in [
        ("nothing-like-it", 127),
        ("/bin/none", 127),
        ("/bin/not-executable", 126),
    ] {
        let request = ExecRequest {
            command: words(&[command]),
            ..ExecRequest::default()
        };
        let (_, exit) = exec(client, request).await;
        assert_eq!(exit.status, ExitStatus::Code(code), "{exit:?}");
        assert!(
            exit.message
                .unwrap()
                .starts_with(&format!("exec {command}: "))
        );
    }
    let request = ExecRequest {
        command: words(&["sleep", "1000"]),
        timeout_millis: Some(200),
        ..ExecRequest::default()
    };
    let (_, exit) = exec(client, request).await;
    assert_eq!(
        (exit.status, exit.message.is_some()),
        (ExitStatus::Signal(9), true)
    );

    let data: Vec<u8> = (0..500_000u32).map(|number| (number / 3) as u8).collect();
    let request = ExecRequest {
        command: words(&["cat"]),
        ..ExecRequest::default()
    };
    let mut cat = client.exec(request).await.unwrap();
    let feed = async {
        cat.input.stdin(&data).await.unwrap();
        cat.input.close_stdin().await.unwrap();
    };
    let both = async { tokio::join!(cat.output.collect(usize::MAX), feed) };
    let (got, ()) = timeout(SOON, both).await.unwrap();
    assert!(got.unwrap().stdout == data);

    // A terminal: size, Ctrl-C, end of input.
    let request = ExecRequest {
        command: words(&[
            "sh",
            "-c",
            "tty; stty size; cat; trap 'stty size; echo caught; exit 9' INT; echo armed; \
             while true; do sleep 0.05; done",
        ]),
        terminal: Some(Terminal {
            rows: 30,
            cols: 100,
        }),
        ..ExecRequest::default()
    };
    let mut running = client.exec(request).await.unwrap();
    let mut seen = until(&mut running.output, "30 100").await;
    assert!(seen.contains("/dev/pts/"), "{seen}");
    running.input.close_stdin().await.unwrap();
    seen.push_str(&until(&mut running.output, "armed").await);
    running
        .input
        .resize(Terminal {
            rows: 40,
            cols: 120,
        })
        .await
        .unwrap();
    running.input.stdin(b"\x03").await.unwrap();
    let rest = timeout(SOON, running.output.collect(10_000))
        .await
        .unwrap()
        .unwrap();
    seen.push_str(&String::from_utf8(rest.stdout).unwrap());
    assert!(seen.contains("40 120") && seen.contains("caught"), "{seen}");
    assert_eq!(rest.exit, ExitReport::code(9));
}

/// A workload that writes all the time is held still: the disk does not change, and a copy of it is clean.
async fn holding_still(vm: &Vm, client: &GuestClient) {
    let upper = vm.directory.path().join("upper.ext4");
    let changed = || fs::metadata(&upper).unwrap().modified().unwrap();
    let writing = ExecRequest {
        command: words(&[
            "sh",
            "-c",
            "n=0; while true; do n=$((n+1)); echo $n > /written; dd if=/dev/zero of=/bulk bs=64k count=8 \
             2>/dev/null; done",
        ]),
        user: Some("root".to_owned()),
        ..ExecRequest::default()
    };
    let writer = client.exec(writing).await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        let frozen = client.freeze(SOON).await.unwrap();
        let before = changed();
        let copy = vm.directory.path().join("copy.ext4");
        fs::copy(&upper, &copy).unwrap();
        // What only reads goes on meanwhile; what writes waits, and the agent waits for neither.
        let (text, _) = shell(client, "cat /etc/hostname").await;
        assert_eq!(text, "web\n");
        assert_eq!(changed(), before);
        frozen.thaw().await.unwrap();
        run("e2fsck", &["-fn", copy.to_str().unwrap()]);
        let (count, _) = shell(client, "cat /written").await;
        counts.push(count.trim().parse::<u64>().unwrap_or(0));
    }
    let more = timeout(SOON, async {
        loop {
            let (count, _) = shell(client, "cat /written").await;
            if count
                .trim()
                .parse::<u64>()
                .is_ok_and(|count| count > counts[2])
            {
                return;
            }
        }
    });
    more.await.unwrap();
    // A host that says nothing more: the guest's own time is up.
    let frozen = client.freeze(Duration::from_millis(100)).await.unwrap();
    let (written, _) = shell(client, "echo on > /tmp/goes-on && cat /tmp/goes-on").await;
    assert_eq!(written, "on\n");
    assert!(matches!(
        frozen.thaw().await,
        Err(ClientError::NotHeld { .. })
    ));
    drop(writer);
}

async fn until(output: &mut warren_guest::client::ExecReader, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match timeout(SOON, output.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            ExecOutput::Stdout(data) => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} after {seen}"),
        }
    }
    seen
}

#[tokio::test]
async fn a_guest_that_writes_holds_still_and_goes_on_whatever_happens() {
    if let Some(reason) = missing() {
        return skip(
            "a_guest_that_writes_holds_still_and_goes_on_whatever_happens",
            &reason,
        );
    }
    let mut vm = Vm::start(&kernels()[0]);
    let (client, mut events) = vm.attach().await;
    client.boot(config(&["sh", "-c", COUNTING])).await.unwrap();
    while !matches!(event(&mut events).await, GuestEvent::Started { .. }) {}
    holding_still(&vm, &client).await;
    // A frozen disk does not keep a guest from leaving, nor from leaving it clean.
    let _frozen = client.freeze(SOON).await.unwrap();
    client
        .shutdown(None, Duration::from_secs(20))
        .await
        .unwrap();
    let exited = GuestEvent::Exited(ExitReport::code(3));
    while event(&mut events).await != exited {}
    client.ack_exit().await.unwrap();
    vm.gone().await;
    let upper = vm.directory.path().join("upper.ext4");
    run("e2fsck", &["-fn", upper.to_str().unwrap()]);
}

#[tokio::test]
async fn workload_that_is_not_there_is_reported_and_the_guest_leaves_without_a_host() {
    if let Some(reason) = missing() {
        return skip(
            "workload_that_is_not_there_is_reported_and_the_guest_leaves_without_a_host",
            &reason,
        );
    }
    let mut vm = Vm::start(&kernels()[0]);
    let (client, mut events) = vm.attach().await;
    client.boot(config(&["/no/such/entrypoint"])).await.unwrap();
    let report = loop {
        if let GuestEvent::Exited(report) = event(&mut events).await {
            break report;
        }
    };
    assert_eq!(report.status, ExitStatus::Code(127));
    let message = report.message.unwrap();
    assert_eq!(
        message,
        "exec /no/such/entrypoint: no such file or directory"
    );
    drop((client, events));
    vm.gone().await;
}

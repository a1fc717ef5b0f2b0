//! The arm it is measured against: the very arguments of one of the server's VMMs, read back from the
//! process, with descriptors replaced by paths, started by hand. Ready is the same word of the same agent.

use crate::server::BenchServer;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use warren_guest::client::{GuestClient, GuestEvent, GuestEvents};
use warren_guest::protocol::{AttachKey, BootConfig, WorkloadConfig, unix_nanos_now};

const PATIENCE: Duration = Duration::from_secs(120);

/// QEMU as somebody would start it by hand.
pub(crate) struct BareQemu {
    arguments: Vec<String>,
    /// The writable disk of the guest that the arguments are from.
    disk: PathBuf,
    key: AttachKey,
    directory: tempfile::TempDir,
    /// The empty writable disk each run starts from.
    empty: PathBuf,
    /// TAPs made, one a slot. Removed with the benchmark.
    taps: usize,
}

/// A started one; ended when dropped.
pub(crate) struct BareGuest {
    process: Child,
    /// Keeps the session: the guest goes on without, but it is what the server does.
    session: Option<(GuestClient, GuestEvents)>,
    directory: PathBuf,
}

impl BareGuest {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it is asked to do things with.
    pub(crate) fn client(&self) -> anyhow::Result<&GuestClient> {
        let session = self.session.as_ref().context("the guest is not ready")?;
        Ok(&session.0)
    }

    /// The host's end of the port that nobody of ours speaks on.
    pub(crate) async fn raw_port(&self) -> anyhow::Result<UnixStream> {
        let socket = self.directory.join(RAW_SOCKET);
        UnixStream::connect(socket).await.context("the raw port")
    }
}

/// Of a machine that has one: a second port beside the agent's, on the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawPort {
    Absent,
    Present,
}

/// What that port is in the guest, for its shell: the number of its device depends on what else there is.
pub(crate) const RAW_DEVICE: &str = "$(echo /dev/vport*p2)";
const RAW_SOCKET: &str = "raw.sock";

impl Drop for BareGuest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn tap(slot: usize) -> String {
    format!("wrnbare{slot}")
}

impl BareQemu {
    /// Reads the arguments of a guest that the server runs, then removes that guest.
    pub(crate) async fn like_a_guest_of(server: &BenchServer) -> anyhow::Result<Self> {
        server.create("model").await?;
        let home = std::fs::read_dir(server.instances())?
            .next()
            .context("no instance directory")??
            .path();
        let arguments = arguments_of_qemu_in(&home)?;
        let directory = tempfile::Builder::new().prefix("wrnq").tempdir()?;
        let append = arguments
            .iter()
            .find(|word| word.contains("warren.attach="))
            .context("no kernel command line")?;
        let key = append
            .split(' ')
            .find_map(|word| word.strip_prefix("warren.attach="))
            .context("no key")?
            .parse()?;
        let disk = home.join("disk.ext4");
        let size = std::fs::metadata(&disk)?.len();
        server.delete("model").await?;
        let empty = directory.path().join("empty.ext4");
        std::fs::File::create(&empty)?.set_len(size)?;
        let made = Command::new("/sbin/mkfs.ext4")
            .args(["-q", "-E", "lazy_itable_init=1,nodiscard"])
            .arg(&empty)
            .status()?;
        anyhow::ensure!(made.success(), "mkfs.ext4 failed");
        let mut bare = BareQemu {
            arguments: arguments.into_iter().skip(1).collect(),
            disk,
            key,
            directory,
            empty,
            taps: 0,
        };
        bare.make_taps(1)?;
        Ok(bare)
    }

    /// Makes TAPs for so many slots.
    pub(crate) fn make_taps(&mut self, slots: usize) -> anyhow::Result<()> {
        while self.taps < slots {
            let name = tap(self.taps);
            self.taps += 1;
            let ip = |arguments: &[&str]| Command::new("/sbin/ip").args(arguments).status();
            let made = ip(&["tuntap", "add", &name, "mode", "tap"])?;
            anyhow::ensure!(made.success(), "the TAP {name} could not be made");
            ip(&["link", "set", &name, "up"])?;
        }
        Ok(())
    }

    /// An argument without inherited descriptors and without the server's own paths.
    fn by_path(&self, word: &str, home: &Path, slot: usize) -> anyhow::Result<String> {
        let word = word.replace(
            &self.disk.display().to_string(),
            &home.join("disk.ext4").display().to_string(),
        );
        let Some(start) = word.find("fd=") else {
            return Ok(word);
        };
        let end = word[start..]
            .find(',')
            .map_or(word.len(), |comma| start + comma);
        let (before, after) = (&word[..start], &word[end..]);
        if word.starts_with("socket,") {
            let id = word
                .split(',')
                .find_map(|part| part.strip_prefix("id="))
                .context("a chardev without id")?;
            let socket = home.join(format!("{id}.sock"));
            return Ok(format!("{before}path={}{after}", socket.display()));
        }
        if word.starts_with("tap,") {
            return Ok(format!(
                "{before}ifname={},script=no,downscript=no{after}",
                tap(slot)
            ));
        }
        bail!("an argument with a descriptor that is not known here: {word}")
    }

    /// From the start of the process to the agent's "ready".
    pub(crate) async fn start_to_ready(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let guest = self.start(0, RawPort::Absent).await?;
        let took = start.elapsed();
        drop(guest);
        Ok(took)
    }

    /// Starts one and waits for its "ready". The server clones its disk inside the measured time, so this does too.
    pub(crate) async fn start(&self, slot: usize, raw: RawPort) -> anyhow::Result<BareGuest> {
        let home = self.directory.path().join(slot.to_string());
        std::fs::create_dir(&home)?;
        clone_sparse(&self.empty, &home.join("disk.ext4"))?;
        let mut arguments: Vec<String> = self
            .arguments
            .iter()
            .map(|word| self.by_path(word, &home, slot))
            .collect::<anyhow::Result<_>>()?;
        if raw == RawPort::Present {
            add_raw_port(&mut arguments, &home.join(RAW_SOCKET))?;
        }
        let process = Command::new("qemu-system-x86_64")
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        let mut guest = BareGuest {
            process,
            session: None,
            directory: home.clone(),
        };
        let session = tokio::time::timeout(PATIENCE, self.ready(&home.join("channel.sock")))
            .await
            .context("bare QEMU's guest was not ready in time")??;
        guest.session = Some(session);
        Ok(guest)
    }

    async fn ready(&self, channel: &Path) -> anyhow::Result<(GuestClient, GuestEvents)> {
        let stream = loop {
            match UnixStream::connect(channel).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let (client, mut events) = GuestClient::attach(stream, &self.key, PATIENCE).await?;
        client.boot(boot_config()).await?;
        while let Some(event) = events.next().await {
            match event {
                GuestEvent::Ready(_) => return Ok((client, events)),
                GuestEvent::Started { .. } => {}
                other => bail!("the guest said {other:?}"),
            }
        }
        bail!("the guest went away")
    }
}

impl Drop for BareQemu {
    fn drop(&mut self) {
        for slot in 0..self.taps {
            let _ = Command::new("/sbin/ip")
                .args(["link", "delete", &tap(slot)])
                .status();
        }
    }
}

/// The device has room for the console's port, which is unused, and the agent's; there is one more now.
fn add_raw_port(arguments: &mut Vec<String>, socket: &Path) -> anyhow::Result<()> {
    let device = arguments
        .iter_mut()
        .find(|word| word.starts_with("virtio-serial-"))
        .context("no serial device")?;
    *device = device.replace("max_ports=2", "max_ports=3");
    let socket = socket.display();
    arguments.extend([
        "-chardev".to_owned(),
        format!("socket,id=raw,path={socket},server=on,wait=off"),
        "-device".to_owned(),
        "virtserialport,bus=serial0.0,nr=2,chardev=raw,name=raw.0".to_owned(),
    ]);
    Ok(())
}

fn clone_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .arg(from)
        .arg(to)
        .status()?;
    anyhow::ensure!(copied.success(), "the empty disk could not be copied");
    Ok(())
}

fn boot_config() -> BootConfig {
    BootConfig {
        instance_id: "bare".to_owned(),
        hostname: "bare".to_owned(),
        hosts: Vec::new(),
        nameservers: Vec::new(),
        search: Vec::new(),
        networks: Vec::new(),
        mounts: Vec::new(),
        workload: WorkloadConfig {
            command: vec!["sleep".to_owned(), "100000".to_owned()],
            env: vec![("PATH".to_owned(), "/bin:/usr/bin".to_owned())],
            working_dir: String::new(),
            user: String::new(),
            stop_signal: String::new(),
            terminal: None,
            stdin: Default::default(),
        },
        unix_nanos: unix_nanos_now(),
        entropy: Vec::new(),
        authorized_keys: Vec::new(),
        exit_linger_millis: 60_000,
    }
}

/// The command line of the QEMU process that works in an instance's directory.
fn arguments_of_qemu_in(home: &Path) -> anyhow::Result<Vec<String>> {
    Ok(qemu_in(home)?.1)
}

/// The VMM of the instance whose directory this is: its pid and its arguments.
pub(crate) fn qemu_in(home: &Path) -> anyhow::Result<(u32, Vec<String>)> {
    let home = home.display().to_string();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let qemu = words
            .first()
            .is_some_and(|program| program.contains("qemu-system"));
        if qemu && words.iter().any(|word| word.contains(&home)) {
            let pid = entry.file_name().to_string_lossy().parse()?;
            let words = words.into_iter().filter(|word| !word.is_empty());
            return Ok((pid, words.collect()));
        }
    }
    bail!("found no QEMU of {home}")
}

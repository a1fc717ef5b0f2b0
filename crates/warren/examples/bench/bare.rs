//! The arm it is measured against: the very arguments of one of the server's VMMs, read back from the
//! process, with descriptors replaced by paths, started by hand. Ready is the same word of the same agent.

use crate::server::BenchServer;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use warren_guest::client::{GuestClient, GuestEvent, unix_nanos_now};
use warren_guest::protocol::{AttachKey, BootConfig, WorkloadConfig};

const PATIENCE: Duration = Duration::from_secs(120);
/// Removed with the benchmark.
const TAP: &str = "wrnbare0";

pub(crate) struct BareQemu {
    arguments: Vec<String>,
    key: AttachKey,
    directory: tempfile::TempDir,
    /// The empty writable disk each run starts from.
    empty: PathBuf,
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
        let tap = Command::new("/sbin/ip")
            .args(["tuntap", "add", TAP, "mode", "tap"])
            .status()?;
        anyhow::ensure!(tap.success(), "the TAP {TAP} could not be made");
        Command::new("/sbin/ip")
            .args(["link", "set", TAP, "up"])
            .status()?;
        let mut bare = BareQemu {
            arguments: Vec::new(),
            key,
            directory,
            empty,
        };
        bare.arguments = arguments
            .into_iter()
            .skip(1)
            .map(|word| bare.by_path(&word, &disk))
            .collect::<anyhow::Result<_>>()?;
        Ok(bare)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.sock"))
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.ext4")
    }

    /// An argument without inherited descriptors and without the server's own paths.
    fn by_path(&self, word: &str, disk: &Path) -> anyhow::Result<String> {
        let word = word.replace(
            &disk.display().to_string(),
            &self.disk().display().to_string(),
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
            return Ok(format!("{before}path={}{after}", self.socket(id).display()));
        }
        if word.starts_with("tap,") {
            return Ok(format!(
                "{before}ifname={TAP},script=no,downscript=no{after}"
            ));
        }
        bail!("an argument with a descriptor that is not known here: {word}")
    }

    /// From the start of the process to the agent's "ready".
    pub(crate) async fn start_to_ready(&self) -> anyhow::Result<Duration> {
        // The server clones its disk inside the measured time, so this arm does too.
        let start = Instant::now();
        clone_sparse(&self.empty, &self.disk())?;
        let mut process = Command::new("qemu-system-x86_64")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        let ready = tokio::time::timeout(PATIENCE, self.ready()).await;
        let took = start.elapsed();
        process.kill()?;
        process.wait()?;
        for name in ["qmp", "console", "channel"] {
            let _ = std::fs::remove_file(self.socket(name));
        }
        ready.context("bare QEMU's guest was not ready in time")??;
        Ok(took)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let stream = loop {
            match UnixStream::connect(self.socket("channel")).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let (client, mut events) = GuestClient::attach(stream, &self.key, PATIENCE).await?;
        client.boot(boot_config()).await?;
        while let Some(event) = events.next().await {
            match event {
                GuestEvent::Ready(_) => return Ok(()),
                GuestEvent::Started { .. } => {}
                other => bail!("the guest said {other:?}"),
            }
        }
        bail!("the guest went away")
    }
}

impl Drop for BareQemu {
    fn drop(&mut self) {
        let _ = Command::new("/sbin/ip")
            .args(["link", "delete", TAP])
            .status();
    }
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
        exit_linger_millis: 60_000,
    }
}

/// The command line of the QEMU process that works in an instance's directory.
fn arguments_of_qemu_in(home: &Path) -> anyhow::Result<Vec<String>> {
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
            return Ok(words.into_iter().filter(|word| !word.is_empty()).collect());
        }
    }
    bail!("found no QEMU of {home}")
}

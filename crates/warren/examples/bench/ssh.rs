//! What guest access is measured against: the distribution's OpenSSH server inside the very guest, and its client with one
//! connection that is kept (ControlMaster), so that no run pays for a handshake.

use crate::command::run;
use crate::rows::images::layouts;
use crate::server::BenchServer;
use anyhow::{Context, bail};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Until the server in the guest must take connections.
const PATIENCE: Duration = Duration::from_secs(60);

/// An instance whose workload is sshd, and a connection to it.
pub(crate) struct SshGuest {
    name: &'static str,
    address: String,
    /// Key and control socket.
    home: tempfile::TempDir,
    master: Option<Child>,
}

impl SshGuest {
    pub(crate) async fn start(server: &BenchServer) -> anyhow::Result<Self> {
        let name = "ssh";
        let layout = layouts()?.join("ssh");
        server.cli(&["load", &layout.to_string_lossy(), "--name", name])?;
        let request = json!({
            "id": name, "name": name, "image": name, "memory_mb": 512, "vcpus": 1, "overlay_size": "1GB",
            "network": {"enabled": true},
        });
        let instance = server.create_of(&request).await?;
        let address = instance["private_ip"].as_str();
        let address = address.with_context(|| format!("no address: {instance}"))?;
        let home = tempfile::Builder::new().prefix("wrnb").tempdir()?;
        let mut guest = SshGuest {
            name,
            address: address.to_owned(),
            home,
            master: None,
        };
        guest.authorize(server)?;
        guest.connect().await?;
        Ok(guest)
    }

    /// The instance's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    fn authorize(&self, server: &BenchServer) -> anyhow::Result<()> {
        let key = self.home.path().join("key");
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key))?;
        let public = key.with_extension("pub");
        server.cli(&["exec", self.name, "mkdir", "/root/.ssh"])?;
        let target = format!("{}:/root/.ssh/authorized_keys", self.name);
        server.cli(&["cp", &public.to_string_lossy(), &target])
    }

    async fn connect(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let master = self
                .client("ssh", "yes")
                .args(["-N", &self.destination()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("starting ssh")?;
            let master = self.master.insert(master);
            while master.try_wait()?.is_none() {
                if self.home.path().join("control").exists() {
                    return Ok(());
                }
                if start.elapsed() > PATIENCE {
                    bail!("the guest's sshd took no connection in time");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn destination(&self) -> String {
        format!("root@{}", self.address)
    }

    /// `ssh` or `scp`, with everything but what it is to do.
    fn client(&self, program: &str, master: &str) -> Command {
        let control = self.home.path().join("control");
        let mut command = Command::new(program);
        command.args(["-F", "none", "-i"]);
        command.arg(self.home.path().join("key"));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ControlPersist=no",
            &format!("ControlMaster={master}"),
            &format!("ControlPath={}", control.display()),
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// Runs a line in the guest, as a process of its own over the kept connection.
    pub(crate) fn run(&self, line: &str) -> anyhow::Result<()> {
        run(self.client("ssh", "no").args([&self.destination(), line]))
    }

    pub(crate) fn copy_in(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let to = format!("{}:{to}", self.destination());
        run(self.client("scp", "no").arg("-q").arg(from).arg(to))
    }

    pub(crate) fn copy_out(&self, from: &str, to: &Path) -> anyhow::Result<()> {
        let from = format!("{}:{from}", self.destination());
        run(self.client("scp", "no").arg("-q").arg(from).arg(to))
    }
}

impl Drop for SshGuest {
    fn drop(&mut self) {
        if let Some(master) = &mut self.master {
            let _ = master.kill();
            let _ = master.wait();
        }
    }
}

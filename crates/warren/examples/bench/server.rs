//! The measured arm: a server of its own. Creates end with the answer that says Running, which the server gives when
//! the guest has said that it is ready.

use crate::client::Connection;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Until the server must have answered.
const PATIENCE: Duration = Duration::from_secs(120);

/// What runs the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machines {
    /// QEMU, on a bridge.
    Real,
    /// The fake hypervisor, without a network: what is left is Warren alone.
    Fake,
}

pub(crate) struct BenchServer {
    process: std::process::Child,
    machines: Machines,
    data: tempfile::TempDir,
    port: u16,
    binary: PathBuf,
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn environment(machines: Machines, data: &Path, port: u16) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("DATA_DIR", data.display().to_string()),
        ("PORT", port.to_string()),
        ("WARREN_SERVER", format!("http://127.0.0.1:{port}")),
        ("WARREN_CONTAINER_SERVICE", "off".to_owned()),
        ("BRIDGE_NAME", format!("wrnb{port}")),
        ("SUBNET_CIDR", "10.127.201.0/24".to_owned()),
        ("SUBNET_GATEWAY", "10.127.201.1".to_owned()),
    ];
    if machines == Machines::Fake {
        all.push(("WARREN_HYPERVISORS", "[fake]".to_owned()));
        all.push(("WARREN_NETWORK", "none".to_owned()));
        // Ten thousand of them must fit.
        all.push(("WARREN_MEMORY_OVERCOMMIT_PERCENT", "1000000".to_owned()));
        // A create is counted when it is durable; how many of them are still starting then is not to bound it.
        all.push(("WARREN_START_LIMIT", "100000".to_owned()));
    }
    all
}

fn launch(
    binary: &Path,
    machines: Machines,
    data: &Path,
    port: u16,
) -> anyhow::Result<std::process::Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.join("server.log"))?;
    Command::new(binary)
        .arg("server")
        .envs(environment(machines, data, port))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))
}

impl BenchServer {
    pub(crate) async fn start(machines: Machines) -> anyhow::Result<Self> {
        let binary = std::env::var_os("WARREN_BIN")
            .map_or_else(|| checkout().join("target/release/warren"), PathBuf::from);
        let data = tempfile::Builder::new().prefix("wrnb").tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = BenchServer {
            process: launch(&binary, machines, data.path(), port)?,
            machines,
            data,
            port,
            binary,
        };
        server.up().await?;
        let layout = server.data.path().join("layout");
        let made = Command::new(checkout().join("scripts/make-busybox-image"))
            .arg(&layout)
            .status()?;
        anyhow::ensure!(made.success(), "the image could not be made");
        server.cli(&["load", &layout.to_string_lossy(), "--name", "bench"])?;
        Ok(server)
    }

    /// A command of the user's.
    pub(crate) fn cli(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .envs(environment(self.machines, self.data.path(), self.port))
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(())
    }

    /// Waits until the API answers; for how long.
    async fn up(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            if let Ok(mut connection) = Connection::open(self.port).await
                && matches!(
                    connection.request("GET", "/health", b"").await,
                    Ok((200, _))
                )
            {
                return Ok(start.elapsed());
            }
            if start.elapsed() > PATIENCE || self.process.try_wait()?.is_some() {
                bail!("the server did not come up: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Kills it and starts it again; how long until the API answered.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = launch(&self.binary, self.machines, self.data.path(), self.port)?;
        self.up().await
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default()
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.data.path().join("instances")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data.path().join("store.db")
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut connection = Connection::open(self.port).await?;
        let (status, answer) = connection.request(method, path, body.as_bytes()).await?;
        Ok((
            status,
            serde_json::from_slice(&answer).unwrap_or(Value::Null),
        ))
    }

    /// Starts an instance that does nothing.
    pub(crate) async fn create(&self, name: &str) -> anyhow::Result<Value> {
        self.create_of(&self.request(name)).await
    }

    /// Starts the instance that this body asks for.
    pub(crate) async fn create_of(&self, request: &Value) -> anyhow::Result<Value> {
        let (status, answer) = self.call("POST", "/instances", Some(request)).await?;
        anyhow::ensure!(
            status == 201 && answer["state"] == "Running",
            "create answered {status}: {answer}\n{}",
            self.log()
        );
        Ok(answer)
    }

    /// The body of a create.
    pub(crate) fn request(&self, name: &str) -> Value {
        let (memory, disk) = match self.machines {
            Machines::Real => (128, "1GB"),
            Machines::Fake => (64, "16MB"),
        };
        json!({
            "id": name, "name": name, "image": "bench", "memory_mb": memory, "vcpus": 1, "overlay_size": disk,
            "cmd": ["sleep", "100000"], "network": {"enabled": self.machines == Machines::Real},
        })
    }

    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let (status, answer) = self
            .call("DELETE", &format!("/instances/{name}"), None)
            .await?;
        anyhow::ensure!(status == 204, "delete answered {status}: {answer}");
        Ok(())
    }

    /// A host has room for so many only.
    pub(crate) async fn remove_all(&self) -> anyhow::Result<()> {
        loop {
            let (_, page) = self.call("GET", "/instances?limit=1000", None).await?;
            let ids: Vec<&str> = page
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|instance| instance["id"].as_str())
                .collect();
            if ids.is_empty() {
                return Ok(());
            }
            for some in ids.chunks(32) {
                futures::future::try_join_all(some.iter().map(|id| self.delete(id))).await?;
            }
        }
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.remove_all().await?;
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        tokio::task::block_in_place(|| self.process.wait())?;
        let cleaned = Command::new(&self.binary)
            .args(["system", "clean"])
            .envs(environment(self.machines, self.data.path(), self.port))
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(cleaned.success(), "system clean failed");
        Ok(())
    }
}

impl Drop for BenchServer {
    /// After a failure: nothing of ours stays.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

//! The measured arm: a server of its own, and the time from the create request to the answer that says
//! Running, which the server gives when the guest has said that it is ready.

use anyhow::Context;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Until the server must have answered.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct BenchServer {
    process: std::process::Child,
    data: tempfile::TempDir,
    port: u16,
    binary: PathBuf,
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl BenchServer {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let binary = std::env::var_os("WARREN_BIN")
            .map_or_else(|| checkout().join("target/release/warren"), PathBuf::from);
        let data = tempfile::Builder::new().prefix("wrnb").tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let log = std::fs::File::create(data.path().join("server.log"))?;
        let process = Command::new(&binary)
            .arg("server")
            .envs(Self::environment(data.path(), port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let server = BenchServer {
            process,
            data,
            port,
            binary,
        };
        let deadline = Instant::now() + PATIENCE;
        while server.call("GET", "/health", None).await.is_err() {
            anyhow::ensure!(
                Instant::now() < deadline,
                "the server did not come up: {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let layout = server.data.path().join("layout");
        let made = Command::new(checkout().join("scripts/make-busybox-image"))
            .arg(&layout)
            .status()?;
        anyhow::ensure!(made.success(), "the image could not be made");
        let loaded = Command::new(&server.binary)
            .args(["load", &layout.to_string_lossy(), "--name", "bench"])
            .envs(Self::environment(server.data.path(), port))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        anyhow::ensure!(loaded.success(), "the image could not be loaded");
        Ok(server)
    }

    fn environment(data: &Path, port: u16) -> Vec<(&'static str, String)> {
        vec![
            ("DATA_DIR", data.display().to_string()),
            ("PORT", port.to_string()),
            ("WARREN_SERVER", format!("http://127.0.0.1:{port}")),
            ("BRIDGE_NAME", format!("wrnb{port}")),
            ("SUBNET_CIDR", "10.127.201.0/24".to_owned()),
            ("SUBNET_GATEWAY", "10.127.201.1".to_owned()),
        ]
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default()
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.data.path().join("instances")
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let body = body.map(Value::to_string).unwrap_or_default();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                self.port,
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            let status = head.split(' ').nth(1).context("no status")?.parse()?;
            Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .context("the server did not answer")?
    }

    /// Starts an instance that does nothing.
    pub(crate) async fn create(&self, name: &str) -> anyhow::Result<()> {
        let request = json!({
            "id": name, "name": name, "image": "bench", "memory_mb": 256, "vcpus": 1, "overlay_size": "1GB",
            "cmd": ["sleep", "100000"],
        });
        let (status, answer) = self.call("POST", "/instances", Some(&request)).await?;
        anyhow::ensure!(
            status == 201 && answer["state"] == "Running",
            "create answered {status}: {answer}\n{}",
            self.log()
        );
        Ok(())
    }

    pub(crate) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let (status, answer) = self
            .call("DELETE", &format!("/instances/{name}"), None)
            .await?;
        anyhow::ensure!(status == 204, "delete answered {status}: {answer}");
        Ok(())
    }

    /// The time of one create; the instance is removed again, unmeasured.
    pub(crate) async fn create_to_ready(&self, name: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.create(name).await?;
        let took = start.elapsed();
        self.delete(name).await?;
        Ok(took)
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        tokio::task::block_in_place(|| self.process.wait())?;
        let cleaned = Command::new(&self.binary)
            .args(["system", "clean"])
            .envs(Self::environment(self.data.path(), self.port))
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

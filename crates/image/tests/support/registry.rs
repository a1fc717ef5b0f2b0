//! A real registry for tests.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use warren_core::ports::images::{PullRequest, Transport};

use super::run;

/// Debian's docker-registry on a free port of loopback.
pub struct Registry {
    process: Child,
    pub port: u16,
    log: PathBuf,
}

impl Registry {
    pub fn start(work: &Path, auth: &str) -> Self {
        Registry::start_with(work, auth, None)
    }

    /// With TLS, where there is a certificate and its key.
    pub fn start_with(work: &Path, auth: &str, tls: Option<(&Path, &Path)>) -> Self {
        // The port is free when it is given back; another process taking it in between fails the test's start.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = work.join("registry.yml");
        let tls = tls.map_or(String::new(), |(certificate, key)| {
            let (certificate, key) = (certificate.display(), key.display());
            format!(", tls: {{ certificate: {certificate}, key: {key} }}")
        });
        let text = format!(
            "version: 0.1\nlog: {{ accesslog: {{ disabled: false }}, level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: 127.0.0.1:{port}, secret: s{tls} }}\n{auth}",
            work.join("registry").display()
        );
        std::fs::write(&config, text).unwrap();
        let log = work.join("registry.log");
        let file = std::fs::File::create(&log).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdout(file.try_clone().unwrap())
            .stderr(Stdio::from(file))
            .spawn()
            .unwrap();
        let registry = Registry { process, port, log };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn push(&self, layout: &Path, tag: &str, name: &str, credentials: &[&str]) {
        run(Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "--preserve-digests",
            ])
            .args(credentials)
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://127.0.0.1:{}/{name}", self.port)));
    }

    /// How often a blob was fetched.
    pub fn fetches(&self, digest: &str) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap();
        log.lines()
            .filter(|line| line.contains("\"GET ") && line.contains(&format!("/blobs/{digest} ")))
            .count()
    }

    pub fn request(&self, name: &str) -> PullRequest {
        PullRequest {
            reference: format!("127.0.0.1:{}/{name}", self.port),
            transport: Transport::PlainHttp,
            ..PullRequest::default()
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

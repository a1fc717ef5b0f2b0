//! A server of one's own, on the fake hypervisor, without network, with the limits of the list.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::list::CONFIGURATION;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    address: SocketAddr,
    data: tempfile::TempDir,
    process: Child,
}

/// As far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) detail: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        let data = tempfile::Builder::new().prefix("wrnh").tempdir().unwrap();
        let configuration = data.path().join("config.toml");
        std::fs::write(&configuration, CONFIGURATION).unwrap();
        // Free now; nobody else on this machine asks for a particular one.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let log = File::create(data.path().join("server.log")).unwrap();
        let binary = std::env::var_os("WARREN_BIN").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_warren")),
            PathBuf::from,
        );
        let process = Command::new(binary)
            .args(["server", "--hypervisors", "fake", "--network", "none"])
            .arg("--config")
            .arg(configuration)
            .env("DATA_DIR", data.path().join("data"))
            .env("PORT", address.port().to_string())
            .env("WARREN_CONTAINER_SERVICE", "off")
            .env_remove("JWT_SECRET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Server {
            address,
            data,
            process,
        };
        let deadline = Instant::now() + PATIENCE;
        while server.try_call("GET", "/health", "", b"").is_none() {
            let ended = server.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the server did not come up: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default()
    }

    /// Uploads an archive; the problem that the answer is otherwise.
    pub(crate) fn load(&self, name: &str, archive: &[u8]) -> Result<(), Problem> {
        let path = format!("/images/load?name={}", name.replace('/', "%2F"));
        let headers = "Content-Type: application/octet-stream\r\n";
        let (status, body) = self.call("POST", &path, headers, archive);
        match status {
            201 => Ok(()),
            _ => Err(problem(&body)),
        }
    }

    /// Follows a pull to its end.
    pub(crate) fn pull(&self, reference: &str) -> Result<(), Problem> {
        let request = json!({"name": reference, "plain_http": true}).to_string();
        let headers = "Content-Type: application/json\r\nAccept: text/event-stream\r\n";
        let (status, events) = self.call("POST", "/images", headers, request.as_bytes());
        assert_eq!(status, 200, "{events}");
        let data_of = |event: &str| {
            let (_, rest) = events.split_once(&format!("event: {event}\n"))?;
            let data = rest.lines().find_map(|line| line.strip_prefix("data: "))?;
            Some(data.to_owned())
        };
        match (data_of("images"), data_of("problem")) {
            (Some(_), None) => Ok(()),
            (None, Some(text)) => Err(problem(&text)),
            (_, _) => panic!("neither or both: {events}"),
        }
    }

    /// How many images there are.
    pub(crate) fn images(&self) -> usize {
        let (status, body) = self.call("GET", "/images", "", b"");
        assert_eq!(status, 200, "{body}");
        let images: Vec<Value> = serde_json::from_str(&body).unwrap();
        let ready = |image: &&Value| image["status"] == "ready";
        images.iter().filter(ready).count()
    }

    /// The files of bootable disks.
    pub(crate) fn disks(&self) -> Vec<PathBuf> {
        let mut disks = self.files();
        disks.retain(|path| path.extension().is_some_and(|ending| ending == "erofs"));
        disks
    }

    /// Files that were being written.
    pub(crate) fn half_made(&self) -> Vec<PathBuf> {
        // The last writer ends on a thread of its own.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut files = self.files();
            files.retain(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(".tmp-") || name.starts_with("upload-")
            });
            if files.is_empty() || Instant::now() > deadline {
                return files;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.data.path().join("data")];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => pending.push(path),
                    false => found.push(path),
                }
            }
        }
        found
    }

    /// The most memory that the server ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kibibytes.parse::<u64>().unwrap() << 10
    }

    fn call(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        self.try_call(method, path, headers, body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}\n{}", self.log()))
    }

    fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let port = self.address.port();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Some((
            status,
            if chunked {
                unchunked(body)
            } else {
                body.to_owned()
            },
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is our child, and has nothing running.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn problem(text: &str) -> Problem {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Takes the chunks of HTTP/1.1 together.
fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&rest[..length]);
        text = &rest[length + 2..];
    }
    whole
}

/// Everything in a disk, by name.
pub(crate) fn names_in(disk: &Path) -> Vec<String> {
    let reader = warren_image::erofs::Reader::open(File::open(disk).unwrap()).unwrap();
    reader
        .walk()
        .map(|found| String::from_utf8(found.unwrap().path).unwrap())
        .collect()
}

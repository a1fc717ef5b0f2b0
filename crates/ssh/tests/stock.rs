//! The server with OpenSSH's own client at the other end, and a guest that is none.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;
use warren_core::PortError;
use warren_core::ports::guest_sockets::{GuestEndpoint, GuestListener, GuestSocket, ListenPlace};
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};
use warren_ssh::{Door, Entrance, Guest, HostKey, HostSecret, Proof, serve};

const SOON: Duration = Duration::from_secs(60);

/// Scripts that it knows: `late-cat` gives back what it gets, but takes nothing before all that it has said is taken, `deaf` never takes
/// anything and ends after a second, `told` says what it was started with.
#[derive(Default)]
struct Made {
    taken: Arc<AtomicUsize>,
}

struct Sink(mpsc::Sender<ExecInput>, Arc<AtomicUsize>);

#[async_trait]
impl ExecSink for Sink {
    async fn send(&mut self, input: ExecInput) -> Result<(), PortError> {
        if let ExecInput::Stdin(data) = &input {
            self.1.fetch_add(data.len(), Ordering::SeqCst);
        }
        let sent = self.0.send(input).await;
        sent.map_err(|_| PortError::conflict("command_ended", "it has ended"))
    }
}

fn exited(code: i32) -> Result<ExecOutput, PortError> {
    Ok(ExecOutput::Exited {
        code,
        message: None,
    })
}

#[async_trait]
impl Guest for Made {
    async fn exec(&self, command: ExecCommand) -> Result<ExecSession, PortError> {
        let (input, mut inputs) = mpsc::channel(1);
        let (said, output) = mpsc::channel(1);
        let told = format!("{command:?}");
        let Program::LoginShell(Some(script)) = command.program else {
            return Err(PortError::unsupported(
                "no_such",
                "it knows no other programs",
            ));
        };
        tokio::spawn(async move {
            let data = |bytes: Bytes| Ok(ExecOutput::Data(OutputStream::Stdout, bytes));
            match script.as_str() {
                "late-cat" => {
                    while let Some(ExecInput::Stdin(bytes)) = inputs.recv().await {
                        if said.send(data(bytes)).await.is_err() {
                            return;
                        }
                    }
                    let _ = said.send(exited(0)).await;
                }
                "deaf" => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = said.send(exited(3)).await;
                    drop(inputs);
                }
                _ => {
                    let _ = said.send(data(told.into())).await;
                    let oops = Bytes::from_static(b"oops\n");
                    let _ = said
                        .send(Ok(ExecOutput::Data(OutputStream::Stderr, oops)))
                        .await;
                    let _ = said.send(exited(41)).await;
                }
            }
        });
        let output = stream::unfold(output, |mut output| async move {
            Some((output.recv().await?, output))
        });
        Ok(ExecSession {
            input: Box::new(Sink(input, Arc::clone(&self.taken))),
            output: output.boxed(),
        })
    }

    async fn connect(&self, _: GuestEndpoint) -> Result<GuestSocket, PortError> {
        Err(PortError::conflict("no_network", "it has none"))
    }

    async fn listen(&self, _: ListenPlace) -> Result<GuestListener, PortError> {
        Err(PortError::conflict("no_network", "it has none"))
    }
}

struct Doors(Arc<Made>, Vec<String>);

#[async_trait]
impl Door for Doors {
    async fn find(&self, login: &str) -> Option<Entrance> {
        let proof = match login {
            "open" => Proof::Given,
            "locked" => Proof::Key(self.1.clone()),
            _ => return None,
        };
        Some(Entrance {
            guest: Arc::clone(&self.0) as Arc<dyn Guest>,
            user: "somebody".to_owned(),
            proof,
        })
    }
}

struct Server {
    port: u16,
    guest: Arc<Made>,
    directory: tempfile::TempDir,
}

async fn server(keys: Vec<String>) -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = Arc::new(Made::default());
    let door: Arc<dyn Door> = Arc::new(Doors(Arc::clone(&guest), keys));
    let key = HostKey::derive(&HostSecret::new([5; 32]), "instance");
    let directory = tempfile::tempdir().unwrap();
    let known = format!("[127.0.0.1]:{port} {}\n", key.public_key());
    std::fs::write(directory.path().join("known"), known).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (key, door) = (key.clone(), Arc::clone(&door));
            tokio::spawn(async move { serve(stream, &key, door).await });
        }
    });
    Server {
        port,
        guest,
        directory,
    }
}

impl Server {
    fn ssh(&self, login: &str, words: &[&str]) -> Command {
        let known = self.directory.path().join("known");
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
        ])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .args(["-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes"])
        .arg("-p")
        .arg(self.port.to_string())
        .arg(format!("{login}@127.0.0.1"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
        ssh
    }

    /// Runs it with this input; `None` where there is no client.
    async fn run(&self, test: &str, login: &str, words: &[&str], input: Vec<u8>) -> Option<Output> {
        let Ok(mut running) = self.ssh(login, words).spawn() else {
            skip::skip(test, "there is no ssh (openssh-client)");
            return None;
        };
        let mut stdin = running.stdin.take().unwrap();
        // A program that takes nothing hangs up on it.
        tokio::spawn(async move { stdin.write_all(&input).await });
        Some(
            timeout(SOON, running.wait_with_output())
                .await
                .unwrap()
                .unwrap(),
        )
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn key(directory: &Path, kind: &str) -> (PathBuf, String) {
    let path = directory.join(kind);
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", "", "-C", "a comment", "-f"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    let line = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    (path, line.trim().to_owned())
}

#[tokio::test]
async fn a_command_has_both_outputs_its_status_and_who_it_is_for() {
    let test = "a_command_has_both_outputs_its_status_and_who_it_is_for";
    let server = server(Vec::new()).await;
    let Some(done) = server
        .run(test, "open", &["told", "'it all'"], Vec::new())
        .await
    else {
        return;
    };
    assert_eq!(done.status.code(), Some(41), "{}", text(&done.stderr));
    assert_eq!(text(&done.stderr), "oops\n");
    let told = text(&done.stdout);
    assert!(
        told.contains(r#"LoginShell(Some("told 'it all'"))"#),
        "{told}"
    );
    assert!(told.contains(r#"user: Some("somebody")"#), "{told}");
    assert!(told.contains("terminal: None"), "{told}");
    let done = server
        .run(test, "open", &["-tt", "told"], Vec::new())
        .await
        .unwrap();
    assert!(text(&done.stdout).contains("terminal: Some((24, 80))"));
}

#[tokio::test]
async fn a_program_that_reads_only_what_it_can_write_does_not_stand_still() {
    let test = "a_program_that_reads_only_what_it_can_write_does_not_stand_still";
    let server = server(Vec::new()).await;
    let sent: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let Some(done) = server.run(test, "open", &["late-cat"], sent.clone()).await else {
        return;
    };
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(done.stdout == sent);
}

#[tokio::test]
async fn a_program_that_reads_nothing_ends_and_takes_no_memory() {
    let test = "a_program_that_reads_nothing_ends_and_takes_no_memory";
    let server = server(Vec::new()).await;
    let Ok(mut running) = server.ssh("open", &["deaf"]).spawn() else {
        return skip::skip(test, "there is no ssh (openssh-client)");
    };
    let mut stdin = running.stdin.take().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        let piece = vec![0; 64 << 10];
        while stdin.write_all(&piece).await.is_ok() {
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    let done = timeout(SOON, running.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(done.status.code(), Some(3), "{}", text(&done.stderr));
    // One piece waits for the program and one for its turn.
    let taken = server.guest.taken.load(Ordering::SeqCst);
    assert!(taken <= 128 << 10, "{taken}");
    // A client has room for 2 MiB, which is granted again at half; it keeps some itself.
    let sent = sent.load(Ordering::SeqCst);
    assert!((1 << 20..12 << 20).contains(&sent), "{sent}");
}

#[tokio::test]
async fn only_who_has_a_key_gets_in() {
    let test = "only_who_has_a_key_gets_in";
    let directory = tempfile::tempdir().unwrap();
    if std::process::Command::new("ssh-keygen")
        .arg("-?")
        .output()
        .is_err()
    {
        return skip::skip(test, "there is no ssh-keygen (openssh-client)");
    }
    let (ed25519, first) = key(directory.path(), "ed25519");
    let (rsa, second) = key(directory.path(), "rsa");
    let (ecdsa, third) = key(directory.path(), "ecdsa");
    let server = server(vec![
        "# a comment, and a line that is none".to_owned(),
        "rubbish".to_owned(),
        first,
        second,
        // Whoever is restricted is not let in at all: restrictions are not kept here.
        format!("command=\"/bin/false\" {third}"),
    ])
    .await;
    for (login, key, code) in [
        ("locked", Some(&ed25519), 41),
        ("locked", Some(&rsa), 41),
        ("locked", Some(&ecdsa), 255),
        ("locked", None, 255),
        ("nobody", Some(&ed25519), 255),
        ("open", None, 41),
    ] {
        let key = key.map(|key| format!("IdentityFile={}", key.display()));
        let key = key.as_deref().unwrap_or("IdentityFile=none");
        let done = server
            .run(test, login, &["-o", key, "told"], Vec::new())
            .await;
        let done = done.unwrap();
        assert_eq!(
            done.status.code(),
            Some(code),
            "{login} {key}: {}",
            text(&done.stderr)
        );
    }
}

#[tokio::test]
async fn what_is_no_ssh_is_hung_up_on() {
    let server = server(Vec::new()).await;
    for rubbish in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 4096],
        b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port))
            .await
            .unwrap();
        stream.write_all(rubbish).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        // Reset or closed, but over.
        let _ = timeout(SOON, read).await.unwrap();
    }
}

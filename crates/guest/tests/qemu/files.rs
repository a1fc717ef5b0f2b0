//! Files in the workload's root: in, out, listed, removed; and what is not the workload's.

use crate::SOON;
use crate::exec::{exec, shell, words};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;
use tokio::time::timeout;
use warren_guest::client::{FileError, GuestClient};
use warren_guest::protocol::ExecRequest;
use warren_guest::protocol::files::{Depth, FileFault, FileRequest, LastLink, Parents};

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
pub(crate) async fn files(client: &GuestClient) {
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

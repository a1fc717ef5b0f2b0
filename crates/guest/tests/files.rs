//! Files by way of the protocol: the guest's real code in a directory of a double, and guests that lie.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::client::{ClientError, FileError, GuestClient};
use warren_guest::double::{Behaviour, Double};
use warren_guest::protocol::files::{
    Depth, FileFault, FileInfo, FileKind, FileReply, LastLink, ListedFile, Parents, TreeOwners,
};
use warren_guest::protocol::{
    AttachKey, ControlEvent, FileRequest, FrameKind, FrameReader, FrameWriter, PROTOCOL_VERSION,
    mux,
};
use warren_guest::serve::Link;

const KEY: AttachKey = AttachKey(*b"\x01key of a test\x02\x03");
const SOON: Duration = Duration::from_secs(10);

async fn double() -> (GuestClient, Double) {
    let (near, far) = UnixStream::pair().unwrap();
    let double = Double::new(Behaviour::default());
    let guest = double.clone();
    tokio::spawn(async move { guest.serve(far, &KEY).await });
    let (client, _) = GuestClient::attach(near, &KEY, SOON).await.unwrap();
    (client, double)
}

fn write(path: &str) -> FileRequest {
    FileRequest::Write {
        path: path.to_owned(),
        mode: None,
        owner: None,
        parents: Parents::Expected,
    }
}

async fn put(client: &GuestClient, path: &str, data: &[u8]) -> Result<u64, FileError> {
    let mut writer = client.write_file(write(path)).await?;
    writer.write(data).await?;
    writer.finish().await
}

async fn get(client: &GuestClient, path: &str) -> Result<Vec<u8>, FileError> {
    let (_, mut reader) = client.read_file(path, 0, None).await?;
    let mut all = Vec::new();
    while let Some(piece) = timeout(SOON, reader.next()).await.unwrap()? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn list(
    client: &GuestClient,
    path: &str,
    depth: Depth,
) -> Result<Vec<ListedFile>, FileError> {
    let mut list = client.list_files(path, depth).await?;
    let mut all = Vec::new();
    while let Some(files) = timeout(SOON, list.next()).await.unwrap()? {
        all.extend(files);
    }
    all.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(all)
}

fn make(path: &str, parents: Parents) -> FileRequest {
    FileRequest::MakeDirectory {
        path: path.to_owned(),
        mode: Some(0o711),
        owner: None,
        parents,
    }
}

fn remove(path: &str, depth: Depth) -> FileRequest {
    let path = path.to_owned();
    FileRequest::Remove { path, depth }
}

fn fault<T>(result: Result<T, FileError>) -> FileFault {
    match result {
        Err(FileError::Fault { fault, .. }) => fault,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was done"),
    }
}

#[tokio::test]
async fn what_is_written_is_read_whole_and_in_part() {
    let (client, _double) = double().await;
    let data: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7) as u8).collect();
    assert_eq!(
        put(&client, "/data", &data).await.unwrap(),
        data.len() as u64
    );
    assert!(get(&client, "/data").await.unwrap() == data);
    let info = client.stat_file("/data", LastLink::Kept).await.unwrap();
    assert_eq!(
        (info.kind, info.mode, info.size),
        (FileKind::File, 0o644, data.len() as u64)
    );
    for (offset, length, expected) in [
        (0, Some(5), &data[..5]),
        (70_000, Some(100_000), &data[70_000..170_000]),
        (3_000_000, None, &data[3_000_000..]),
        (9_000_000, None, &[]),
        (u64::MAX, Some(u64::MAX), &[]),
        (1, Some(0), &[]),
    ] {
        let (info, mut reader) = client.read_file("/data", offset, length).await.unwrap();
        assert_eq!(info.size, data.len() as u64);
        let mut part = Vec::new();
        while let Some(piece) = timeout(SOON, reader.next()).await.unwrap().unwrap() {
            part.extend_from_slice(&piece);
        }
        assert!(
            part == expected,
            "{offset} {length:?}: {} bytes",
            part.len()
        );
    }
    assert_eq!(put(&client, "/empty", b"").await.unwrap(), 0);
    assert_eq!(get(&client, "/empty").await.unwrap(), b"");
}

#[tokio::test]
async fn a_write_that_is_given_up_leaves_what_was_there_and_nothing_else() {
    let (client, double) = double().await;
    put(&client, "/file", b"old").await.unwrap();
    let mut writer = client.write_file(write("/file")).await.unwrap();
    writer.write(&vec![1; 500_000]).await.unwrap();
    drop(writer);
    timeout(SOON, async {
        while list(&client, "/", Depth::Shallow).await.unwrap().len() != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(get(&client, "/file").await.unwrap(), b"old");
    // So does a host that dies.
    let (client, _kept) = {
        let mut writer = client.write_file(write("/file")).await.unwrap();
        writer.write(&vec![1; 500_000]).await.unwrap();
        drop((writer, client));
        let (near, far) = UnixStream::pair().unwrap();
        let guest = double.clone();
        tokio::spawn(async move { guest.serve(far, &KEY).await });
        (
            GuestClient::attach(near, &KEY, SOON).await.unwrap().0,
            double,
        )
    };
    timeout(SOON, async {
        while list(&client, "/", Depth::Shallow).await.unwrap().len() != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(get(&client, "/file").await.unwrap(), b"old");
}

#[tokio::test]
async fn modes_are_kept_when_a_file_is_replaced_and_set_when_asked() {
    let (client, _double) = double().await;
    let mode = async |path: &str| client.stat_file(path, LastLink::Kept).await.unwrap().mode;
    let set = FileRequest::Write {
        path: "/a/b/run".to_owned(),
        mode: Some(0o4751),
        owner: None,
        parents: Parents::Created,
    };
    let writer = client.write_file(set).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(mode("/a/b/run").await, 0o4751);
    put(&client, "/a/b/run", b"new").await.unwrap();
    assert_eq!(mode("/a/b/run").await, 0o4751);
    assert_eq!(mode("/a/b").await, 0o755);
    client
        .change_files(make("/d", Parents::Expected))
        .await
        .unwrap();
    assert_eq!(mode("/d").await, 0o711);
}

#[tokio::test]
async fn trees_are_listed_and_removed() {
    let (client, _double) = double().await;
    client
        .change_files(make("/t/u/v", Parents::Created))
        .await
        .unwrap();
    for n in 0..140 {
        put(&client, &format!("/t/u/{n:03}"), b"x").await.unwrap();
    }
    let all = list(&client, "/t", Depth::Recursive).await.unwrap();
    assert_eq!(all.len(), 142);
    assert_eq!(
        (all[0].path.as_str(), all[1].path.as_str(), all[1].info.size),
        ("u", "u/000", 1)
    );
    assert_eq!(list(&client, "/t", Depth::Shallow).await.unwrap().len(), 1);
    let refused = client.change_files(remove("/t", Depth::Shallow)).await;
    assert_eq!(fault(refused), FileFault::NotEmpty);
    client
        .change_files(remove("/t", Depth::Recursive))
        .await
        .unwrap();
    assert_eq!(list(&client, "/", Depth::Recursive).await.unwrap(), []);
    assert_eq!(
        fault(client.change_files(remove("/t", Depth::Recursive)).await),
        FileFault::NotFound
    );
}

#[tokio::test]
async fn every_mistake_has_its_own_fault() {
    let (client, _double) = double().await;
    put(&client, "/file", b"x").await.unwrap();
    client
        .change_files(make("/dir", Parents::Expected))
        .await
        .unwrap();
    let stat = async |path: &str| fault(client.stat_file(path, LastLink::Followed).await);
    assert_eq!(stat("/none").await, FileFault::NotFound);
    assert_eq!(stat("/file/below").await, FileFault::NotADirectory);
    assert_eq!(stat("relative").await, FileFault::InvalidPath);
    assert_eq!(stat("/a\0b").await, FileFault::InvalidPath);
    assert_eq!(
        stat(&format!("/{}", "n".repeat(300))).await,
        FileFault::InvalidPath
    );
    assert_eq!(
        stat(&format!("/{}", "n/".repeat(3000))).await,
        FileFault::InvalidPath
    );
    assert_eq!(fault(get(&client, "/dir").await), FileFault::IsADirectory);
    assert_eq!(
        fault(put(&client, "/dir", b"").await),
        FileFault::IsADirectory
    );
    assert_eq!(fault(put(&client, "/", b"").await), FileFault::IsADirectory);
    assert_eq!(
        fault(put(&client, "/none/x", b"").await),
        FileFault::NotFound
    );
    assert_eq!(
        fault(put(&client, "/file/x", b"").await),
        FileFault::NotADirectory
    );
    assert_eq!(
        fault(list(&client, "/file", Depth::Shallow).await),
        FileFault::NotADirectory
    );
    let made = async |path: &str, parents| fault(client.change_files(make(path, parents)).await);
    assert_eq!(made("/dir", Parents::Expected).await, FileFault::Exists);
    assert_eq!(made("/file", Parents::Created).await, FileFault::Exists);
    assert_eq!(made("/x/y", Parents::Expected).await, FileFault::NotFound);
    client
        .change_files(make("/dir", Parents::Created))
        .await
        .unwrap();
    assert_eq!(
        fault(client.change_files(remove("/", Depth::Recursive)).await),
        FileFault::InvalidPath
    );
    // A fault in the middle of a long write is told before all of it was sent.
    let mut writer = client.write_file(write("/dir")).await.unwrap();
    let mut outcome = Ok(());
    for _ in 0..10_000 {
        outcome = writer.write(&[0; 64 << 10]).await;
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(fault(outcome), FileFault::IsADirectory);
}

#[tokio::test]
async fn a_hundred_at_once_wait_for_their_turn() {
    let (client, _double) = double().await;
    let data = vec![7; 300_000];
    let all = (0..100).map(|n| {
        let (client, data) = (client.clone(), data.clone());
        async move {
            let path = format!("/{n}");
            put(&client, &path, &data).await.unwrap();
            assert!(get(&client, &path).await.unwrap() == data);
        }
    });
    let tasks: Vec<_> = all.map(tokio::spawn).collect();
    for task in tasks {
        timeout(SOON, task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn trees_come_out_and_go_in_again() {
    let (client, _double) = double().await;
    client
        .change_files(make("/t/u", Parents::Created))
        .await
        .unwrap();
    let data: Vec<u8> = (0..700_000u32).map(|n| (n / 5) as u8).collect();
    put(&client, "/t/u/data", &data).await.unwrap();
    put(&client, "/t/small", b"x").await.unwrap();
    let mut reader = client.pack_tree("/t", LastLink::Kept, ".").await.unwrap();
    let mut archive = Vec::new();
    while let Some(piece) = timeout(SOON, reader.next()).await.unwrap().unwrap() {
        archive.extend_from_slice(&piece);
    }
    let unpack = || FileRequest::Unpack {
        path: "/again".to_owned(),
        owners: TreeOwners::Archived,
    };
    let mut writer = client.write_file(unpack()).await.unwrap();
    writer.write(&archive).await.unwrap();
    writer.finish().await.unwrap();
    assert!(get(&client, "/again/u/data").await.unwrap() == data);
    assert_eq!(
        list(&client, "/again", Depth::Recursive).await.unwrap(),
        list(&client, "/t", Depth::Recursive).await.unwrap()
    );
    // What breaks off, and what is none.
    for part in [&archive[..archive.len() - 200_000], &data[..]] {
        let mut writer = client.write_file(unpack()).await.unwrap();
        let outcome = match writer.write(part).await {
            Ok(()) => writer.finish().await.map(drop),
            early => early,
        };
        assert_eq!(fault(outcome), FileFault::Unsuitable);
    }
    assert!(get(&client, "/again/u/data").await.unwrap() == data);
    let missing = client.pack_tree("/none", LastLink::Kept, ".").await;
    assert_eq!(fault(missing), FileFault::NotFound);
}

/// What a guest that lies does with one files stream.
type Lie = fn(FrameWriter<tokio::io::WriteHalf<mux::MuxStream>>) -> tokio::task::JoinHandle<()>;

/// Answers the greeting and pings well, and every request for files with a lie.
async fn liar(lie: Lie) -> GuestClient {
    let (near, far) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut link = Link::new(far, &KEY);
        let session = link.attach().await.unwrap().unwrap();
        let _ = mux::guest(session, move |stream| {
            tokio::spawn(async move {
                let (read, write) = tokio::io::split(stream);
                let mut reader = FrameReader::new(read, 1 << 20);
                let mut writer = FrameWriter::new(write);
                let open: serde_json::Value = reader.message().await.unwrap();
                if open["stream"] != "control" {
                    let lying = lie(writer);
                    // Takes whatever comes, and stays.
                    while let Ok(Some(_)) = reader.next().await {}
                    return lying.abort();
                }
                let hello = ControlEvent::Hello {
                    protocol: PROTOCOL_VERSION,
                    agent: "liar".to_owned(),
                    instance_id: None,
                };
                writer.message(&hello).await.unwrap();
                while let Ok(request) = reader.message::<serde_json::Value>().await {
                    // It takes the time for somebody to greet, and statistics for somebody to talk to.
                    if request["request"] == "set_time" {
                        writer.message(&hello).await.unwrap();
                    }
                    if request["request"] == "stats" {
                        let pong = ControlEvent::Pong { id: u64::MAX };
                        while writer.message(&pong).await.is_ok() {}
                        return;
                    }
                    let id = request["id"].as_u64().unwrap();
                    writer.message(&ControlEvent::Pong { id }).await.unwrap();
                }
            });
        })
        .await;
    });
    GuestClient::attach(near, &KEY, SOON).await.unwrap().0
}

fn small(size: u64) -> FileReply {
    FileReply::Found {
        info: FileInfo {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            modified_seconds: 0,
            modified_nanos: 0,
            link_target: None,
        },
    }
}

fn broke<T: std::fmt::Debug>(result: Result<T, FileError>) {
    assert!(
        matches!(result, Err(FileError::Client(ClientError::Protocol(_)))),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_guest_that_sends_without_end_is_cut_off_at_what_it_announced() {
    let client = liar(|mut writer| {
        tokio::spawn(async move {
            writer.message(&small(100_000)).await.unwrap();
            while writer.send(FrameKind::File, &[&[0; 60_000]]).await.is_ok() {}
        })
    })
    .await;
    broke(get(&client, "/x").await);
    client.ping().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_counts_wrong_is_found_out() {
    let client = liar(|mut writer| {
        tokio::spawn(async move {
            writer.message(&small(10)).await.unwrap();
            writer.send(FrameKind::File, &[b"12345"]).await.unwrap();
            writer
                .message(&FileReply::Done { bytes: 10 })
                .await
                .unwrap();
        })
    })
    .await;
    broke(get(&client, "/x").await);
    // Neither is a write taken for done that was not.
    broke(put(&client, "/x", b"1234567890").await);
    broke(list(&client, "/x", Depth::Shallow).await);
    broke(client.change_files(remove("/x", Depth::Shallow)).await);
}

#[tokio::test]
async fn a_listing_of_more_than_was_agreed_at_once_is_refused() {
    let client = liar(|mut writer| {
        tokio::spawn(async move {
            let FileReply::Found { info } = small(1) else {
                unreachable!("it is made so");
            };
            let path = "../".repeat(20);
            let files = vec![ListedFile { path, info }; 1000];
            writer.message(&FileReply::Listed { files }).await.unwrap();
        })
    })
    .await;
    broke(list(&client, "/x", Depth::Shallow).await);
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_given_up_at_every_step() {
    async fn given_up<T: std::fmt::Debug>(work: impl Future<Output = Result<T, FileError>>) {
        let result = timeout(SOON, work).await.unwrap();
        assert!(
            matches!(
                result,
                Err(FileError::Client(ClientError::AnswerTimeout { .. }))
            ),
            "{result:?}"
        );
    }
    let brief = Duration::from_millis(50);
    let silent = liar(|writer| {
        tokio::spawn(async move {
            let _kept = writer;
            std::future::pending().await
        })
    })
    .await
    .with_file_silence(brief);
    given_up(silent.stat_file("/x", LastLink::Kept)).await;
    given_up(put(&silent, "/x", b"1")).await;
    given_up(silent.change_files(remove("/x", Depth::Shallow))).await;
    let mut listing = silent.list_files("/x", Depth::Shallow).await.unwrap();
    given_up(listing.next()).await;
    let half = liar(|mut writer| {
        tokio::spawn(async move {
            writer.message(&small(100)).await.unwrap();
            writer.send(FrameKind::File, &[b"half"]).await.unwrap();
            std::future::pending().await
        })
    })
    .await
    .with_file_silence(brief);
    let (_, mut reader) = half.read_file("/x", 0, None).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().as_ref(), b"half");
    given_up(reader.next()).await;
}

#[tokio::test]
async fn a_guest_that_says_nothing_without_end_is_cut_off() {
    let nothing = liar(|mut writer| {
        tokio::spawn(async move {
            writer.message(&small(10)).await.unwrap();
            while writer.send(FrameKind::File, &[]).await.is_ok() {}
        })
    })
    .await;
    broke(get(&nothing, "/x").await);
    let none = liar(|mut writer| {
        tokio::spawn(async move {
            let files = Vec::new();
            let reply = FileReply::Listed { files };
            while writer.message(&reply).await.is_ok() {}
        })
    })
    .await;
    broke(list(&none, "/x", Depth::Shallow).await);
    let busy = liar(|mut writer| {
        tokio::spawn(async move { while writer.message(&FileReply::Working).await.is_ok() {} })
    })
    .await;
    broke(timeout(SOON, put(&busy, "/x", b"1")).await.unwrap());
}

#[tokio::test]
async fn a_session_without_its_control_stream_is_over_for_whoever_holds_a_part_of_it() {
    let silent = liar(|writer| {
        tokio::spawn(async move {
            let _kept = writer;
            std::future::pending().await
        })
    })
    .await;
    let mut listing = silent.list_files("/x", Depth::Shallow).await.unwrap();
    let broken = timeout(SOON, silent.set_time()).await.unwrap();
    assert!(
        matches!(broken, Err(ClientError::Protocol(_))),
        "{broken:?}"
    );
    let ended = timeout(SOON, listing.next()).await.unwrap();
    assert!(matches!(ended, Err(FileError::Client(_))), "{ended:?}");
}

#[tokio::test]
async fn a_guest_that_talks_without_being_asked_ends_its_session() {
    let silent = liar(|writer| {
        tokio::spawn(async move {
            let _kept = writer;
            std::future::pending().await
        })
    })
    .await;
    let talking = timeout(SOON, silent.stats()).await.unwrap();
    assert!(
        matches!(talking, Err(ClientError::Protocol(_))),
        "{talking:?}"
    );
}

#[tokio::test]
async fn an_agent_that_knows_nothing_of_files_is_told_apart_from_one_that_has_gone() {
    let old = liar(|mut writer| tokio::spawn(async move { writer.finish().await.unwrap() })).await;
    for request in ["/x", "/y"] {
        let result = timeout(SOON, old.stat_file(request, LastLink::Kept)).await;
        assert!(
            matches!(
                result.unwrap(),
                Err(FileError::Client(ClientError::NotKnown { .. }))
            ),
            "{request}"
        );
    }
}

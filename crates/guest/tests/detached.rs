//! Detached commands between host and guest ends over socket pairs, without a VM.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::client::{ClientError, ExecHandle, GuestClient};
use warren_guest::double::{Behaviour, Double};
use warren_guest::protocol::detached::{DETACHED_LIMIT, DETACHED_OUTPUT};
use warren_guest::protocol::{
    AttachKey, DetachedFault, ExecOutput, ExecRequest, ExitStatus, StdinMode,
};

const KEY: AttachKey = AttachKey(*b"\x01key of a test\x02\x03");
const SOON: Duration = Duration::from_secs(10);

/// A host of this guest. Dropping it ends the session, and nothing else.
async fn host(double: &Double) -> GuestClient {
    let (guest_end, host_end) = UnixStream::pair().unwrap();
    let double = double.clone();
    tokio::spawn(async move { double.serve(guest_end, &KEY).await });
    GuestClient::attach(host_end, &KEY, SOON).await.unwrap().0
}

fn run(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    }
}

async fn next(handle: &mut ExecHandle) -> Option<ExecOutput> {
    timeout(SOON, handle.output.next()).await.unwrap().unwrap()
}

async fn says(handle: &mut ExecHandle, text: &str) {
    let mut said = Vec::new();
    while said.len() < text.len() {
        match next(handle).await {
            Some(ExecOutput::Stdout(data)) => said.extend_from_slice(&data),
            other => panic!("{other:?} after {said:?}"),
        }
    }
    assert_eq!(String::from_utf8(said).unwrap(), text);
}

fn fault(result: Result<impl std::fmt::Debug, ClientError>) -> DetachedFault {
    match result.unwrap_err() {
        ClientError::Detached { fault, .. } => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_outlives_its_stream_and_says_everything_again() {
    let double = Double::new(Behaviour::default());
    let client = host(&double).await;
    let cat = run(&["cat"]);
    client
        .start_detached("a", StdinMode::Attached, cat)
        .await
        .unwrap();
    let mut first = client.attach_detached("a").await.unwrap();
    first.input.stdin(b"one ").await.unwrap();
    says(&mut first, "one ").await;
    assert_eq!(client.detached().await.unwrap()[0].attached, 1);
    drop(first);
    // Two at once, each of which is heard and hears everything.
    let mut second = client.attach_detached("a").await.unwrap();
    let mut third = client.attach_detached("a").await.unwrap();
    second.input.stdin(b"two ").await.unwrap();
    says(&mut second, "one two ").await;
    third.input.stdin(b"three").await.unwrap();
    says(&mut third, "one two three").await;
    drop(third);
    second.input.close_stdin().await.unwrap();
    says(&mut second, "three").await;
    let Some(ExecOutput::Exited(report)) = next(&mut second).await else {
        panic!("it has not ended");
    };
    assert_eq!(report.status, ExitStatus::Code(0));
    assert_eq!(next(&mut second).await, None);
    // The end is told to whoever comes later, too.
    let mut late = client.attach_detached("a").await.unwrap();
    says(&mut late, "one two three").await;
    assert!(matches!(next(&mut late).await, Some(ExecOutput::Exited(_))));
    let told = client.detached().await.unwrap();
    assert_eq!(told[0].exited.as_ref().unwrap().status, ExitStatus::Code(0));
    assert!(told[0].ended_unix_nanos.unwrap() >= told[0].started_unix_nanos);
}

#[tokio::test]
async fn output_that_nobody_takes_makes_room_and_whoever_joins_slows_the_command_down() {
    let double = Double::new(Behaviour::default());
    let client = host(&double).await;
    let cat = run(&["cat"]);
    client
        .start_detached("a", StdinMode::Attached, cat)
        .await
        .unwrap();
    let feeding = client.attach_detached("a").await.unwrap();
    let piece = vec![b'x'; 16 << 10];
    // Whoever has joined is waited for: what it does not read is neither lost nor taken.
    let all = 8 * DETACHED_OUTPUT;
    let ExecHandle {
        mut output,
        mut input,
    } = feeding;
    let feeder = tokio::spawn(async move {
        for _ in 0..all / (16 << 10) {
            input.stdin(&piece).await.unwrap();
        }
        input
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!feeder.is_finished());
    let mut taken = 0;
    while taken < all {
        match timeout(SOON, output.next()).await.unwrap().unwrap() {
            Some(ExecOutput::Stdout(data)) => taken += data.len(),
            other => panic!("{other:?} after {taken}"),
        }
    }
    let input = feeder.await.unwrap();
    drop((output, input));
    // Without anybody, the newest is kept.
    let mut late = client.attach_detached("a").await.unwrap();
    let mut kept = 0;
    while let Ok(Ok(Some(ExecOutput::Stdout(data)))) =
        timeout(Duration::from_millis(300), late.output.next()).await
    {
        kept += data.len();
    }
    assert!(
        (DETACHED_OUTPUT / 2..=DETACHED_OUTPUT).contains(&kept),
        "{kept}"
    );
}

#[tokio::test]
async fn commands_are_found_by_their_ids_and_their_number_is_bounded() {
    let double = Double::new(Behaviour::default());
    let client = host(&double).await;
    let start = |id: String, command: &'static str| {
        let client = client.clone();
        async move {
            let request = run(&[command]);
            client.start_detached(&id, StdinMode::Null, request).await
        }
    };
    assert_eq!(
        fault(client.attach_detached("a").await),
        DetachedFault::NotFound
    );
    assert_eq!(
        fault(client.remove_detached("a").await),
        DetachedFault::NotFound
    );
    assert_eq!(
        fault(start(String::new(), "sleep").await),
        DetachedFault::BadId
    );
    assert_eq!(
        fault(start("x".repeat(65), "sleep").await),
        DetachedFault::BadId
    );
    // Input that is empty from the start ends it.
    start("ends".to_owned(), "cat").await.unwrap();
    for number in 1..DETACHED_LIMIT {
        start(number.to_string(), "sleep").await.unwrap();
    }
    assert_eq!(
        fault(start("1".to_owned(), "sleep").await),
        DetachedFault::BadId
    );
    let mut handle = client.attach_detached("ends").await.unwrap();
    assert!(matches!(
        next(&mut handle).await,
        Some(ExecOutput::Exited(_))
    ));
    // The one that has ended makes room, and then there is none.
    start("more".to_owned(), "sleep").await.unwrap();
    assert_eq!(
        fault(client.attach_detached("ends").await),
        DetachedFault::NotFound
    );
    assert_eq!(
        fault(start("even more".to_owned(), "sleep").await),
        DetachedFault::Full
    );
    // Whoever has joined hears that it was removed.
    let mut joined = client.attach_detached("7").await.unwrap();
    client.remove_detached("7").await.unwrap();
    let Some(ExecOutput::Exited(report)) = next(&mut joined).await else {
        panic!("it runs on");
    };
    assert_eq!(report.message.as_deref(), Some("it was removed"));
    start("even more".to_owned(), "sleep").await.unwrap();
    let ids: Vec<String> = client
        .detached()
        .await
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(ids.len(), DETACHED_LIMIT);
    assert!(!ids.contains(&"7".to_owned()));
}

//! What comes piece by piece: logs, pulls, events; and how it goes on where it broke off.

use super::*;
use warren_api::client::{EventItem, LoadContent, LoadSource, LogsQuery};
use warren_api::image::ImageEvent;
use warren_api::{CreateImageRequest, EventType};
use warren_core::ports::host_link::{Follow, LogLine, OutputStream};

#[tokio::test]
async fn logs_and_pulls_stream() {
    let server = server().await;
    server.make("logs").await;
    let query = LogsQuery {
        tail: Some(4),
        ..LogsQuery::default()
    };
    let lines: Vec<_> = server
        .client
        .logs("logs", query)
        .map(|line| line.unwrap().seq)
        .collect()
        .await;
    assert_eq!(lines, [7, 8, 9, 10]);
    let request = CreateImageRequest {
        name: "localhost:5000/new:1".into(),
        ..CreateImageRequest::default()
    };
    let updates: Vec<_> = server
        .client
        .pull_image(&request)
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(
        matches!(updates.last(), Some(ImageEvent::Done(images)) if images[0].name == request.name)
    );
    let file = server._spool.path().join("upload.tar");
    std::fs::write(&file, b"archive").unwrap();
    let source = LoadSource {
        content: LoadContent::File(file),
        name: Some("loaded:1".into()),
        id: None,
    };
    let updates: Vec<_> = server
        .client
        .load_image(&source)
        .await
        .unwrap()
        .map(Result::unwrap)
        .collect()
        .await;
    assert!(
        matches!(updates.last(), Some(ImageEvent::Done(images)) if images[0].name == "loaded:1")
    );
    let missing = CreateImageRequest {
        name: "registry.example/no:1".into(),
        ..CreateImageRequest::default()
    };
    let last = server
        .client
        .pull_image(&missing)
        .collect::<Vec<_>>()
        .await
        .pop()
        .unwrap();
    assert_eq!(last.unwrap_err().code(), Some("registry_has_no_such_image"));
}

#[tokio::test]
async fn followers_go_on_across_a_restart_of_the_server() {
    let server = server().await;
    server.make("first").await;
    let revision_events = server.client.events(Some(0));
    let mut events = Box::pin(revision_events);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            EventItem::Event { id, event } => seen.push((id.unwrap(), event.name, event.kind)),
            EventItem::Reset => panic!("nothing was lost"),
        }
    }
    assert_eq!(seen[0].2, EventType::Created);
    let follow = LogsQuery {
        follow: Follow::Yes,
        ..LogsQuery::default()
    };
    let mut logs = Box::pin(server.client.logs("first", follow));
    for expected in 1..=10 {
        let line = timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(line.seq, expected);
    }
    let (host, store, address) = server.stop().await;
    host.logs.lock().unwrap().push(LogLine {
        seq: 11,
        at: support::now(),
        stream: OutputStream::Stdout,
        text: "after".into(),
    });
    let again = server_on(&address.to_string(), host, store).await;
    again.make("second").await;
    let line = timeout(SOON, logs.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((line.seq, line.text.as_str()), (11, "after"));
    loop {
        match timeout(SOON, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            EventItem::Event { id, event } => {
                assert!(id.unwrap() > seen.last().unwrap().0, "told twice");
                if event.name == "second" && event.kind == EventType::Created {
                    break;
                }
            }
            EventItem::Reset => panic!("nothing was lost"),
        }
    }
}

#[tokio::test]
async fn an_event_id_of_another_store_is_answered_with_a_reset() {
    let server = server().await;
    let mut events = Box::pin(server.client.events(Some(1 << 40)));
    let first = timeout(SOON, events.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap(), EventItem::Reset);
    server.make("after").await;
    let next = timeout(SOON, events.next()).await.unwrap().unwrap();
    assert!(matches!(next.unwrap(), EventItem::Event { event, .. } if event.name == "after"));
}

//! Files in and out of an instance: with the frames of the instance API, and as tar streams.

use super::*;
use bytes::Bytes;
use serde_json::{Value, json};
use warren_api::{CopyDirection, CopyStart};

/// One copy as the instance API has it: what is sent, then every text frame that comes, and all binary data.
async fn copied(server: &Server, start: &Value, send: &[Message]) -> (Vec<Value>, Vec<u8>) {
    let all = [&[Message::text(start.to_string())], send].concat();
    let (texts, bytes) = server.web_socket("/instances/files/cp", &all).await;
    let parsed = texts.iter().map(|text| serde_json::from_str(text).unwrap());
    (parsed.collect(), bytes)
}

#[tokio::test]
async fn files_are_copied_with_the_frames_of_the_instance_api() {
    let server = server().await;
    server.make("files").await;
    let end = || Message::text(r#"{"type":"end"}"#);
    let to = |path: &str| {
        json!({"direction": "to", "guest_path": path, "is_dir": false, "mode": 0o751, "follow_links": false,
                                  "src_basename": "name", "uid": 5, "gid": 6})
    };
    let data = [
        Message::binary(vec![1; 100_000]),
        Message::binary(vec![2; 5]),
        end(),
    ];
    let (texts, _) = copied(&server, &to("/etc"), &data).await;
    let done = json!({"type": "result", "success": true, "bytes_written": 100_005});
    assert_eq!(texts, [done]);
    let from = |path: &str| json!({"direction": "from", "guest_path": path});
    let (texts, bytes) = copied(&server, &from("/etc/name"), &[]).await;
    assert_eq!(bytes.len(), 100_005);
    let header = json!({"type": "header", "path": "name", "mode": 0o751, "is_dir": false, "is_symlink": false, "size": 100_005,
                         "mtime": 1_700_000_000, "uid": 5, "gid": 6});
    let last = json!({"type": "end", "final": true});
    assert_eq!(
        texts,
        [header, json!({"type": "end", "final": false}), last.clone()]
    );
    let mut directory = to("/made/here");
    directory["is_dir"] = json!(true);
    assert_eq!(
        copied(&server, &directory, &[end()]).await.0[0]["success"],
        true
    );
    let (texts, bytes) = copied(&server, &from("/made"), &[]).await;
    let paths: Vec<_> = texts
        .iter()
        .filter_map(|text| text["path"].as_str())
        .collect();
    assert_eq!(
        (paths, bytes.len(), texts.last()),
        (vec![".", "here"], 0, Some(&last))
    );

    // What breaks off, and what cannot be.
    let kept = || server.client.stat_path("files", "/etc/half", false);
    for cut in [
        vec![data[0].clone(), Message::Close(None)],
        vec![data[0].clone(), Message::text("{}")],
    ] {
        copied(&server, &to("/etc/half"), &cut).await;
        assert!(!kept().await.unwrap().exists);
    }
    let (texts, _) = copied(&server, &to("/full/x"), &data).await;
    assert_eq!(
        (&texts[0]["success"], &texts[0]["code"]),
        (&json!(false), &json!("guest_disk_full"))
    );
    let (texts, _) = copied(&server, &from("/nothing"), &[]).await;
    assert_eq!(
        (&texts[0]["type"], &texts[0]["code"]),
        (&json!("error"), &json!("file_not_found"))
    );
    let (texts, _) = copied(&server, &from("/lies"), &[]).await;
    assert_eq!(texts.last().unwrap()["code"], "guest_unreachable");
    for bad in [
        json!({"direction": "up", "guest_path": "/x"}),
        json!({"direction": "to"}),
        json!({"direction": "from", "guest_path": "x"}),
    ] {
        let (texts, _) = copied(&server, &bad, &[]).await;
        assert_eq!(texts[0]["type"], "error", "{bad}: {texts:?}");
    }
}

#[tokio::test]
async fn trees_are_copied_as_tar_streams_and_broken_ones_are_errors() {
    let server = server().await;
    server.make("files").await;
    let start = |direction: &str, path: &str| -> CopyStart {
        let start = json!({"direction": direction, "guest_path": path, "format": "tar"});
        serde_json::from_value(start).unwrap()
    };
    let all = async |path: &str| {
        let start = start("from", path);
        assert_eq!(start.direction, CopyDirection::From);
        let mut download = server.client.copy_from("files", &start).await?;
        let mut all = Vec::new();
        while let Some(piece) = timeout(SOON, download.next()).await.unwrap()? {
            all.extend_from_slice(&piece);
        }
        Ok::<_, ClientError>(all)
    };
    let archive = all("/etc").await.unwrap();
    let mut upload = server
        .client
        .copy_to("files", &start("to", "/new"))
        .await
        .unwrap();
    for piece in archive.chunks(1000) {
        upload.send(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), archive.len() as u64);
    let info = server
        .client
        .stat_path("files", "/new/motd", false)
        .await
        .unwrap();
    assert_eq!((info.is_file, info.size), (Some(true), Some(5)));
    assert_eq!(
        all("/nothing").await.unwrap_err().code(),
        Some("file_not_found")
    );
    assert_eq!(
        all("/lies").await.unwrap_err().code(),
        Some("guest_unreachable")
    );
    let mut broken = server
        .client
        .copy_to("files", &start("to", "/half"))
        .await
        .unwrap();
    broken.send(Bytes::from(archive)).await.unwrap();
    drop(broken);
    let info = server
        .client
        .stat_path("files", "/half", false)
        .await
        .unwrap();
    assert!(!info.exists);
}

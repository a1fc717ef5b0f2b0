//! Pulls from a real registry, loads, the store's files, and writable disks.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use support::registry::Registry;
use support::{copy_image, gzip, have, leftovers, one_file, quiet, run, store, write_layout};
use warren_core::ErrorClass;
use warren_core::image::{ImageProgress, LayerPhase};
use warren_core::ports::Images as _;
use warren_core::ports::images::{LoadRequest, PullRequest, RegistryCredentials, Transport};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "fsck.erofs"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_pull_fetches_only_what_changed() {
    if !have("a_second_pull_fetches_only_what_changed", &TOOLS) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), "");
    let (base, first, second) = (
        one_file("base", 3_000_000),
        one_file("first", 100),
        one_file("second", 100),
    );
    let layout = work.path().join("layout");
    let old = write_layout(&layout, "t", &[base.clone(), first.clone()]);
    registry.push(&layout, "t", "web:1", &[]);
    let new = write_layout(&layout, "t", &[base.clone(), second.clone()]);
    registry.push(&layout, "t", "web:2", &[]);
    let data = work.path().join("data");
    let images = store(&data);
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let events = Arc::clone(&events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let record = images.pull(registry.request("web:1"), sink).await.unwrap();
    assert_eq!(record.digest, old.to_string());
    assert_eq!(record.name, format!("127.0.0.1:{}/web:1", registry.port));
    assert_eq!(
        (
            record.config.entrypoint.as_slice(),
            record.config.user.as_str()
        ),
        (&["/bin/sh".to_owned()][..], "1:2")
    );
    assert_eq!(record.config.exposed_ports, ["80/tcp"]);
    run(Command::new("fsck.erofs").arg(images.disk(&record.digest).await.unwrap()));
    let digest = warren_image::Digest::of(&base.0).to_string();
    {
        let events = events.lock().unwrap();
        assert!(matches!(
            &events[0],
            ImageProgress::Resolved { layers: 2, .. }
        ));
        let done = |e: &ImageProgress| matches!(e, ImageProgress::Layer { digest: d, phase: LayerPhase::Done, .. } if *d == digest);
        assert!(events.iter().any(done));
        assert!(events.contains(&ImageProgress::Finishing));
    }
    let other = images
        .pull(registry.request("web:2"), quiet())
        .await
        .unwrap();
    assert_eq!(other.digest, new.to_string());
    assert_eq!(registry.fetches(&digest), 1);
    // By tag again, and by digest: nothing is fetched.
    images
        .pull(registry.request("web:2"), quiet())
        .await
        .unwrap();
    images
        .pull(registry.request(&format!("web@{old}")), quiet())
        .await
        .unwrap();
    for (stored, _) in [&base, &first, &second] {
        assert_eq!(
            registry.fetches(&warren_image::Digest::of(stored).to_string()),
            1
        );
    }
    // Found by everything a user may write; removed with its disk and its layers, unless they are used.
    for wanted in [record.id.as_str(), &record.name, &record.digest[7..19]] {
        assert_eq!(
            images
                .find(wanted)
                .await
                .unwrap()
                .map(|r| r.digest)
                .as_deref(),
            Some(record.digest.as_str())
        );
    }
    images
        .remove(&other.id, std::slice::from_ref(&other.digest))
        .await
        .unwrap();
    assert!(
        images.disk(&other.digest).await.is_ok(),
        "a disk in use was removed"
    );
    images.remove(&other.id, &[]).await.unwrap();
    for record in images.list().await.unwrap() {
        images.remove(&record.id, &[]).await.unwrap();
    }
    let missing = images.disk(&record.digest).await.unwrap_err();
    assert_eq!(
        (missing.class, missing.code),
        (ErrorClass::NotFound, "image_not_here")
    );
    assert_eq!(leftovers(&data), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pulls_at_once_fetch_each_layer_once() {
    if !have("many_pulls_at_once_fetch_each_layer_once", &TOOLS) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), "");
    let layers = [
        one_file("a", 2_000_000),
        one_file("b", 500_000),
        one_file("c", 1000),
    ];
    let layout = work.path().join("layout");
    for (tag, layers) in [("1", &layers[..1]), ("2", &layers[..2]), ("3", &layers[..])] {
        write_layout(&layout, "t", layers);
        registry.push(&layout, "t", &format!("web:{tag}"), &[]);
    }
    let images = store(&work.path().join("data"));
    let pulls =
        (0..50).map(|n| images.pull(registry.request(&format!("web:{}", n % 3 + 1)), quiet()));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    assert_eq!(images.list().await.unwrap().len(), 3);
    for (stored, _) in &layers {
        assert_eq!(
            registry.fetches(&warren_image::Digest::of(stored).to_string()),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_with_authentication_and_their_refusals() {
    if !have("registries_with_authentication_and_their_refusals", &TOOLS) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    // bcrypt of "pass", as htpasswd -B writes it.
    let passwords = "user:$2b$05$ad79W07l4UVJGHRm.mxOn.4GLKPYdtxr.yHNQC/d0fejVsNyta2Qa\n";
    let file = work.path().join("htpasswd");
    std::fs::write(&file, passwords).unwrap();
    let auth = format!(
        "auth: {{ htpasswd: {{ realm: r, path: {} }} }}\n",
        file.display()
    );
    let registry = Registry::start(work.path(), &auth);
    let layout = work.path().join("layout");
    write_layout(&layout, "t", &[one_file("a", 1000)]);
    registry.push(&layout, "t", "web:1", &["--dest-creds=user:pass"]);
    let images = store(&work.path().join("data"));
    let denied = images
        .pull(registry.request("web:1"), quiet())
        .await
        .unwrap_err();
    assert_eq!(
        (denied.class, denied.code),
        (ErrorClass::Denied, "registry_denied")
    );
    let with = |username: &str, password: &str| PullRequest {
        credentials: Some(RegistryCredentials::Basic {
            username: username.into(),
            password: password.into(),
        }),
        ..registry.request("web:1")
    };
    assert_eq!(
        images
            .pull(with("user", "wrong"), quiet())
            .await
            .unwrap_err()
            .code,
        "registry_denied"
    );
    images.pull(with("user", "pass"), quiet()).await.unwrap();
    let missing = PullRequest {
        reference: format!("127.0.0.1:{}/none:1", registry.port),
        ..with("user", "pass")
    };
    assert_eq!(
        images.pull(missing, quiet()).await.unwrap_err().code,
        "image_not_found"
    );
    let encrypted = PullRequest {
        transport: Transport::Https,
        ..with("user", "pass")
    };
    assert_eq!(
        images.pull(encrypted, quiet()).await.unwrap_err().code,
        "registry_plain_http"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_and_tarballs_load() {
    if !have("archives_and_tarballs_load", &TOOLS[1..]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let layers = [one_file("a", 300_000), one_file("b", 10)];
    let layout = work.path().join("layout");
    let digest = write_layout(&layout, "v1", &layers);
    let oci = work.path().join("oci.tar");
    let docker = work.path().join("docker.tar");
    for target in [
        format!("oci-archive:{}:v1", oci.display()),
        format!("docker-archive:{}:web:9", docker.display()),
    ] {
        copy_image(&format!("oci:{}:v1", layout.display()), &target);
    }
    let zipped = work.path().join("docker.tar.gz");
    std::fs::write(&zipped, gzip(&std::fs::read(&docker).unwrap())).unwrap();
    let root = work.path().join("root.tar.gz");
    std::fs::write(&root, &layers[0].0).unwrap();
    let data = work.path().join("data");
    let images = store(&data);
    let load = |path: &Path, name: Option<&str>| {
        let request = LoadRequest {
            path: path.to_owned(),
            name: name.map(Into::into),
            ..LoadRequest::default()
        };
        images.load(request, quiet())
    };
    let unnamed = load(&layout, None).await.unwrap_err();
    assert_eq!(unnamed.code, "image_name_needed");
    for path in [&layout, &oci] {
        let records = load(path, Some("localhost/x")).await.unwrap();
        assert_eq!(
            (records.len(), records[0].digest.clone()),
            (1, digest.to_string()),
            "{}",
            path.display()
        );
    }
    let mut digests = Vec::new();
    for path in [&docker, &zipped] {
        let records = load(path, None).await.unwrap();
        assert_eq!(records[0].name, "docker.io/library/web:9");
        assert_eq!(records[0].config.cmd, ["-c", "true"]);
        run(Command::new("fsck.erofs").arg(images.disk(&records[0].digest).await.unwrap()));
        digests.push(records[0].digest.clone());
    }
    assert_eq!(digests[0], digests[1]);
    let records = load(&root, Some("localhost/root")).await.unwrap();
    run(Command::new("fsck.erofs").arg(images.disk(&records[0].digest).await.unwrap()));
    let wrong = work.path().join("wrong");
    std::fs::write(
        &wrong,
        b"neither this nor that, but long enough for a header".repeat(40),
    )
    .unwrap();
    assert!(load(&wrong, Some("localhost/wrong")).await.is_err());
    assert_eq!(
        load(&work.path().join("nothing"), None)
            .await
            .unwrap_err()
            .class,
        ErrorClass::NotFound
    );
    // A damaged layer publishes nothing; the undamaged one then does.
    let other = work.path().join("other");
    let digest = write_layout(&other, "v1", &[one_file("z", 5000)]);
    let stored = warren_image::Digest::of(&one_file("z", 5000).0);
    let blob = other.join("blobs/sha256").join(stored.hex());
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    assert_eq!(
        load(&other, Some("localhost/z")).await.unwrap_err().code,
        "image_damaged"
    );
    assert!(images.disk(&digest.to_string()).await.is_err());
    std::fs::write(&blob, &good).unwrap();
    load(&other, Some("localhost/z")).await.unwrap();
    assert_eq!(leftovers(&data), 0);
}

#[tokio::test]
async fn a_restart_cleans_what_nobody_holds_and_keeps_the_rest() {
    let work = tempfile::tempdir().unwrap();
    drop(store(work.path()));
    let left = work.path().join("images/disks/.tmp-1-2-3");
    std::fs::write(&left, b"half").unwrap();
    let held = work.path().join("images/disks/.tmp-4-5-6");
    let file = std::fs::File::create(&held).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::fs::write(work.path().join("images/refs/torn.json"), b"{\"id\":").unwrap();
    let images = store(work.path());
    assert!(!left.exists());
    assert!(held.exists());
    assert_eq!(images.list().await.unwrap(), []);
}

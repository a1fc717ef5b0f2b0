//! kill -9 at every recorded step of pull, load, commit, prune, remove and repair, and of pushes to this host and what takes
//! them away again: what is left is clean, whole or absent, and the same operation then succeeds, without fetching again what
//! had been verified.
//!
//! The operation runs in a child: this test binary again, with an order in its environment. A run without a crash tells
//! which places it comes to, and how often; then a child dies at each.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde::{Deserialize, Serialize};
use support::pushing::push_layout;
use support::registry::Registry;
use support::{
    changed_disk, copy_image, have, leftovers, one_file, quiet, store, temporaries, write_layout,
};
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::images::{
    ImageUpkeep as _, LoadRequest, PruneRequest, PullRequest, Transport,
};
use warren_core::ports::registry::{
    ManifestName, RegistryBlobs as _, RegistryManifests as _, code,
};
use warren_core::ports::{Commits as _, Images as _};
use warren_core::storage::{PruneMode, PruneScope, Repair};
use warren_image::{Digest, ImageStore};

/// Where the child finds what to do.
const ORDER: &str = "WARREN_TEST_ORDER";
/// Where a push goes, and how it is called there.
const REPOSITORY: &str = "team/app";
const TAG: &str = "1";
/// As which image it is recorded.
const PUSHED: &str = "localhost:8080/team/app:1";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    data: PathBuf,
    job: Job,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Job {
    Pull(String),
    Load(PathBuf),
    /// The changes on this disk, of an instance of the image that was pulled.
    Commit(PathBuf),
    /// A client pushes the image of this layout.
    Push(PathBuf),
    /// A client takes the tag of a push away, then its manifest.
    Discard(String),
    PruneAll,
    Remove,
    Repair,
}

impl Job {
    /// Does it to the store at `data`, as a server would.
    async fn carry_out(&self, data: &Path) {
        self.carry_out_in(&store(data)).await;
    }

    async fn carry_out_in(&self, images: &ImageStore) {
        match self {
            Job::Pull(reference) => {
                let request = PullRequest {
                    reference: reference.clone(),
                    transport: Transport::PlainHttp,
                    ..PullRequest::default()
                };
                images.pull(request, quiet()).await.unwrap();
            }
            Job::Load(path) => {
                let request = LoadRequest {
                    path: path.clone(),
                    name: Some("localhost/x".into()),
                    ..LoadRequest::default()
                };
                images.load(request, quiet()).await.unwrap();
            }
            Job::Commit(disk) => {
                let records = images.list().await.unwrap();
                let base = records.iter().find(|record| record.name.ends_with("web:1"));
                let base = base.unwrap().digest.clone();
                let request = CommitRequest {
                    name: "localhost/committed".into(),
                    ..CommitRequest::default()
                };
                images.check(&request, &base).await.unwrap();
                let captured = images.capture(disk).await.unwrap();
                images
                    .commit(request, &base, captured, quiet())
                    .await
                    .unwrap();
            }
            Job::Push(layout) => push_layout(images, layout, REPOSITORY, TAG).await,
            Job::Discard(manifest) => {
                let tag = ManifestName::Tag(TAG.to_owned());
                for name in [tag, ManifestName::Digest(manifest.clone())] {
                    match images.remove_manifest(REPOSITORY, &name, &[]).await {
                        // Those who died may have come so far.
                        Err(error) if error.code == code::MANIFEST_UNKNOWN => {}
                        removed => removed.unwrap(),
                    }
                }
            }
            Job::PruneAll => {
                let request = PruneRequest {
                    scope: PruneScope::Unused,
                    mode: PruneMode::Remove,
                    in_use: Vec::new(),
                };
                images.prune(request).await.unwrap();
            }
            Job::Remove => {
                for record in images.list().await.unwrap() {
                    images.remove(&record.id, &[]).await.unwrap();
                }
            }
            Job::Repair => {
                for record in images.list().await.unwrap() {
                    images.verify(&record.id, Repair::Yes).await.unwrap();
                }
            }
        }
    }
}

/// Not a test of its own: the child of the one below, which gives it its order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(order) = std::env::var_os(ORDER) else {
        return;
    };
    let order: Order = serde_json::from_str(order.to_str().unwrap()).unwrap();
    order.job.carry_out(&order.data).await;
}

/// Runs a job in a child with one more variable.
fn in_child(data: &Path, job: &Job, variable: &str, value: &str) -> ExitStatus {
    let order = Order {
        data: data.to_owned(),
        job: job.clone(),
    };
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env(ORDER, serde_json::to_string(&order).unwrap())
        .env_remove(warren_crashpoint::CRASH_AT)
        .env_remove(warren_crashpoint::CRASH_TRACE)
        .env(variable, value)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

/// The places that the sources of this crate name.
fn places() -> BTreeSet<String> {
    fn look(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("reached(\"").skip(1) {
                found.insert(part.split('"').next().unwrap().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    look(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    found
}

/// How a store is before a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Empty,
    Pulled,
    /// Pulled, and without its first layer.
    Incomplete,
    /// Pulled, with a damaged disk and a damaged layer.
    Damaged,
    /// Somebody has pushed an image.
    Pushed,
}

/// Every blob that is there is what its name says; gives their digests.
fn verified_blobs(data: &Path) -> BTreeSet<String> {
    let directory = data.join("images/blobs/sha256");
    let Ok(entries) = std::fs::read_dir(directory) else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let digest = Digest::of(&std::fs::read(&path).unwrap());
        assert_eq!(
            path.file_name().unwrap(),
            digest.hex(),
            "a blob is not what its name says"
        );
        found.insert(digest.to_string());
    }
    found
}

/// Every disk that is there, with a record or without, is the one that its layers give.
fn known_disks(data: &Path, known: &BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = std::fs::read_dir(data.join("images/disks")) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "erofs")
        {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                std::fs::read(&path).unwrap() == known[name],
                "{name} is not whole"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_operation_leaves_nothing_half_made_and_succeeds_the_next_time() {
    let test = "a_killed_operation_leaves_nothing_half_made_and_succeeds_the_next_time";
    if cfg!(not(debug_assertions)) {
        return support::skip(test, "without debug assertions nothing dies on order");
    }
    if !have(test, &["docker-registry", "skopeo", "mkfs.ext4"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let layers = [one_file("a", 30_000), one_file("b", 9000)];
    let layout = work.path().join("layout");
    let manifest = write_layout(&layout, "v1", &layers);
    let next = work.path().join("next");
    let next_manifest = write_layout(&next, "v2", &[one_file("a", 30_000), one_file("d", 7000)]);
    let registry = Registry::start(work.path(), "");
    registry.push(&layout, "v1", "web:1", &[]);
    let docker = work.path().join("docker.tar");
    copy_image(
        &format!("oci:{}:v1", layout.display()),
        &format!("docker-archive:{}:web:9", docker.display()),
    );

    // What the disks must be, however they come.
    let mut disks = BTreeMap::new();
    for (n, path) in [&layout, &docker, &next].into_iter().enumerate() {
        let data = work.path().join(format!("known-{n}"));
        Job::Load(path.clone()).carry_out(&data).await;
        for record in store(&data).list().await.unwrap() {
            let disk = store(&data).disk(&record.digest).await.unwrap();
            let name = disk.file_name().unwrap().to_str().unwrap().to_owned();
            disks.insert(name, std::fs::read(disk).unwrap());
        }
    }

    let pull = Job::Pull(format!("127.0.0.1:{}/web:1", registry.port));
    let commit = Job::Commit(changed_disk(work.path()));
    {
        let data = work.path().join("known-committed");
        pull.carry_out(&data).await;
        commit.carry_out(&data).await;
        for record in store(&data).list().await.unwrap() {
            let disk = store(&data).disk(&record.digest).await.unwrap();
            let name = disk.file_name().unwrap().to_str().unwrap().to_owned();
            disks.insert(name, std::fs::read(disk).unwrap());
        }
    }
    let blob = |data: &Path, n: usize| {
        let digest = Digest::of(&layers[n].0);
        data.join("images/blobs/sha256").join(digest.hex())
    };
    let push = Job::Push(layout.clone());
    let prepare = async |before: Before, data: &Path| {
        match before {
            Before::Empty => {}
            Before::Pushed => carry_out_and_seal(data, &push).await,
            Before::Pulled | Before::Incomplete | Before::Damaged => {
                carry_out_and_seal(data, &pull).await;
            }
        }
        match before {
            Before::Empty | Before::Pulled | Before::Pushed => {}
            Before::Incomplete => std::fs::remove_file(blob(data, 0)).unwrap(),
            Before::Damaged => damage(data, &blob(data, 1)),
        }
    };
    let cases = [
        (Before::Empty, pull.clone()),
        (Before::Empty, Job::Load(layout.clone())),
        (Before::Empty, Job::Load(docker.clone())),
        (Before::Incomplete, Job::Load(layout.clone())),
        (Before::Pulled, commit),
        (Before::Pulled, Job::PruneAll),
        (Before::Pulled, Job::Remove),
        (Before::Damaged, Job::Repair),
        (Before::Empty, push.clone()),
        // The tag moves.
        (Before::Pushed, Job::Push(next.clone())),
        (Before::Pushed, Job::Discard(manifest.to_string())),
        (Before::Pushed, Job::PruneAll),
        (Before::Pushed, Job::Remove),
    ];

    let mut hit: BTreeMap<String, usize> = BTreeMap::new();
    let mut kills = 0;
    for (before, job) in &cases {
        let what = format!("{before:?}, {job:?}");
        let data = work.path().join(format!("traced-{kills}"));
        prepare(*before, &data).await;
        let trace = work.path().join("trace");
        assert!(
            in_child(
                &data,
                job,
                warren_crashpoint::CRASH_TRACE,
                trace.to_str().unwrap()
            )
            .success(),
            "{what}"
        );
        let mut reached: BTreeMap<String, usize> = BTreeMap::new();
        for name in std::fs::read_to_string(&trace).unwrap().lines() {
            *reached.entry(name.to_owned()).or_default() += 1;
        }
        std::fs::remove_file(trace).unwrap();
        for (name, times) in reached {
            for time in 1..=times {
                kills += 1;
                let data = work.path().join(format!("killed-{kills}"));
                prepare(*before, &data).await;
                let place = format!("{name}#{time}");
                let ended = in_child(&data, job, warren_crashpoint::CRASH_AT, &place);
                let at = format!("{what}, {place}");
                assert_eq!(ended.signal(), Some(9), "{at}: {ended}");
                *hit.entry(name.clone()).or_default() += 1;

                let images = store(&data);
                assert_eq!(temporaries(&data), 0, "{at}");
                let mut damaged = BTreeSet::new();
                if matches!(job, Job::Repair) {
                    // It may not have come to removing this one.
                    damaged.extend(blob(&data, 1).exists().then(|| blob(&data, 1)));
                    damaged
                        .iter()
                        .for_each(|path| std::fs::remove_file(path).unwrap());
                }
                let had = verified_blobs(&data);
                if !matches!(job, Job::Repair) {
                    known_disks(&data, &disks);
                    for record in images.list().await.unwrap() {
                        let found = images.verify(&record.id, Repair::No).await.unwrap();
                        assert!(found.is_sound(), "{at}: {found:?}");
                    }
                }
                if !matches!(before, Before::Incomplete | Before::Damaged) {
                    shown_is_whole(&images, &at).await;
                }
                drop(images);

                let fetched = fetches(&registry, &layers);
                job.carry_out(&data).await;
                if let Job::Pull(_) = job {
                    for ((stored, _), before) in layers.iter().zip(&fetched) {
                        let digest = Digest::of(stored).to_string();
                        let again = registry.fetches(&digest) - before;
                        assert_eq!(again == 0, had.contains(&digest), "{at}: {again}");
                    }
                }
                if *before == Before::Damaged {
                    // What could not be put right was taken away, and comes anew.
                    pull.carry_out(&data).await;
                }
                let images = store(&data);
                known_disks(&data, &disks);
                verified_blobs(&data);
                for record in images.list().await.unwrap() {
                    let found = images.verify(&record.id, Repair::No).await.unwrap();
                    assert!(found.is_sound(), "{at}: {found:?}");
                }
                shown_is_whole(&images, &at).await;
                if let Job::Push(pushed) = job {
                    let wanted = if *pushed == next {
                        &next_manifest
                    } else {
                        &manifest
                    };
                    assert_eq!(images.tags(REPOSITORY).await.unwrap(), [TAG], "{at}");
                    let found = images.find(PUSHED).await.unwrap();
                    let found = found.map(|record| record.digest);
                    assert_eq!(found, Some(wanted.to_string()), "{at}");
                }
                let gone = matches!(job, Job::PruneAll | Job::Remove | Job::Discard(_));
                assert_eq!(images.list().await.unwrap().is_empty(), gone, "{at}");
                if gone {
                    nothing_is_left(&images, &data, &at).await;
                }
                assert_eq!(leftovers(&data), 0, "{at}");
            }
        }
    }
    for (name, times) in &hit {
        println!("killed at {name}: {times}");
    }
    println!(
        "killed {} times at {} places",
        hit.values().sum::<usize>(),
        hit.len()
    );
    let missed: Vec<String> = places()
        .into_iter()
        .filter(|name| !hit.contains_key(name))
        .collect();
    assert_eq!(missed, Vec::<String>::new(), "never killed there");
}

/// What repositories show can be pulled from them.
async fn shown_is_whole(images: &ImageStore, at: &str) {
    for repository in images.repositories().await.unwrap() {
        for tag in images.tags(&repository).await.unwrap() {
            let name = ManifestName::Tag(tag);
            let manifest = images.manifest(&repository, &name).await.unwrap();
            assert_eq!(Digest::of(&manifest.bytes).to_string(), manifest.digest);
            let described: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
            let layers = described["layers"].as_array().unwrap();
            for named in layers.iter().chain([&described["config"]]) {
                let digest = named["digest"].as_str().unwrap();
                let blob = images.blob(&repository, digest).await;
                assert!(blob.is_ok(), "{at}: {repository} lacks {digest}");
            }
        }
    }
}

/// With the last image gone, pruning leaves no repository, no blob and no disk.
async fn nothing_is_left(images: &ImageStore, data: &Path, at: &str) {
    let request = PruneRequest {
        scope: PruneScope::Unreferenced,
        mode: PruneMode::Remove,
        in_use: Vec::new(),
    };
    images.prune(request).await.unwrap();
    let left = images.repositories().await.unwrap();
    assert_eq!(left, Vec::<String>::new(), "{at}");
    for directory in ["blobs/sha256", "disks"] {
        let mut entries = std::fs::read_dir(data.join("images").join(directory)).unwrap();
        let left = entries.next().map(|entry| entry.unwrap().path());
        assert_eq!(left, None, "{at}");
    }
}

/// How often each layer was fetched, once the registry has written down what a killed child had asked for.
fn fetches(registry: &Registry, layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<usize> {
    let count = || -> Vec<usize> {
        let digests = layers.iter().map(|(stored, _)| Digest::of(stored));
        digests
            .map(|digest| registry.fetches(&digest.to_string()))
            .collect()
    };
    let mut known = count();
    let mut quiet = 0;
    while quiet < 5 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let now = count();
        quiet = if now == known { quiet + 1 } else { 0 };
        known = now;
    }
    known
}

/// Pulls or pushes, and waits until nothing goes on behind it: the disk is sealed.
async fn carry_out_and_seal(data: &Path, job: &Job) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let is_sealed = || {
        let mut entries = std::fs::read_dir(data.join("images/disks")).unwrap();
        entries.any(|entry| {
            let path = entry.unwrap().path();
            path.extension()
                .is_some_and(|extension| extension == "seal")
                && std::fs::read(path).unwrap_or_default().len() >= 72
        })
    };
    let images = store(data);
    job.carry_out_in(&images).await;
    while !is_sealed() {
        assert!(
            std::time::Instant::now() < deadline,
            "the disk was never sealed"
        );
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Flips a byte of a blob, and of every disk; their seals say so.
fn damage(data: &Path, blob: &Path) {
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    flip(blob);
    for entry in std::fs::read_dir(data.join("images/disks")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "erofs")
        {
            flip(&path);
        }
    }
}

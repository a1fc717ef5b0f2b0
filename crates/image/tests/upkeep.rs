//! What images take, what of it goes and when, and what reading them again finds.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::fs::FileTimes;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::pushing::push_layout;
use support::registry::Registry;
use support::{have, leftovers, one_file, quiet, store, write_layout};
use warren_core::image::ImageRecord;
use warren_core::ports::Images as _;
use warren_core::ports::images::{ImageUpkeep as _, LoadRequest, PruneRequest};
use warren_core::storage::{
    ImagePart, PartState, PruneMode, PruneScope, Pruned, Repair, Verification,
};
use warren_image::{Digest, ImageStore, Options};

type Layer = (Vec<u8>, Vec<u8>);

/// Images made of named layers, each layer of 20 to 40 KB.
struct World {
    work: tempfile::TempDir,
    images: Arc<ImageStore>,
}

impl World {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let images = Arc::new(store(&work.path().join("data")));
        World { work, images }
    }

    fn with_budget(budget: u64) -> Self {
        let work = tempfile::tempdir().unwrap();
        let options = Options {
            budget: Some(budget),
            ..Options::default()
        };
        let images = ImageStore::open(&work.path().join("data"), options).unwrap();
        World {
            work,
            images: Arc::new(images),
        }
    }

    fn data(&self) -> PathBuf {
        self.work.path().join("data")
    }

    fn layer(name: &str) -> Layer {
        one_file(name, 20_000 + 100 * usize::from(name.as_bytes()[0]))
    }

    fn layout(&self, layers: &[&str]) -> PathBuf {
        let at = self.work.path().join(layers.join("-"));
        let layers: Vec<Layer> = layers.iter().map(|name| Self::layer(name)).collect();
        write_layout(&at, "v1", &layers);
        at
    }

    async fn load(&self, name: &str, layers: &[&str]) -> ImageRecord {
        let request = LoadRequest {
            path: self.layout(layers),
            name: Some(format!("localhost/{name}")),
            ..LoadRequest::default()
        };
        self.images.load(request, quiet()).await.unwrap().remove(0)
    }

    async fn prune(&self, scope: PruneScope, mode: PruneMode, in_use: &[&ImageRecord]) -> Pruned {
        let request = PruneRequest {
            scope,
            mode,
            in_use: in_use.iter().map(|record| record.digest.clone()).collect(),
        };
        self.images.prune(request).await.unwrap()
    }

    async fn verify(&self, record: &ImageRecord, repair: Repair) -> Verification {
        self.images.verify(&record.id, repair).await.unwrap()
    }

    fn has_layer(&self, name: &str) -> bool {
        let digest = Digest::of(&Self::layer(name).0);
        self.images.content().size(&digest).is_some()
    }

    async fn has_disk(&self, record: &ImageRecord) -> bool {
        self.images.disk(&record.digest).await.is_ok()
    }

    /// Says that an image was last used so long ago.
    async fn age(&self, record: &ImageRecord, hours: u64) {
        let path = self.images.disk(&record.digest).await.unwrap();
        set_age(&path, hours);
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.data().join("images/blobs/sha256").join(digest.hex())
    }

    /// Waits for the seal that is made behind everybody's back.
    async fn sealed(&self, record: &ImageRecord) -> PathBuf {
        let disk = self.images.disk(&record.digest).await.unwrap();
        let mut seal = disk.clone().into_os_string();
        seal.push(".seal");
        let seal = PathBuf::from(seal);
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while std::fs::read(&seal).unwrap_or_default().len() < 72 {
            assert!(SystemTime::now() < deadline, "the disk was never sealed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        seal
    }
}

fn set_age(path: &Path, hours: u64) {
    let time = SystemTime::now() - Duration::from_secs(hours * 3600);
    let file = std::fs::File::open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

fn flip_a_byte(path: &Path) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn what_can_be_reclaimed_is_what_a_prune_frees() {
    let world = World::new();
    let used = world.load("used:1", &["a", "b"]).await;
    world.load("shares:1", &["a", "c"]).await;
    push_layout(&world.images, &world.layout(&["a", "d"]), "team/app", "1").await;
    let check = async |images: &ImageStore, what: &str| {
        let in_use = vec![used.digest.clone()];
        let usage = images.usage(&in_use).await.unwrap();
        let mut freed = Vec::new();
        for mode in [PruneMode::DryRun, PruneMode::Remove] {
            let request = PruneRequest {
                scope: PruneScope::Unused,
                mode,
                in_use: in_use.clone(),
            };
            freed.push(images.prune(request).await.unwrap().bytes);
        }
        assert!(usage.reclaimable > 0, "{what}");
        assert_eq!(freed, [usage.reclaimable; 2], "{what}");
        let after = images.usage(&in_use).await.unwrap();
        assert_eq!((after.reclaimable, after.unreferenced), (0, 0), "{what}");
    };
    // What was pushed just now is kept for an hour, and nobody is promised it before.
    check(&world.images, "pushed just now").await;
    push_layout(&world.images, &world.layout(&["a", "e"]), "team/app", "2").await;
    // A store that was opened since has not promised anything.
    check(&store(&world.data()), "pushed long ago").await;
}

/// What the file system says that everything below a directory takes.
fn allocated(at: &Path) -> u64 {
    std::fs::read_dir(at)
        .unwrap()
        .map(|entry| {
            let (path, metadata) = {
                let entry = entry.unwrap();
                (entry.path(), entry.metadata().unwrap())
            };
            match metadata.is_dir() {
                true => allocated(&path),
                false => metadata.blocks() * 512,
            }
        })
        .sum()
}

#[tokio::test]
async fn shared_layers_are_counted_once() {
    let world = World::new();
    let one = world.load("one", &["s", "a"]).await;
    let two = world.load("two", &["s", "b"]).await;
    for record in [&one, &two] {
        world.sealed(record).await;
    }
    let images = world
        .images
        .usage(&[two.digest.clone(), two.digest.clone()])
        .await
        .unwrap();
    let [first, second] = &images.images[..] else {
        panic!("not two images");
    };
    assert_eq!((&first.name, &second.name), (&one.name, &two.name));
    assert_eq!(first.shared, second.shared);
    for image in [first, second] {
        assert_eq!(image.size, image.shared + image.unique);
        assert!(image.last_used.is_some());
    }
    // Nobody else has the first one's own; the second one is in use.
    assert_eq!((first.instances, first.reclaimable), (0, first.unique));
    assert_eq!((second.instances, second.reclaimable), (2, 0));
    assert_eq!(images.reclaimable, first.unique);
    assert_eq!(images.unreferenced, 0);
    let data = world.data().join("images");
    let on_disk = allocated(&data.join("blobs")) + allocated(&data.join("disks"));
    assert_eq!(images.total, on_disk);
    let counts: Vec<usize> = images.layers.iter().map(|layer| layer.images).collect();
    assert_eq!(images.layers.len(), 3);
    assert_eq!(counts.iter().sum::<usize>(), 4);
    let shared = Digest::of(&World::layer("s").0).to_string();
    let shared = images.layers.iter().find(|it| it.digest == shared).unwrap();
    assert_eq!(shared.images, 2);
    // What a prune of everything unused frees is what was said.
    let gone = world
        .prune(PruneScope::Unused, PruneMode::Remove, &[&two])
        .await;
    assert_eq!(gone.bytes, first.unique);
    assert_eq!(gone.images[0].name, one.name);
}

#[tokio::test]
async fn a_disk_whose_tag_moved_on_goes_unless_an_instance_runs_from_it() {
    let world = World::new();
    let old = world.load("web", &["s", "a"]).await;
    let new = world.load("web", &["s", "b"]).await;
    assert_eq!(old.id, new.id);
    let routine = |mode| (PruneScope::Routine, mode);
    let (scope, mode) = routine(PruneMode::Remove);
    let kept = world.prune(scope, mode, &[&old]).await;
    assert_eq!((kept.disks, kept.blobs, kept.images.len()), (0, 0, 0));
    assert!(world.has_disk(&old).await && world.has_layer("a"));
    // An instance may be committed: its layers stay with its disk.
    let kept = world
        .prune(PruneScope::Unused, PruneMode::Remove, &[&old, &new])
        .await;
    assert_eq!((kept.disks, kept.blobs, kept.images.len()), (0, 0, 0));
    let would = world.prune(scope, PruneMode::DryRun, &[]).await;
    assert!(world.has_disk(&old).await);
    let gone = world.prune(scope, mode, &[]).await;
    assert_eq!((gone.disks, gone.blobs), (1, 0));
    assert_eq!(gone, would);
    assert!(!world.has_disk(&old).await && world.has_disk(&new).await);
    // Blobs wait for the next pull for a while, unless somebody asks for the room.
    assert!(world.has_layer("a"));
    set_age(&world.blob(&Digest::of(&World::layer("a").0)), 25);
    let gone = world.prune(scope, mode, &[]).await;
    assert_eq!((gone.disks, gone.blobs), (0, 1));
    assert!(!world.has_layer("a") && world.has_layer("s") && world.has_layer("b"));
    // The old manifest and configuration.
    let gone = world
        .prune(PruneScope::Unreferenced, PruneMode::Remove, &[])
        .await;
    assert_eq!((gone.disks, gone.blobs, gone.images.len()), (0, 2, 0));
    assert!(world.verify(&new, Repair::No).await.is_sound());
    assert_eq!(leftovers(&world.data()), 0);
}

#[tokio::test]
async fn a_prune_spares_what_is_used_leased_or_of_unknown_use() {
    let world = World::new();
    let used = world.load("used", &["s", "a"]).await;
    let idle = world.load("idle", &["s", "b"]).await;
    let torn = world.data().join("images/refs/torn.json");
    std::fs::write(&torn, b"{").unwrap();
    let request = |in_use: &ImageRecord| PruneRequest {
        scope: PruneScope::Unused,
        mode: PruneMode::Remove,
        in_use: vec![in_use.digest.clone()],
    };
    let refused = world.images.prune(request(&used)).await.unwrap_err();
    assert_eq!(refused.code, "image_record_damaged");
    assert!(refused.message.contains("torn.json"), "{refused}");
    assert_eq!(world.images.list().await.unwrap().len(), 2);
    std::fs::remove_file(&torn).unwrap();

    let layer = Digest::of(&World::layer("b").0);
    let lease = world.images.content().lease([&layer]);
    let would = world
        .prune(PruneScope::Unused, PruneMode::DryRun, &[&used])
        .await;
    let gone = world
        .prune(PruneScope::Unused, PruneMode::Remove, &[&used])
        .await;
    assert_eq!(gone, would);
    assert_eq!(gone.images.len(), 1);
    assert_eq!(
        (gone.images[0].id.as_str(), gone.disks, gone.blobs),
        (idle.id.as_str(), 1, 2)
    );
    assert!(world.has_layer("b") && world.has_layer("s"));
    drop(lease);
    world
        .prune(PruneScope::Unreferenced, PruneMode::Remove, &[&used])
        .await;
    assert!(!world.has_layer("b"));
    assert!(world.verify(&used, Repair::No).await.is_sound());
    assert_eq!(world.images.list().await.unwrap(), [used]);
}

#[tokio::test]
async fn a_store_that_outgrew_its_budget_loses_what_was_not_used_for_longest() {
    let world = World::with_budget(1);
    let old = world.load("old", &["a"]).await;
    let older = world.load("older", &["b"]).await;
    let oldest = world.load("oldest", &["c"]).await;
    let fresh = world.load("fresh", &["d"]).await;
    for (record, hours) in [(&old, 1), (&older, 2), (&oldest, 3)] {
        world.age(record, hours).await;
    }
    // Started from just now, so not the first to go any more.
    world.images.mark_used(&older.digest).await.unwrap();
    world.age(&older, 0).await;
    let gone = world
        .prune(PruneScope::Routine, PruneMode::Remove, &[&old])
        .await;
    let names = |pruned: &Pruned| -> Vec<String> {
        pruned
            .images
            .iter()
            .map(|image| image.name.clone())
            .collect()
    };
    assert_eq!(names(&gone), [oldest.name]);
    assert!(
        !world.has_layer("c"),
        "what the image had was not collected"
    );
    let mut left = world.images.list().await.unwrap();
    left.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(left, [fresh, old.clone(), older.clone()]);
    // The one an instance uses stays, however long ago.
    world.age(&older, 5).await;
    let gone = world
        .prune(PruneScope::Routine, PruneMode::Remove, &[&old])
        .await;
    assert_eq!(names(&gone), [older.name]);
    // Within its budget nothing goes.
    let world = World::with_budget(1 << 30);
    let old = world.load("old", &["a"]).await;
    world.age(&old, 1000).await;
    assert_eq!(
        world
            .prune(PruneScope::Routine, PruneMode::Remove, &[])
            .await,
        Pruned::default()
    );
}

#[tokio::test]
async fn reading_an_image_again_names_what_is_damaged() {
    let world = World::new();
    let record = world.load("web", &["a", "b"]).await;
    world.sealed(&record).await;
    let state = |found: &Verification, part: ImagePart| {
        let parts = found.parts.iter().filter(|it| it.part == part);
        parts.map(|it| it.state).collect::<Vec<_>>()
    };
    let sound = world.verify(&record, Repair::No).await;
    assert!(sound.is_sound() && sound.advice.is_none());
    assert_eq!(sound.parts.len(), 5);

    // A disk is made again from its layers, and is what it was.
    let disk = world.images.disk(&record.digest).await.unwrap();
    let before = std::fs::read(&disk).unwrap();
    flip_a_byte(&disk);
    let found = world.verify(&record, Repair::No).await;
    assert_eq!(state(&found, ImagePart::Disk), [PartState::Damaged]);
    assert!(found.advice.as_deref().unwrap().contains("--repair"));
    let repaired = world.verify(&record, Repair::Yes).await;
    assert_eq!(state(&repaired, ImagePart::Disk), [PartState::Repaired]);
    assert!(repaired.is_sound() && repaired.advice.is_none());
    assert!(std::fs::read(&disk).unwrap() == before);
    std::fs::remove_file(&disk).unwrap();
    let repaired = world.verify(&record, Repair::Yes).await;
    assert_eq!(state(&repaired, ImagePart::Disk), [PartState::Repaired]);
    assert!(std::fs::read(&disk).unwrap() == before);

    // Without a seal it is compared with what its layers give.
    std::fs::remove_file(world.sealed(&record).await).unwrap();
    assert!(world.verify(&record, Repair::No).await.is_sound());
    std::fs::remove_file(world.sealed(&record).await).unwrap();
    flip_a_byte(&disk);
    let found = world.verify(&record, Repair::No).await;
    assert_eq!(state(&found, ImagePart::Disk), [PartState::Damaged]);
    assert!(world.verify(&record, Repair::Yes).await.is_sound());

    // A blob can only be had again.
    let layer = Digest::of(&World::layer("b").0);
    flip_a_byte(&world.blob(&layer));
    let found = world.verify(&record, Repair::No).await;
    assert_eq!(
        state(&found, ImagePart::Layer),
        [PartState::Sound, PartState::Damaged]
    );
    assert!(world.blob(&layer).exists());
    let found = world.verify(&record, Repair::Yes).await;
    assert_eq!(
        state(&found, ImagePart::Layer),
        [PartState::Sound, PartState::Damaged]
    );
    assert!(
        found
            .advice
            .as_deref()
            .unwrap()
            .contains("warren pull localhost/web")
    );
    let found = world.verify(&record, Repair::No).await;
    assert_eq!(
        state(&found, ImagePart::Layer),
        [PartState::Sound, PartState::Missing]
    );
    world.load("web", &["a", "b"]).await;
    assert!(world.verify(&record, Repair::No).await.is_sound());
    for (part, digest) in [
        (ImagePart::Manifest, record.digest.parse().unwrap()),
        (ImagePart::Configuration, configuration(&world, &record)),
    ] {
        flip_a_byte(&world.blob(&digest));
        let found = world.verify(&record, Repair::Yes).await;
        assert_eq!(state(&found, part), [PartState::Damaged]);
        world.load("web", &["a", "b"]).await;
        assert!(
            world.verify(&record, Repair::No).await.is_sound(),
            "{part:?}"
        );
    }

    // Disk and blob at once: both come with the next load.
    world.sealed(&record).await;
    flip_a_byte(&disk);
    flip_a_byte(&world.blob(&layer));
    let found = world.verify(&record, Repair::Yes).await;
    assert_eq!(state(&found, ImagePart::Disk), [PartState::Damaged]);
    world.load("web", &["a", "b"]).await;
    assert!(world.verify(&record, Repair::No).await.is_sound());
    assert!(std::fs::read(&disk).unwrap() == before);

    let missing = world.images.verify("none", Repair::No).await.unwrap_err();
    assert_eq!(missing.code, "image_not_here");
    assert_eq!(leftovers(&world.data()), 0);
}

fn configuration(world: &World, record: &ImageRecord) -> Digest {
    let manifest = record.digest.parse().unwrap();
    let manifest = world.images.content().document(&manifest).unwrap().unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    parsed["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_all_the_time_takes_nothing_from_who_needs_it() {
    let test = "pruning_all_the_time_takes_nothing_from_who_needs_it";
    if !have(test, &["docker-registry", "skopeo"]) {
        return;
    }
    const ROUNDS: usize = 12;
    let world = Arc::new(World::new());
    let registry = Registry::start(world.work.path(), "");
    let stacks: [&[&str]; 3] = [&["s", "a"], &["s", "b"], &["s", "a", "b"]];
    for (n, stack) in stacks.iter().enumerate() {
        registry.push(&world.layout(stack), "v1", &format!("web:{n}"), &[]);
    }
    let registry = Arc::new(registry);
    let bringing: Vec<_> = (0..3)
        .map(|n| {
            let (world, registry) = (Arc::clone(&world), Arc::clone(&registry));
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    match round % 2 {
                        0 => {
                            let request = registry.request(&format!("web:{n}"));
                            world.images.pull(request, quiet()).await.unwrap()
                        }
                        _ => world.load(&format!("load-{n}"), stacks[n]).await,
                    };
                }
            })
        })
        .collect();
    let pruning = {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            loop {
                world
                    .prune(PruneScope::Unreferenced, PruneMode::Remove, &[])
                    .await;
                for record in world.images.list().await.unwrap() {
                    let found = world.images.verify(&record.id, Repair::No).await;
                    // It may be removed meanwhile; whatever is there is whole.
                    match found {
                        Ok(found) => assert!(found.is_sound(), "{found:?}"),
                        Err(error) => assert_eq!(error.code, "image_not_here"),
                    }
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let removing = {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(15)).await;
                for record in world.images.list().await.unwrap() {
                    if record.name.ends_with("load-1:latest") || record.name.ends_with("web:0") {
                        world.images.remove(&record.id, &[]).await.unwrap();
                    }
                }
            }
        })
    };
    for task in bringing {
        task.await.unwrap();
    }
    for task in [pruning, removing] {
        task.abort();
        let ended = task.await.unwrap_err();
        assert!(ended.is_cancelled(), "{ended}");
    }
    world
        .prune(PruneScope::Unreferenced, PruneMode::Remove, &[])
        .await;
    for record in world.images.list().await.unwrap() {
        assert!(world.verify(&record, Repair::No).await.is_sound());
    }
}

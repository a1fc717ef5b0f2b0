//! Images that a real containerd has: taken from it, checked as if they came from anywhere, and left to the registry where
//! they are not whole.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{have, leftovers, one_file, quiet, run, write_layout};
use warren_core::PortError;
use warren_core::image::ImageRecord;
use warren_core::ports::Images as _;
use warren_core::ports::images::{ImageUpkeep as _, PullRequest, Transport};
use warren_core::storage::Repair;
use warren_image::{ImageStore, Options};

/// A registry that nobody serves: what is pulled from it comes from elsewhere.
const NOWHERE: &str = "127.0.0.1:1/web";

/// Debian's containerd, on a socket of its own.
struct Containerd {
    process: Child,
    socket: PathBuf,
    root: PathBuf,
}

impl Containerd {
    fn start(work: &Path) -> Self {
        let (root, socket) = (work.join("containerd"), work.join("containerd.sock"));
        let config = work.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n",
            root = root.display(),
            state = work.join("state").display(),
            socket = socket.display(),
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(work.join("containerd.log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Containerd {
            process,
            socket,
            root,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !containerd
            .ctr(&["version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
        {
            assert!(Instant::now() < deadline, "containerd did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(arguments);
        command
    }

    /// Takes the images of a layout in, as `NOWHERE` with their tags.
    fn import(&self, namespace: &str, layout: &Path) {
        let archive = layout.with_extension("tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(layout)
            .arg("-cf")
            .arg(&archive)
            .arg("."));
        let archive = archive.to_str().unwrap();
        run(self
            .ctr(&["--namespace", namespace, "images", "import"])
            .args(["--no-unpack", "--base-name", NOWHERE, archive]));
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let content = self.root.join("io.containerd.content.v1.content/blobs");
        content.join(digest.replace(':', "/"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It is our child, and runs nothing.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn store(data: &Path, socket: &Path) -> ImageStore {
    let options = Options {
        containerd: Some(socket.to_owned()),
        stall: Duration::from_secs(5),
        ..Options::default()
    };
    ImageStore::open(data, options).unwrap()
}

async fn pull(images: &ImageStore, tag: &str) -> Result<ImageRecord, PortError> {
    let request = PullRequest {
        id: None,
        reference: format!("{NOWHERE}:{tag}"),
        platform: None,
        transport: Transport::PlainHttp,
        tags: Default::default(),
        credentials: None,
    };
    images.pull(request, quiet()).await
}

fn can_run(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        support::skip(test, "containerd needs root");
        return false;
    }
    have(test, &["containerd", "ctr"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containerd_has_is_taken_from_it() {
    if !can_run("what_containerd_has_is_taken_from_it") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(work.path());
    let layout = work.path().join("layout");
    // Larger than the pieces in which it comes.
    let layers = [one_file("a", 9_000_000), one_file("b", 3000)];
    write_layout(&layout, "1", &layers);
    containerd.import("somebodys", &layout);

    let data = work.path().join("data");
    let images = store(&data, &containerd.socket);
    let record = pull(&images, "1").await.unwrap();
    assert_eq!(record.name, format!("{NOWHERE}:1"));
    let found = images.verify(&record.id, Repair::No).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
    assert_eq!(leftovers(&data), 0);

    // What it does not have is asked for elsewhere.
    let error = pull(&images, "2").await.unwrap_err();
    assert_eq!(error.code, "registry_unreachable", "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containerd_has_damaged_or_in_part_is_refused_or_asked_for_elsewhere() {
    if !can_run("what_containerd_has_damaged_or_in_part_is_refused_or_asked_for_elsewhere") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(work.path());
    let layout = work.path().join("layout");
    let layers = [one_file("a", 50_000), one_file("b", 3000)];
    write_layout(&layout, "1", &layers);
    containerd.import("default", &layout);
    let data = work.path().join("data");
    let images = store(&data, &containerd.socket);

    let digest = warren_image::Digest::of(&layers[1].0).to_string();
    let layer = containerd.blob(&digest);
    let whole = std::fs::read(&layer).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..10]] {
        std::fs::write(&layer, damaged).unwrap();
        let error = pull(&images, "1").await.unwrap_err();
        assert_eq!(error.code, "image_damaged", "{error:?}");
        assert_eq!(images.list().await.unwrap(), []);
        assert_eq!(leftovers(&data), 0);
    }
    std::fs::write(&layer, &whole).unwrap();
    let record = pull(&images, "1").await.unwrap();
    images.remove(&record.id, &[]).await.unwrap();

    // Without a layer it is not whole.
    run(containerd
        .ctr(&["content", "rm", &digest])
        .stdout(Stdio::null()));
    let error = pull(&images, "1").await.unwrap_err();
    assert_eq!(error.code, "registry_unreachable", "{error:?}");
}

#[tokio::test]
async fn without_a_containerd_the_registry_is_asked() {
    let work = tempfile::tempdir().unwrap();
    let images = store(&work.path().join("data"), &work.path().join("nobody.sock"));
    let error = pull(&images, "1").await.unwrap_err();
    assert_eq!(error.code, "registry_unreachable", "{error:?}");
}

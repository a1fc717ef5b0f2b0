//! A guest in a QEMU of its own, which ends with the test.

use crate::SOON;
use crate::host::{Kernel, run};
use crate::image::{Initramfs, image};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::client::{GuestClient, GuestEvents};
use warren_guest::protocol::AttachKey;

include!("../../build-support/agent.rs");

pub(crate) struct Vm {
    directory: tempfile::TempDir,
    process: Child,
    key: AttachKey,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            for file in ["serial.log", "qemu.err"] {
                let text = fs::read(self.directory.path().join(file)).unwrap_or_default();
                let _ = std::io::stderr().write_all(&text);
            }
        }
    }
}

impl Vm {
    pub(crate) fn start(kernel: &Kernel) -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        // Beside <target>/tmp: where the build of `warren` has it too.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest-agent");
        let agent = build_guest_agent(&workspace, &target, "x86_64").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

        fs::write(
            path("initrd"),
            Initramfs::build(&agent, kernel.modules.as_deref()),
        )
        .unwrap();
        image(&directory.path().join("root"));
        run(
            "mkfs.erofs",
            &["--quiet", &path("root.erofs"), &path("root")],
        );
        fs::File::create(path("upper.ext4"))
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        run("mke2fs", &["-q", "-t", "ext4", &path("upper.ext4")]);

        let key = AttachKey::random();
        let append = format!("console=ttyS0 quiet reboot=t panic=-1 warren.attach={key}");
        // A distribution's kernel finds its devices on PCI only, or in a microvm's ACPI tables, which QEMU puts where the initrd
        // ends and may write that over.
        let (machine, bus) = match kernel.modules {
            None => (
                "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on",
                "device",
            ),
            Some(_) => ("pc,usb=off,vmport=off,hpet=off", "pci"),
        };
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", machine])
            .args([
                "-cpu",
                "max",
                "-accel",
                "tcg,thread=multi",
                "-m",
                "256",
                "-smp",
                "1",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args(["-serial", &format!("file:{}", path("serial.log"))])
            .args([
                "-kernel",
                kernel.image.to_str().unwrap(),
                "-initrd",
                &path("initrd"),
            ])
            .args(["-append", &append])
            .args(["-device", &format!("virtio-serial-{bus}")])
            .args([
                "-chardev",
                &format!("socket,id=ch,path={},server=on,wait=off", path("ch")),
            ])
            .args(["-device", "virtserialport,chardev=ch,name=warren.0"])
            .args([
                "-drive",
                &format!(
                    "id=r,if=none,format=raw,readonly=on,file={}",
                    path("root.erofs")
                ),
            ])
            .args(["-device", &format!("virtio-blk-{bus},drive=r")])
            .args([
                "-drive",
                &format!("id=u,if=none,format=raw,file={}", path("upper.ext4")),
            ])
            .args(["-device", &format!("virtio-blk-{bus},drive=u")])
            .args(["-netdev", "user,id=n,restrict=on"])
            .args([
                "-device",
                &format!("virtio-net-{bus},netdev=n,mac=52:54:00:12:34:56"),
            ])
            .stdin(Stdio::null())
            .stderr(fs::File::create(path("qemu.err")).unwrap())
            .spawn()
            .unwrap();
        Self {
            directory,
            process,
            key,
        }
    }

    pub(crate) async fn attach(&self) -> (GuestClient, GuestEvents) {
        let path = self.directory.path().join("ch");
        let connect = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    // QEMU has not made its socket yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let stream = timeout(SOON, connect).await.unwrap();
        GuestClient::attach(stream, &self.key, SOON).await.unwrap()
    }

    pub(crate) fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("serial.log")).unwrap())
            .into_owned()
    }

    /// The disk that the guest writes to.
    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.path().join("upper.ext4")
    }

    /// Waits for QEMU to exit by itself.
    pub(crate) async fn gone(&mut self) {
        let deadline = Instant::now() + SOON;
        while self.process.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "QEMU is still there:\n{}",
                self.serial()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

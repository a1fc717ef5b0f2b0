//! What a guest starts from: an initramfs that is the agent, and a busybox image.

use crate::host::find_program;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// The newc archive format of cpio, as Documentation/driver-api/early-userspace/buffer-format.rst gives it.
pub(crate) struct Initramfs(Vec<u8>);

impl Initramfs {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let inode = self.0.len();
        let fields = [
            inode,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn build(agent: &Path, modules: Option<&Path>) -> Vec<u8> {
        let mut archive = Self::new();
        archive.entry("dev", 0o040_755, b"");
        archive.entry("init", 0o100_755, &fs::read(agent).unwrap());
        if let Some(modules) = modules {
            archive.entry("lib", 0o040_755, b"");
            archive.entry("lib/modules", 0o040_755, b"");
            for file in fs::read_dir(modules).unwrap().flatten() {
                let name = format!("lib/modules/{}", file.file_name().to_str().unwrap());
                archive.entry(&name, 0o100_644, &fs::read(file.path()).unwrap());
            }
        }
        archive.entry("TRAILER!!!", 0, b"");
        archive.0
    }
}

/// A busybox image with the awkward things real images have.
pub(crate) fn image(root: &Path) {
    for directory in ["bin", "etc", "home/web"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(find_program("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in [
        "sh", "cat", "echo", "id", "sleep", "env", "ps", "ip", "tty", "stty", "mount", "seq", "dd",
        "nc", "date", "pwd", "kill", "head", "true",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:1234:1235::/home/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nweb:x:1235:\nextra:x:777:web\n",
    )
    .unwrap();
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        root.join("etc/resolv.conf"),
    )
    .unwrap();
    fs::write(root.join("bin/not-executable"), "x").unwrap();
}

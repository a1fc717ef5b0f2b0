//! What this machine has of what a guest needs: kernels, programs; and how a test says that something is missing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A guest kernel with the modules that have to be in its initramfs.
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) modules: Option<PathBuf>,
}

pub(crate) fn kernels() -> Vec<Kernel> {
    if let Some(image) = std::env::var_os("WARREN_KERNEL") {
        return vec![Kernel {
            image: image.into(),
            modules: None,
        }];
    }
    let Ok(entries) = fs::read_dir("/var/cache/warren/kernels") else {
        return Vec::new();
    };
    let mut found: Vec<Kernel> = entries
        .flatten()
        .map(|entry| Kernel {
            image: entry.path().join("vmlinux"),
            modules: Some(entry.path().join("modules")).filter(|modules| modules.is_dir()),
        })
        .filter(|kernel| kernel.image.is_file())
        .collect();
    found.sort_by(|one, other| other.image.cmp(&one.image));
    found
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// What is missing to run the test, in words.
pub(crate) fn missing() -> Option<String> {
    for program in ["qemu-system-x86_64", "mkfs.erofs", "mke2fs", "busybox"] {
        if find_program(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
    }
    kernels()
        .is_empty()
        .then(|| "no guest kernel: run ./dev kernel".to_owned())
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let program = find_program(program).unwrap();
    let output = Command::new(&program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", program.display());
}

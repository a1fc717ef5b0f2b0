//! Images made on the spot, once per test process.

use super::checkout;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The OCI layout of the busybox image, made once per test process.
pub(crate) fn busybox_layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let layout =
            std::env::temp_dir().join(format!("warren-e2e-{}-busybox", std::process::id()));
        let made = Command::new(checkout().join("scripts/make-busybox-image"))
            .arg(&layout)
            .status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "the busybox image could not be made"
        );
        layout
    })
}

/// A tarball of a root file system that holds one static program.
pub(crate) fn echo_tarball() -> &'static Path {
    static TARBALL: OnceLock<PathBuf> = OnceLock::new();
    TARBALL.get_or_init(|| {
        let directory =
            std::env::temp_dir().join(format!("warren-e2e-{}-echo", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        let source = checkout().join("crates/warren/tests/e2e/guest/echo.rs");
        let compiled = Command::new("rustc")
            .args([
                "--edition=2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-o",
            ])
            .arg(directory.join("echo"))
            .arg(source)
            .status();
        assert!(
            compiled.is_ok_and(|status| status.success()),
            "the test program does not compile"
        );
        let tarball = directory.join("echo.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&directory)
            .arg("-cf")
            .arg(&tarball)
            .arg("echo")
            .status();
        assert!(
            packed.is_ok_and(|status| status.success()),
            "the test image could not be packed"
        );
        tarball
    })
}

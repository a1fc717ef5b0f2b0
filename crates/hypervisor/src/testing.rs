//! What unit tests of several modules need.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use std::io::Write;
use std::path::PathBuf;

/// QEMU, where it is installed.
pub(crate) fn qemu() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join("qemu-system-x86_64"))
        .find(|path| path.is_file())
}

/// Says loudly that a test could not run here, and counts it where the test runner wants it counted.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("WARREN_SKIP_FILE") {
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

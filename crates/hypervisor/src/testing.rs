//! What unit tests of several modules need.

#[path = "../../../tests/skip.rs"]
mod skip;

pub(crate) use skip::skip;

use std::path::PathBuf;

/// QEMU, where it is installed.
pub(crate) fn qemu() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join("qemu-system-x86_64"))
        .find(|path| path.is_file())
}

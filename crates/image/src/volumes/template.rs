//! The empty ext4 that others are cloned from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::VolumeError;
use crate::store::publish::Temporary;

/// Part of a template's name; to be raised whenever `make` changes what it makes.
pub(super) const RECIPE: &str = "v1";

/// Makes an empty ext4 of `size` bytes at `target`.
///
/// Lazy initialisation stays on, so that an empty disk takes no more than its metadata; every file is 256-byte-inode ext4
/// with a journal of mkfs's choosing; no blocks are reserved for root, because the guest's root is the user.
pub(super) fn make(target: &Path, size: u64) -> Result<(), VolumeError> {
    let disk = |what| move |source| VolumeError::Disk { what, source };
    let mkfs = find_mkfs().ok_or(VolumeError::NoMkfs)?;
    let mut temporary = Temporary::beside(target).map_err(disk("making an empty disk"))?;
    temporary
        .file()
        .set_len(size)
        .map_err(disk("sizing an empty disk"))?;
    let output = Command::new(mkfs)
        .env_clear()
        .env("MKE2FS_SYNC", "0")
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-I", "256"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(temporary.path())
        .stdin(Stdio::null())
        .output()
        .map_err(disk("running mkfs.ext4"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // Without a language set it says what the C library calls ENOSPC.
        if said.contains("No space left on device") {
            return Err(disk("making an empty disk")(
                std::io::ErrorKind::StorageFull.into(),
            ));
        }
        return Err(VolumeError::Mkfs(said.trim().chars().take(300).collect()));
    }
    temporary
        .publish(target)
        .map_err(disk("keeping an empty disk"))
}

fn find_mkfs() -> Option<PathBuf> {
    [
        "/usr/sbin",
        "/sbin",
        "/usr/bin",
        "/bin",
        "/usr/local/sbin",
        "/opt/homebrew/opt/e2fsprogs/sbin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join("mkfs.ext4"))
    .find(|path| path.is_file())
}

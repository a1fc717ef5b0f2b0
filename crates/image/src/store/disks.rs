//! The disks of a store: one a manifest, shared by all its names.
//!
//! ```text
//! <data>/images/disks/sha256-<manifest digest>.erofs         changed never, touched when an instance starts from it
//! <data>/images/disks/sha256-<manifest digest>.erofs.seal    the digest of its bytes
//! ```
//!
//! A seal is made behind the back of those who wait for the image: hashing a disk takes as long as starting from it. A
//! disk without one, which an earlier process left so, is told from a damaged one by making it again from its layers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::publish;
use crate::digest::{Digest, Hasher};

/// Behind the digest in a disk's name.
const SUFFIX: &str = ".erofs";
/// Behind a disk's name in its seal's.
const SEAL: &str = ".seal";

#[derive(Debug)]
pub(super) struct Disks {
    directory: PathBuf,
    /// Those that this process has written and not sealed yet, with what ends the sealing.
    unsealed: Mutex<HashMap<Digest, CancellationToken>>,
    /// Ends what goes on behind everybody's back.
    stop: CancellationToken,
}

impl Disks {
    pub(super) fn new(directory: PathBuf) -> Self {
        Disks {
            directory,
            unsealed: Mutex::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Ends sealing when it is dropped.
    pub(super) fn stop_on_drop(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the disk of a manifest is, or would be.
    pub(super) fn path(&self, manifest: &Digest) -> PathBuf {
        self.directory.join(name(manifest))
    }

    /// A place beside the disks, for what becomes one.
    pub(super) fn beside(&self) -> PathBuf {
        self.directory.join("new")
    }

    pub(super) fn is_here(&self, manifest: &Digest) -> bool {
        self.path(manifest).is_file()
    }

    /// Its size, holes included.
    pub(super) fn size(&self, manifest: &Digest) -> io::Result<u64> {
        Ok(self.path(manifest).metadata()?.len())
    }

    /// Notes that it is used now; nothing to do when it is not here.
    pub(super) fn mark_used(&self, manifest: &Digest) -> io::Result<()> {
        match File::open(self.path(manifest)) {
            Ok(disk) => disk.set_modified(SystemTime::now()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// When it was last used, or came here.
    pub(super) fn last_used(&self, manifest: &Digest) -> Option<SystemTime> {
        self.path(manifest).metadata().ok()?.modified().ok()
    }

    fn seal_path(&self, manifest: &Digest) -> PathBuf {
        self.directory.join(format!("{}{SEAL}", name(manifest)))
    }

    /// The digest its bytes had when it was made, where that is known.
    pub(super) fn seal(&self, manifest: &Digest) -> Option<Digest> {
        let text = std::fs::read_to_string(self.seal_path(manifest)).ok()?;
        text.trim_end().parse().ok()
    }

    /// Forgets what its bytes were; to be done before it is replaced or after it is gone.
    pub(super) fn unseal(&self, manifest: &Digest) -> io::Result<()> {
        if let Some(sealing) = self.unsealed().remove(manifest) {
            // Whoever reads a removed disk keeps its room from others.
            sealing.cancel();
        }
        publish::remove(&self.seal_path(manifest))
    }

    /// Removes the seals of disks that are gone: a process that died between the two has left them.
    pub(super) fn clean(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let is_seal = path.extension().is_some_and(|it| it == &SEAL[1..]);
            if is_seal && !path.with_extension("").try_exists()? {
                publish::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Hashes a disk that is known to be right and keeps the digest, unless that is known already.
    pub(super) fn make_seal(&self, manifest: &Digest, stop: &CancellationToken) -> io::Result<()> {
        if self.seal(manifest).is_some() {
            return Ok(());
        }
        let mut disk = File::open(self.path(manifest))?;
        let inode = disk.metadata()?.ino();
        let digest = hash(&mut disk, None, stop)?;
        // Another disk may have come in its place meanwhile.
        if self.path(manifest).metadata()?.ino() == inode {
            // One that is torn is none.
            std::fs::write(self.seal_path(manifest), format!("{digest}\n"))?;
            self.unsealed().remove(manifest);
        }
        Ok(())
    }

    /// Whether this process has written it and not come to sealing it: then it needs no comparison, only its seal.
    pub(super) fn waits_for_seal(&self, manifest: &Digest) -> bool {
        self.unsealed().contains_key(manifest)
    }

    fn unsealed(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, CancellationToken>> {
        self.unsealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals a new disk when the machine has nothing better to do.
    pub(super) fn seal_later(self: &Arc<Self>, manifest: &Digest) {
        if self.seal(manifest).is_some() {
            return;
        }
        let stop = self.stop.child_token();
        self.unsealed().insert(manifest.clone(), stop.clone());
        let (disks, manifest) = (Arc::clone(self), manifest.clone());
        let work = move || {
            // Of this thread alone.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::setpriority_process(None, 19);
            if let Err(error) = disks.make_seal(&manifest, &stop)
                && !stop.is_cancelled()
            {
                tracing::debug!(%manifest, %error, "a disk is not sealed");
            }
        };
        // Without a thread there is no seal, and that is all.
        let _ = std::thread::Builder::new()
            .name("disk-seal".into())
            .spawn(work);
    }
}

fn name(manifest: &Digest) -> String {
    format!("{}-{}{SUFFIX}", manifest.algorithm(), manifest.hex())
}

/// The manifest whose disk has this name.
pub(super) fn manifest_of(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// The digest of a file's bytes, of the kind that it is compared with.
pub(super) fn hash(
    file: &mut File,
    expected: Option<&Digest>,
    stop: &CancellationToken,
) -> io::Result<Digest> {
    let mut hasher = Hasher::like(expected);
    let mut buffer = vec![0; 1 << 20];
    loop {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

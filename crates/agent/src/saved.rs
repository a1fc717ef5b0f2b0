//! What is kept of an instance in standby, beside its disk.
//!
//! ```text
//! <instance>/saved.new/            being written, or being removed
//! <instance>/saved/                whole: what the hypervisor wrote, and
//! <instance>/saved/manifest.json   what that is, of which run, with a seal
//! ```
//!
//! A directory gets its name when everything in it is durable. The seal is an HMAC with a key of this host over the manifest:
//! what another host or somebody else wrote is not restored. The manifest has every file's size, times and inode, and its
//! SHA-256. A file that is still the one that was sealed is not read again; any other is hashed before it is used.

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use warren_core::instance::InstanceIntent;
use warren_core::ports::Presence;
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::{ErrorClass, InstanceId, PortError};
use warren_crashpoint::reached;

const WHOLE: &str = "saved";
const ASIDE: &str = "saved.new";
const MANIFEST: &str = "manifest.json";
/// Raised when an older Warren could misread a newer manifest.
const FORMAT: u32 = 1;
/// No honest manifest is larger.
const LONGEST: u64 = 64 << 10;
const PURPOSE: &[u8] = b"warren standby v1\0";
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// The code of what was saved and cannot be used.
pub(crate) const SAVED_DAMAGED: &str = "saved_damaged";

/// With which this host knows what it has saved itself.
#[derive(Clone)]
pub struct SealKey(hmac::Key);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(…)")
    }
}

impl SealKey {
    /// The key that belongs to a secret of this host.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        SealKey(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn sign(&self, text: &str) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(PURPOSE);
        context.update(text.as_bytes());
        hex(context.sign().as_ref())
    }

    fn verify(&self, text: &str, seal: &str) -> bool {
        let signed = [PURPOSE, text.as_bytes()].concat();
        unhex(seal).is_some_and(|seal| hmac::verify(&self.0, &signed, &seal).is_ok())
    }
}

/// A file as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    size: u64,
    inode: u64,
    modified_nanos: i128,
    changed_nanos: i128,
}

impl Mark {
    fn of(file: &Metadata) -> Self {
        let nanos =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Mark {
            size: file.size(),
            inode: file.ino(),
            modified_nanos: nanos(file.mtime(), file.mtime_nsec()),
            changed_nanos: nanos(file.ctime(), file.ctime_nsec()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedFile {
    mark: Mark,
    sha256: String,
}

/// Of what a saved machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    instance: InstanceId,
    tenant: String,
    run: u64,
    hypervisor: HypervisorKind,
    /// By which name the log knows this boot of the guest.
    pub(crate) boot: String,
    /// The disk as the machine knows it: with another one its memory would be about what is not there.
    disk: Mark,
    files: BTreeMap<String, SavedFile>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    manifest: String,
    seal: String,
}

/// The instance's own, and how the hypervisor is called that can restore it.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) intent: &'a InstanceIntent,
    pub(crate) hypervisor: HypervisorKind,
    pub(crate) disk: &'a Path,
}

/// What was saved in an instance's directory.
pub(crate) struct Saved<'a> {
    home: &'a Path,
}

impl<'a> Saved<'a> {
    pub(crate) fn of(home: &'a Path) -> Self {
        Saved { home }
    }

    /// Where the hypervisor finds it.
    pub(crate) fn directory(&self) -> PathBuf {
        self.home.join(WHOLE)
    }

    fn aside(&self) -> PathBuf {
        self.home.join(ASIDE)
    }

    pub(crate) fn presence(&self) -> Presence {
        if self.directory().join(MANIFEST).is_file() {
            Presence::Present
        } else if self.directory().exists() || self.aside().exists() {
            Presence::Partial
        } else {
            Presence::Absent
        }
    }

    /// An empty directory to write to. What was there is gone.
    pub(crate) fn begin(&self) -> Result<PathBuf, PortError> {
        self.remove()?;
        let aside = self.aside();
        DirBuilder::new()
            .mode(0o700)
            .create(&aside)
            .map_err(failed)?;
        reached("saved.begun");
        Ok(aside)
    }

    /// Makes what was written aside whole: durable, described and named.
    pub(crate) fn finish(
        &self,
        key: &SealKey,
        owner: Owner<'_>,
        boot: String,
    ) -> Result<(), PortError> {
        let aside = self.aside();
        let disk = File::open(owner.disk).map_err(failed)?;
        // With the memory of a machine that has seen its writes, they must be there.
        disk.sync_all().map_err(failed)?;
        let disk = Mark::of(&disk.metadata().map_err(failed)?);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&aside).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = File::open(entry.path()).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            let sha256 = hash(&file).map_err(failed)?;
            let mark = Mark::of(&file.metadata().map_err(failed)?);
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, SavedFile { mark, sha256 });
        }
        let manifest = Manifest {
            format: FORMAT,
            instance: owner.intent.id.clone(),
            tenant: owner.intent.tenant.clone(),
            run: owner.intent.run,
            hypervisor: owner.hypervisor,
            boot,
            disk,
            files,
        };
        let manifest = serde_json::to_string(&manifest).map_err(|error| failed(error.into()))?;
        let seal = key.sign(&manifest);
        let sealed =
            serde_json::to_vec(&Sealed { manifest, seal }).map_err(|error| failed(error.into()))?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(aside.join(MANIFEST))
            .map_err(failed)?;
        file.write_all(&sealed).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        sync(&aside)?;
        reached("saved.sealed");
        std::fs::rename(&aside, self.directory()).map_err(failed)?;
        sync(self.home)?;
        reached("saved.named");
        Ok(())
    }

    /// What is there, as far as it says so itself: not yet to be trusted.
    pub(crate) fn manifest(&self) -> Result<Manifest, PortError> {
        Ok(self.read()?.0)
    }

    fn read(&self) -> Result<(Manifest, Sealed), PortError> {
        let mut bytes = Vec::new();
        let file = File::open(self.directory().join(MANIFEST)).map_err(failed)?;
        file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
        let sealed: Sealed =
            serde_json::from_slice(&bytes).map_err(|_| damaged("its manifest is damaged"))?;
        let manifest: Manifest = serde_json::from_str(&sealed.manifest)
            .map_err(|_| damaged("its manifest is damaged, or of another version"))?;
        Ok((manifest, sealed))
    }

    /// Looks whether it may be restored: written by this host, for this instance and run, and whole.
    pub(crate) fn verify(&self, key: &SealKey, owner: Owner<'_>) -> Result<Manifest, PortError> {
        let (manifest, sealed) = self.read()?;
        if manifest.format != FORMAT {
            return Err(damaged("another version of Warren wrote it"));
        }
        if !key.verify(&sealed.manifest, &sealed.seal) {
            return Err(damaged("this host did not write it"));
        }
        let intent = owner.intent;
        if manifest.instance != intent.id || manifest.tenant != intent.tenant {
            return Err(damaged("it is another instance's"));
        }
        if manifest.run != intent.run || manifest.hypervisor != owner.hypervisor {
            return Err(damaged("it is not of this run"));
        }
        let disk = std::fs::metadata(owner.disk)
            .map_err(|error| PortError::io("looking at the instance's disk", error))?;
        if Mark::of(&disk) != manifest.disk {
            return Err(damaged("the disk has been changed since"));
        }
        for (name, saved) in &manifest.files {
            let file = match File::open(self.directory().join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(damaged(&format!("{name} is missing")));
                }
                Err(error) => return Err(failed(error)),
            };
            let mark = Mark::of(&file.metadata().map_err(failed)?);
            if mark.size != saved.mark.size {
                return Err(damaged(&format!("{name} is not whole")));
            }
            if mark != saved.mark && hash(&file).map_err(failed)? != saved.sha256 {
                return Err(damaged(&format!("{name} is not what was written")));
            }
        }
        Ok(manifest)
    }

    /// Makes it unusable for good, and removes it.
    pub(crate) fn remove(&self) -> Result<(), PortError> {
        let (whole, aside) = (self.directory(), self.aside());
        gone(std::fs::remove_dir_all(&aside))?;
        match std::fs::rename(&whole, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        }
        // Before its processors run again: what comes back after a power failure must not be memory that is out of date.
        sync(self.home)?;
        reached("saved.renamed-away");
        gone(std::fs::remove_dir_all(&aside))
    }
}

fn gone(result: io::Result<()>) -> Result<(), PortError> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), PortError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

fn failed(error: io::Error) -> PortError {
    PortError::io("the saved machine", error)
}

fn damaged(why: &str) -> PortError {
    PortError::new(
        ErrorClass::Conflict,
        SAVED_DAMAGED,
        format!("the saved machine cannot be restored: {why}"),
    )
    .with_hint("`warren stop` gives it up, and `warren start` then starts from the disk")
}

/// Of its size and of each piece of it that is not all zeros, with its place: the same with holes and without, and as fast as
/// the file is small on the disk.
fn hash(file: &File) -> io::Result<String> {
    use std::os::unix::fs::FileExt;
    let size = file.metadata()?.size();
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&size.to_le_bytes());
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        at = next_data(file, at, size)?;
        let length = (size - at).min(PIECE as u64);
        let piece = &mut piece[..usize::try_from(length).unwrap_or(PIECE)];
        file.read_exact_at(piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            context.update(&at.to_le_bytes());
            context.update(piece);
        }
        at += length;
    }
    Ok(hex(context.finish().as_ref()))
}

/// The beginning of the first piece from `at` on in which there may be something else than a hole.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(data / PIECE as u64 * PIECE as u64),
        Err(rustix::io::Errno::NXIO) => Ok(size),
        // A file system that knows of no holes.
        Err(rustix::io::Errno::INVAL) => Ok(at),
        Err(error) => Err(error.into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests;

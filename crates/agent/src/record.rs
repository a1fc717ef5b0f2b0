//! The record of one instance in its own directory: written before anything it names exists, read on
//! adoption. Together these files are the truth about the host when the store is lost.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use warren_core::Timestamp;
use warren_core::error::Failure;
use warren_core::instance::{Exit, InstanceIntent};
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::restart::RestartStatus;
use warren_crashpoint::reached;
use warren_guest::protocol::AttachKey;

/// Format of [`HostRecord`]; raised when an older Warren could misread a newer file.
const FORMAT: u32 = 1;
/// The file's name in the instance's directory.
const FILE: &str = "record.json";
/// No honest record is larger: a spec is bounded to a few hundred kilobytes.
const LARGEST: u64 = 8 << 20;

/// What the host must remember about one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// See [`FORMAT`].
    pub format: u32,
    /// The newest intent this host was told.
    pub intent: InstanceIntent,
    /// With which the host finds its guest's agent on the channel.
    pub attach_key: AttachKey,
    /// Which hypervisor was chosen for it.
    pub hypervisor: HypervisorKind,
    /// The last run that is over, and how it ended.
    #[serde(default)]
    pub ended: Option<(u64, Exit)>,
    /// When the last run's guest became ready.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// Restarts so far.
    #[serde(default)]
    pub restart: RestartStatus,
    /// The run that could not be started, and why.
    #[serde(default)]
    pub given_up: Option<(u64, Failure)>,
    /// The generation of a standby or a restore that cannot be had, and why.
    #[serde(default)]
    pub refused: Option<(u64, Failure)>,
    /// By which name the log knows the guest's boot, where the guest was restored since: else its VMM is the name.
    #[serde(default)]
    pub boot: Option<String>,
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system.
    #[error("reading {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not ours, or torn.
    #[error("{path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// Larger than any record.
    #[error("{path} has {size} bytes, more than any record")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// How large.
        size: u64,
    },
    /// Written by a newer Warren.
    #[error("{path} was written by a newer Warren (format {format})")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl HostRecord {
    /// The record of an instance that is new here.
    pub fn new(intent: InstanceIntent, hypervisor: HypervisorKind) -> Self {
        HostRecord {
            format: FORMAT,
            intent,
            attach_key: AttachKey::random(),
            hypervisor,
            ended: None,
            started_at: None,
            restart: RestartStatus::default(),
            given_up: None,
            refused: None,
            boot: None,
        }
    }

    /// Whether there is one in `directory`, whole or not.
    pub(crate) fn is_in(directory: &Path) -> bool {
        directory.join(FILE).is_file()
    }

    /// Reads the record in `directory`; `None` where there is none.
    ///
    /// # Errors
    /// [`RecordError`]; the file is left as it is.
    pub fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        let path = directory.join(FILE);
        let read = |source| RecordError::Read {
            path: path.clone(),
            source,
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > LARGEST => {
                return Err(RecordError::TooLarge {
                    path,
                    size: metadata.len(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
        }
        let bytes = std::fs::read(&path).map_err(read)?;
        let record: HostRecord =
            serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged {
                path: path.clone(),
                source,
            })?;
        if record.format > FORMAT {
            return Err(RecordError::Newer {
                path,
                format: record.format,
            });
        }
        Ok(Some(record))
    }

    /// Makes the record durable: written aside, synced, renamed, and the directory synced.
    ///
    /// # Errors
    /// The file system's; the old record is then still whole.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        self.put(directory)?;
        sync_directory(directory)
    }

    /// Makes the record what the next process reads, and whole whatever happens. A power failure may still bring back
    /// the one before it, until [`sync_directory`].
    pub(crate) fn put(&self, directory: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        waiting_for_the_disk(|| {
            let aside = directory.join(".record.json.new");
            let mut file = File::create(&aside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            reached("record.written-aside");
            std::fs::rename(&aside, directory.join(FILE))?;
            reached("record.renamed");
            Ok(())
        })
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    waiting_for_the_disk(|| File::open(directory)?.sync_all())
}

/// Does what waits for the disk. Others of this runtime's threads go on with its tasks meanwhile, where it has any: so
/// that many instances wait together, which the disk's journal makes one wait.
pub(crate) fn waiting_for_the_disk<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}

//! Which accelerator works on this host.
//!
//! That `/dev/kvm` opens says little: paravirtual and nested hosts offer ones that cannot run an ordinary guest. So
//! a throw-away guest executes what every guest kernel does, and is seen to succeed. The answer is remembered in the
//! cache for as long as the host is up and the binary stays the same.

#[cfg(target_arch = "x86_64")]
mod guest;
mod probe;

use crate::cache::{Cache, write_whole};
use crate::process::boot_id;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use warren_core::PortError;
use warren_core::ports::hypervisor::Accelerator;

/// What the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it works, else emulation.
    #[default]
    Auto,
    /// KVM, unasked whether it works.
    Kvm,
    /// Emulation.
    Tcg,
}

impl std::str::FromStr for AccelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(AccelChoice::Auto),
            "kvm" => Ok(AccelChoice::Kvm),
            "tcg" => Ok(AccelChoice::Tcg),
            _ => Err(format!("{text:?} is not an accelerator: auto, kvm or tcg")),
        }
    }
}

/// Why no accelerator could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum AcceleratorError {
    /// The binary does not even print its version.
    #[error("{} does not run", binary.display())]
    Binary {
        /// Which.
        binary: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// KVM was demanded and is not there.
    #[error("KVM was asked for and /dev/kvm cannot be opened: {0}")]
    NoKvm(std::io::Error),
}

impl From<AcceleratorError> for PortError {
    fn from(error: AcceleratorError) -> Self {
        match error {
            AcceleratorError::Binary { .. } => {
                PortError::unsupported("vmm_unusable", error.to_string())
                    .with_hint("reinstall QEMU or set the path of another binary")
            }
            AcceleratorError::NoKvm(_) => PortError::unsupported("no_kvm", error.to_string())
                .with_hint("join the group kvm, or set accel to auto or tcg"),
        }
        .with_source(error)
    }
}

/// What was decided and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why, in a sentence.
    pub reason: String,
    /// The binary's version.
    pub version: String,
}

/// What a throw-away guest showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It ran.
    Works,
    /// It did not.
    Fails {
        /// What happened, as the end of a sentence.
        reason: String,
    },
}

/// What is kept in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    binary: BinaryIdentity,
    version: String,
    verdict: Option<Verdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BinaryIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: i64,
}

impl BinaryIdentity {
    fn of(binary: &Path) -> std::io::Result<Self> {
        let found = std::fs::metadata(binary)?;
        Ok(BinaryIdentity {
            path: binary.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: found.ctime(),
        })
    }
}

/// Whether KVM works may depend on who asks.
fn memory(cache: &Cache) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    cache.directory().join(format!("accelerator-{user}.json"))
}

fn recall(path: &Path, binary: &BinaryIdentity) -> Option<Remembered> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (remembered.boot_id == boot_id() && remembered.binary == *binary).then_some(remembered)
}

fn remember(path: &Path, what: &Remembered) {
    let written = serde_json::to_vec(what)
        .map_err(std::io::Error::other)
        .and_then(|bytes| {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            write_whole(path, &bytes)
        });
    if let Err(error) = written {
        // Only time is lost: it is found out again.
        tracing::warn!(path = %path.display(), %error, "could not remember what was found out about KVM");
    }
}

/// Decides for a QEMU binary.
pub(crate) async fn decide(
    binary: &Path,
    choice: AccelChoice,
    cache: &Cache,
) -> Result<Decision, AcceleratorError> {
    let fail = |source| AcceleratorError::Binary {
        binary: binary.to_owned(),
        source,
    };
    let identity = BinaryIdentity::of(binary).map_err(fail)?;
    let path = memory(cache);
    let recalled = recall(&path, &identity);
    let mut known = match recalled.clone() {
        Some(known) => known,
        None => Remembered {
            boot_id: boot_id().to_owned(),
            binary: identity,
            version: probe::version(binary).await.map_err(fail)?,
            verdict: None,
        },
    };
    let (accelerator, reason) = match (choice, probe::kvm_opens()) {
        (AccelChoice::Tcg, _) => (
            Accelerator::Tcg,
            "emulation (TCG), because accel=tcg is set".to_owned(),
        ),
        (AccelChoice::Kvm, Err(error)) => return Err(AcceleratorError::NoKvm(error)),
        (AccelChoice::Kvm, Ok(())) => (
            Accelerator::Kvm,
            "KVM, because accel=kvm is set; whether it works was not tried".to_owned(),
        ),
        (AccelChoice::Auto, Err(error)) => (
            Accelerator::Tcg,
            format!("emulation (TCG), because /dev/kvm cannot be opened: {error}"),
        ),
        (AccelChoice::Auto, Ok(())) => {
            if known.verdict.is_none() {
                known.verdict = Some(probe::kvm(binary).await);
            }
            match &known.verdict {
                Some(Verdict::Fails { reason }) => (
                    Accelerator::Tcg,
                    format!("emulation (TCG), because /dev/kvm opens but {reason}"),
                ),
                Some(Verdict::Works) | None => (
                    Accelerator::Kvm,
                    "KVM: a throw-away guest ran 64-bit instructions with it".to_owned(),
                ),
            }
        }
    };
    if recalled.as_ref() != Some(&known) {
        remember(&path, &known);
    }
    Ok(Decision {
        accelerator,
        reason,
        version: known.version,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn what_is_remembered_holds_for_this_boot_and_binary_only() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("accelerator.json");
        let program = root.path().join("qemu");
        std::fs::write(&program, "1").unwrap();
        let binary = BinaryIdentity::of(&program).unwrap();
        let known = Remembered {
            boot_id: boot_id().to_owned(),
            binary: binary.clone(),
            version: "10".to_owned(),
            verdict: Some(Verdict::Fails {
                reason: "r".to_owned(),
            }),
        };
        assert_eq!(recall(&path, &binary), None);
        remember(&path, &known);
        assert_eq!(recall(&path, &binary), Some(known.clone()));
        std::fs::write(&program, "22").unwrap();
        let other = BinaryIdentity::of(&program).unwrap();
        assert_eq!(recall(&path, &other), None);
        remember(
            &path,
            &Remembered {
                boot_id: "earlier".to_owned(),
                ..known
            },
        );
        assert_eq!(recall(&path, &binary), None);
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        assert_eq!("tcg".parse(), Ok(AccelChoice::Tcg));
        assert!("hvf".parse::<AccelChoice>().is_err());
    }
}

//! Running the throw-away guest.

use super::Verdict;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// How long the guest may take; it needs some milliseconds where KVM works.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long `--version` may take: QEMU links a hundred libraries.
const VERSION: Duration = Duration::from_secs(20);
/// The most lines of QEMU's that are read.
const MAX_LINES: usize = 200;

/// Whether `/dev/kvm` can be opened.
pub(super) fn kvm_opens() -> io::Result<()> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
}

/// QEMU's version: `QEMU emulator version 10.0.2 (…)` has it as its fourth word.
pub(super) async fn version(binary: &Path) -> io::Result<String> {
    let output = Command::new(binary)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION, output)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_ascii_whitespace()
        .nth(3)
        .filter(|_| output.status.success() && text.starts_with("QEMU emulator version"))
        .map(|version| version.chars().take(64).collect())
        .ok_or_else(|| io::Error::other("it does not print QEMU's version"))
}

/// Whether KVM runs guests.
#[cfg(target_arch = "x86_64")]
pub(super) async fn kvm(binary: &Path) -> Verdict {
    let fails = |reason: String| Verdict::Fails { reason };
    match tokio::time::timeout(DEADLINE, run(binary, "kvm", "host")).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => fails(format!("a throw-away guest could not be run: {error}")),
        Err(_) => fails(format!(
            "a throw-away guest was not done after {} s",
            DEADLINE.as_secs()
        )),
    }
}

/// There is no guest for this architecture: that the device opens must do.
#[cfg(not(target_arch = "x86_64"))]
pub(super) async fn kvm(_binary: &Path) -> Verdict {
    Verdict::Works
}

#[cfg(target_arch = "x86_64")]
async fn run(binary: &Path, accelerator: &str, processor: &str) -> io::Result<Verdict> {
    use super::guest;
    let mut kernel = tempfile::NamedTempFile::new()?;
    io::Write::write_all(&mut kernel, &guest::elf())?;
    let exit = format!("isa-debug-exit,iobase={:#x},iosize=0x4", guest::EXIT_PORT);
    let mut child = Command::new(binary)
        .args(["-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on"])
        .args(["-accel", accelerator, "-cpu", processor])
        .args(["-smp", "1", "-m", "64M", "-display", "none"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-device", &exit, "-kernel"])
        .arg(kernel.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        for _ in 0..MAX_LINES {
            let Some(line) = lines.next_line().await? else {
                break;
            };
            if said.is_empty() {
                said = line.chars().take(200).collect();
            }
            // QEMU stops the machine then and stays.
            if line.contains("KVM internal error") {
                child.start_kill()?;
                return Ok(Verdict::Fails {
                    reason: format!(
                        "a throw-away guest stopped at a 64-bit instruction ({})",
                        line.trim().trim_end_matches('.')
                    ),
                });
            }
        }
    }
    let status = child.wait().await?;
    if status.code() == Some(guest::PASSED_EXIT_CODE) {
        return Ok(Verdict::Works);
    }
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(" and said: {said}")
    };
    Ok(Verdict::Fails {
        reason: format!("a throw-away guest failed: QEMU ended with {status}{said}"),
    })
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::testing::{qemu, skip};

    /// What passes under an emulation that is known to be complete fails for no fault of its own elsewhere.
    #[tokio::test]
    async fn the_guest_passes_under_emulation() {
        let Some(binary) = qemu() else {
            return skip("the_guest_passes_under_emulation", "QEMU is not installed");
        };
        let verdict = tokio::time::timeout(Duration::from_secs(60), run(&binary, "tcg", "max"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(verdict, Verdict::Works);
        assert!(version(&binary).await.unwrap().contains('.'));
    }

    /// A processor without CMPXCHG16B raises an exception where the guest uses it.
    #[tokio::test]
    async fn the_guest_fails_where_an_instruction_is_missing() {
        let Some(binary) = qemu() else {
            return skip(
                "the_guest_fails_where_an_instruction_is_missing",
                "QEMU is not installed",
            );
        };
        let verdict =
            tokio::time::timeout(Duration::from_secs(60), run(&binary, "tcg", "max,-cx16"))
                .await
                .unwrap()
                .unwrap();
        // A triple fault ends QEMU in an orderly way, without the guest's verdict.
        let Verdict::Fails { reason } = verdict else {
            panic!("it passed");
        };
        assert!(
            reason.ends_with("QEMU ended with exit status: 0"),
            "{reason}"
        );
    }
}

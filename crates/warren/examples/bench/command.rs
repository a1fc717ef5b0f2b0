//! Programs that something is measured against, and such that prepare it.

use anyhow::Context;
use std::process::{Command, Stdio};

/// Runs one to its end, without input; what it says of a failure is in the error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

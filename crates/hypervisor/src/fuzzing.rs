//! Ways in for `fuzz/`: private decoders of what VMMs and kernel files say. Not part of the API.

use crate::kernel::bzimage;
use crate::qemu::qmp::{Qmp, RunState};

/// The vmlinux in a bzImage, if it has at most `most` bytes.
pub fn vmlinux(bytes: &[u8], most: u64) -> Option<Vec<u8>> {
    if !bzimage::is_bzimage(bytes) {
        return None;
    }
    bzimage::unpack(bytes, most).ok()
}

/// Asks a monitor that says these bytes for its machine's state.
pub fn monitor(bytes: &[u8]) -> Option<serde_json::Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
    runtime.block_on(async {
        let stream = tokio::io::join(bytes, tokio::io::sink());
        let mut qmp = Qmp::negotiate(stream).await.ok()?;
        let answer = qmp.execute("query-status").await.ok()?;
        answer["status"].as_str().map(RunState::parse)?;
        Some(answer)
    })
}

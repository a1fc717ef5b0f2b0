//! Takes what a guest writes to its serial console into a bounded log. Nobody waits for it: while
//! nothing drains the console, the VMM drops what the guest writes.

use crate::log_store::LogStore;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use warren_core::ports::Clock;
use warren_core::ports::host_link::OutputStream;

/// Ends by itself when the VMM does.
pub(crate) fn drain(
    console: OwnedFd,
    log: LogStore,
    clock: Arc<dyn Clock>,
) -> std::io::Result<JoinHandle<()>> {
    let stream = std::os::unix::net::UnixStream::from(console);
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    Ok(tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    if let Err(error) =
                        log.append(clock.now(), OutputStream::Stdout, &buffer[..length])
                    {
                        tracing::warn!(%error, "cannot write the console log");
                    }
                }
            }
        }
        if let Err(error) = log.flush() {
            tracing::warn!(%error, "cannot write the console log");
        }
    }))
}

//! Holding something still for a host, on a thread of its own.
//!
//! Whatever becomes of the event loop, the session or the host, the thread lets go: when the [`Hold`] is dropped, when it is
//! told to, and when its time is up. It needs nothing then but to be scheduled.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

/// Something is held still as long as this lives, and no longer than was agreed.
#[derive(Debug)]
pub struct Hold {
    release: Option<mpsc::Sender<()>>,
    ended: oneshot::Receiver<Result<(), String>>,
}

impl Hold {
    /// Lets go.
    pub fn let_go(&mut self) {
        if let Some(release) = self.release.take() {
            // Where nobody listens any more, the time was up.
            let _ = release.send(());
        }
    }

    /// Waits for the end: an error says why it was not by [`Hold::let_go`]. Cancel safe.
    ///
    /// # Errors
    /// The reason, in words.
    pub async fn ended(&mut self) -> Result<(), String> {
        let ended = (&mut self.ended).await;
        ended.unwrap_or_else(|_| Err("whoever held it is gone".to_owned()))
    }
}

/// Calls `freeze`, holds, and calls `thaw` exactly once after a `freeze` that succeeded, all on one new thread.
///
/// # Errors
/// What `freeze` says, in words.
pub async fn hold(
    deadline: Duration,
    freeze: impl FnOnce() -> Result<(), String> + Send + 'static,
    thaw: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<Hold, String> {
    let (answer, held) = oneshot::channel();
    let work = move || {
        if let Err(message) = freeze() {
            let _ = answer.send(Err(message));
            return;
        }
        let (release, released) = mpsc::channel();
        let (tell, ended) = oneshot::channel();
        let release = Some(release);
        // Where nobody waits for it any more, the hold is dropped here, and the wait below is none.
        drop(answer.send(Ok(Hold { release, ended })));
        let waited = released.recv_timeout(deadline);
        let ended = match (thaw(), waited) {
            (Err(message), _) => Err(message),
            (Ok(()), Err(mpsc::RecvTimeoutError::Timeout)) => {
                Err(format!("its {} ms were up", deadline.as_millis()))
            }
            (Ok(()), Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected)) => Ok(()),
        };
        let _ = tell.send(ended);
    };
    std::thread::Builder::new()
        .name("hold".into())
        .spawn(work)
        .map_err(|error| format!("no thread to hold it: {error}"))?;
    held.await
        .unwrap_or_else(|_| Err("whoever should hold it is gone".to_owned()))
}

//! Threads that read, each on a connection of its own, so that no read waits for the writer's disk.

use rusqlite::Connection;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// One read.
pub(super) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Serves jobs until all senders are gone.
pub(super) fn serve(mut connection: Connection, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // Whoever holds the lock waits for the next job, and lets go before doing it.
        let job = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        match job {
            Some(job) => job(&mut connection),
            None => return,
        }
    }
}

/// The queue, as the threads share it.
pub(super) type Jobs = Arc<Mutex<mpsc::Receiver<Job>>>;

//! What the binary decides about control.

use std::path::PathBuf;
use std::time::Duration;
use warren_core::InstallationId;
use warren_core::placement::Overcommit;
use warren_ssh::HostSecret;

/// Whether `container.ContainerService` is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerService {
    /// It is.
    Served,
    /// It is not.
    Unserved,
}

/// See each field; `new` has sensible values.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose names the host's objects carry.
    pub installation: InstallationId,
    /// Why the record of intent may not be that of this host, where that is so when it is opened.
    pub doubt: Option<String>,
    /// Where uploads are spooled: a directory of ours on the data directory's file system.
    pub spool: PathBuf,
    /// How much more than the host has may be promised.
    pub overcommit: Overcommit,
    /// Images that come in at the same time.
    pub pulls: usize,
    /// Instances on their way up at the same time: a create or start beyond them is asked to come again.
    pub starts: usize,
    /// How long a create or start waits for its effect.
    pub start_wait: Duration,
    /// How long a delete waits for its effect.
    pub delete_wait: Duration,
    /// The longest wait for a state that one request may ask for.
    pub longest_wait: Duration,
    /// How long an ended instance that removes itself stays, for its creator to read the exit code.
    pub removal_delay: Duration,
    /// How long idempotency keys are kept.
    pub idempotency_age: Duration,
    /// The largest JSON body, bytes.
    pub body_limit: usize,
    /// The largest uploaded archive, bytes.
    pub upload_limit: u64,
    /// Bytes of the spool's file system that uploads leave free.
    pub upload_reserve: u64,
    /// What the keys of the SSH servers are derived from; one that is gone with the process unless the binary says otherwise.
    pub ssh_secret: HostSecret,
    /// Whether the port of REST has the container service as well.
    pub container_service: ContainerService,
    /// Connections at the same time.
    pub connections: usize,
    /// How long connections may go on after a shutdown was asked for.
    pub shutdown_grace: Duration,
}

impl Settings {
    /// The values that fit one machine.
    pub fn new(installation: InstallationId, spool: PathBuf) -> Self {
        Settings {
            installation,
            doubt: None,
            spool,
            overcommit: Overcommit::default(),
            pulls: 3,
            starts: 256,
            start_wait: Duration::from_secs(30),
            delete_wait: Duration::from_secs(30),
            longest_wait: Duration::from_secs(3600),
            removal_delay: Duration::from_secs(10),
            idempotency_age: Duration::from_secs(24 * 3600),
            body_limit: 1 << 20,
            upload_limit: 64 << 30,
            upload_reserve: 256 << 20,
            ssh_secret: HostSecret::random(),
            container_service: ContainerService::Served,
            connections: 1024,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

//! What a client needs to know of an instance's SSH server.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The key that the server shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshHostKey {
    /// As a line of `known_hosts` has it, without a host.
    #[schema(
        example = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000"
    )]
    pub public_key: String,
    /// As `ssh` shows it.
    #[schema(example = "SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpHZlqH3sTg8wxNTSs")]
    pub fingerprint: String,
}

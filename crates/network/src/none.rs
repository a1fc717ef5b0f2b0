//! No network: instances that ask for an interface are refused in words; those that do not, run.

use async_trait::async_trait;
use warren_core::host::{NetworkMode, NetworkReport};
use warren_core::inventory::Item;
use warren_core::ports::network::{Attachment, AttachmentSpec, Network, NetworkUsage};
use warren_core::ports::{InstanceHome, Presence};
use warren_core::{Handle, PortError};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNetwork;

fn refusal() -> PortError {
    PortError::unsupported("no_network", "guests have no network on this host").with_hint(
        "create the instance with its network disabled (--network none), or see `warren doctor`",
    )
}

#[async_trait]
impl Network for NoNetwork {
    async fn report(&self) -> Result<NetworkReport, PortError> {
        Ok(NetworkReport {
            mode: NetworkMode::None,
            subnet: None,
            reason: "guests have no network interface".to_owned(),
            warnings: Vec::new(),
        })
    }

    async fn preflight(&self, _spec: &AttachmentSpec) -> Result<(), PortError> {
        Err(refusal())
    }

    async fn ensure(&self, _spec: &AttachmentSpec) -> Result<Attachment, PortError> {
        Err(refusal())
    }

    async fn observe(&self, _spec: &AttachmentSpec) -> Result<Presence, PortError> {
        Ok(Presence::Absent)
    }

    async fn release(&self, _home: &InstanceHome) -> Result<(), PortError> {
        Ok(())
    }

    async fn owned(&self) -> Result<Vec<Item>, PortError> {
        Ok(Vec::new())
    }

    async fn sweep(&self, _handle: &Handle) -> Result<(), PortError> {
        Ok(())
    }

    async fn tear_down(&self) -> Result<(), PortError> {
        Ok(())
    }

    async fn usage(&self, _home: &InstanceHome) -> Result<NetworkUsage, PortError> {
        Ok(NetworkUsage::default())
    }
}

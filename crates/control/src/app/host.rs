//! What the host says about itself, remembered for a while: asking it looks at kernel objects and
//! programs, and nothing slow belongs on the way of a create.

use super::{App, AppError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use warren_core::PortError;
use warren_core::host::{HostReport, NetworkMode};
use warren_core::instance::NetworkChoice;

/// Older answers are still used, and asked for anew behind the caller's back.
const FRESH: Duration = Duration::from_secs(30);

/// The last answer and when it came, on the monotonic clock.
#[derive(Default)]
pub(super) struct ReportCache(RwLock<Option<(Duration, Arc<HostReport>)>>);

impl ReportCache {
    fn get(&self) -> Option<(Duration, Arc<HostReport>)> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, at: Duration, report: Arc<HostReport>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((at, report));
    }
}

impl App {
    /// What the host says about itself now.
    ///
    /// # Errors
    /// The host's.
    pub async fn host_report(&self) -> Result<HostReport, AppError> {
        Ok((*self.ask_host().await?).clone())
    }

    /// What the host said about itself lately.
    pub(super) async fn known_host(&self) -> Result<Arc<HostReport>, PortError> {
        let Some((at, report)) = self.0.report.get() else {
            return self.ask_host().await;
        };
        if self.0.clock.monotonic().saturating_sub(at) >= FRESH {
            // Marked as fresh first: one asks, the others do not.
            self.0
                .report
                .set(self.0.clock.monotonic(), Arc::clone(&report));
            let app = self.clone();
            self.0.tasks.spawn(async move {
                if let Err(error) = app.ask_host().await {
                    tracing::warn!(%error, "the host does not say how it is");
                }
            });
        }
        Ok(report)
    }

    /// What those who create an instance with a network should know about the host; empty when nothing is
    /// known yet.
    pub fn network_warnings(&self) -> Vec<String> {
        self.0
            .report
            .get()
            .map(|(_, report)| report.network.warnings.clone())
            .unwrap_or_default()
    }

    /// Whether guests can have a network on this host.
    ///
    /// # Errors
    /// The host's.
    pub async fn network_choice(&self) -> Result<NetworkChoice, AppError> {
        Ok(match self.known_host().await?.network.mode {
            NetworkMode::None => NetworkChoice::Disabled,
            NetworkMode::Bridge | NetworkMode::User => NetworkChoice::Default,
        })
    }

    async fn ask_host(&self) -> Result<Arc<HostReport>, PortError> {
        let report = Arc::new(self.0.host.report().await?);
        self.0
            .report
            .set(self.0.clock.monotonic(), Arc::clone(&report));
        Ok(report)
    }
}

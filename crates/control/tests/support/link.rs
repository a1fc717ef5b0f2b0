//! The host as the control plane calls it.

use super::Host;
use super::exec::session;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio_stream::wrappers::BroadcastStream;
use warren_core::host::HostReport;
use warren_core::image::ImageRecord;
use warren_core::instance::{InstanceIntent, InstanceStatus};
use warren_core::ports::host_link::{
    ExecCommand, ExecSession, Follow, GuestUsage, HostImages, HostLink, HostUpkeep, LogLine,
    LogQuery, Program, RECORD_IN_DOUBT, Usage,
};
use warren_core::ports::network::AttachmentSpec;
use warren_core::ports::{BoxStream, GuestCommands, GuestFiles, GuestSockets};
use warren_core::storage::{HostStorage, ImageUsage, ImagesUsage, InstanceStorage};
use warren_core::{InstanceId, PortError};

#[async_trait]
impl HostLink for Host {
    async fn apply(&self, intent: InstanceIntent) -> Result<(), PortError> {
        {
            let mut refuse = Self::lock(&self.refuse_applies);
            if *refuse > 0 {
                *refuse -= 1;
                return Err(PortError::retry(
                    "host_busy",
                    "the double was told to refuse",
                ));
            }
        }
        *Self::lock(&self.applied) += 1;
        self.take(intent);
        Ok(())
    }

    async fn sync(&self, intents: Vec<InstanceIntent>) -> Result<(), PortError> {
        let unknown = Self::lock(&self.intents)
            .keys()
            .any(|id| !intents.iter().any(|intent| intent.id == *id));
        if unknown {
            return Err(PortError::conflict(
                RECORD_IN_DOUBT,
                "instances are here that the record does not know",
            ));
        }
        *Self::lock(&self.synced) += 1;
        for intent in intents {
            self.take(intent);
        }
        Ok(())
    }

    async fn statuses(&self) -> Result<BoxStream<InstanceStatus>, PortError> {
        let statuses = Self::lock(&self.statuses);
        let changes = BroadcastStream::new(self.changes.subscribe());
        let current: Vec<_> = statuses.values().cloned().collect();
        Ok(stream::iter(current)
            .chain(changes.filter_map(|change| async move { change.ok() }))
            .boxed())
    }

    async fn report(&self) -> Result<HostReport, PortError> {
        Ok(Self::lock(&self.report).clone())
    }

    async fn preflight(&self, spec: AttachmentSpec) -> Result<(), PortError> {
        let taken = Self::lock(&self.taken_ports);
        match spec
            .ports
            .iter()
            .find(|port| taken.contains(&port.host_port))
        {
            Some(port) => Err(PortError::conflict(
                "port_taken",
                format!("port {} of this host is taken", port.host_port),
            )),
            None => Ok(()),
        }
    }

    async fn logs(&self, _: &InstanceId, query: LogQuery) -> Result<BoxStream<LogLine>, PortError> {
        let mut lines: Vec<LogLine> = Self::lock(&self.logs)
            .iter()
            .filter(|line| query.after.is_none_or(|after| line.seq > after))
            .filter(|line| query.period.contains(line.at))
            .cloned()
            .collect();
        if let Some(tail) = query.tail {
            let skip = lines
                .len()
                .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
            lines.drain(..skip);
        }
        let lines = stream::iter(lines);
        Ok(match query.follow {
            Follow::No => lines.boxed(),
            Follow::Yes => lines.chain(stream::pending()).boxed(),
        })
    }

    async fn exec(&self, _: &InstanceId, command: ExecCommand) -> Result<ExecSession, PortError> {
        Ok(session(command))
    }

    async fn attach(
        &self,
        _: &InstanceId,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, PortError> {
        Ok(session(ExecCommand {
            program: Program::Command(vec!["cat".into()]),
            terminal,
            ..ExecCommand::default()
        }))
    }

    async fn usage(&self, _: &InstanceId) -> Result<Usage, PortError> {
        Ok(Usage {
            cpu_seconds: 1.5,
            memory_rss: 64 << 20,
            guest: Some(GuestUsage {
                cpu_seconds: 1.25,
                memory_total: 128 << 20,
                memory_available: 100 << 20,
                disk_read: 3 << 20,
                disk_written: 5 << 20,
                tasks: 7,
                ..GuestUsage::default()
            }),
            ..Usage::default()
        })
    }

    async fn storage(&self, in_use: &[String]) -> Result<HostStorage, PortError> {
        let images = Self::lock(&self.images);
        let usage = |record: &ImageRecord| {
            let instances = in_use.iter().filter(|it| **it == record.digest).count();
            ImageUsage {
                id: record.id.clone(),
                name: record.name.clone(),
                digest: record.digest.clone(),
                size: 100,
                shared: 40,
                unique: 60,
                reclaimable: if instances == 0 { 60 } else { 0 },
                instances,
                last_used: Some(record.created_at),
            }
        };
        Ok(HostStorage {
            images: ImagesUsage {
                images: images.iter().map(usage).collect(),
                total: 160,
                ..ImagesUsage::default()
            },
            instances: Self::lock(&self.intents)
                .keys()
                .map(|id| InstanceStorage {
                    id: id.clone(),
                    disk: 7,
                    logs: 2,
                    other: 1,
                })
                .collect(),
            templates: 30,
            set_aside: 0,
        })
    }

    fn images(&self) -> &dyn HostImages {
        self
    }

    fn files(&self) -> &dyn GuestFiles {
        self
    }

    fn commands(&self) -> &dyn GuestCommands {
        self
    }

    fn sockets(&self) -> &dyn GuestSockets {
        self
    }

    fn upkeep(&self) -> &dyn HostUpkeep {
        self
    }
}

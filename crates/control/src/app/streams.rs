//! What passes through from a host: logs, events, exec, attach.

use super::{App, AppError, View, Waiting};
use crate::keys;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::time::Duration;
use warren_api::{Code, Event};
use warren_core::admission::{Admission, Operation, admit};
use warren_core::event::Event as CoreEvent;
use warren_core::id::Prefixes;
use warren_core::instance::ENV_BYTES;
use warren_core::ports::host_link::{ExecCommand, ExecSession, Follow, LogLine, LogQuery, Program};
use warren_core::ports::store::{Change, Revision};
use warren_core::state::StateName;

/// What a follower of events gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventStreamItem {
    /// Something happened, durable as this revision.
    Event(Revision, Event),
    /// What happened up to this revision and after the last event is lost.
    Reset(Revision),
}

/// What the kernel can take for a program and its environment.
pub(super) fn check_command(command: &ExecCommand) -> Result<(), &'static str> {
    let words = match &command.program {
        Program::Command(words) if words.first().is_none_or(String::is_empty) => {
            return Err("command must name a program");
        }
        Program::Command(words) => words.as_slice(),
        Program::LoginShell(script) => script.as_slice(),
        Program::FileServer => &[],
    };
    let texts = words.iter().chain(command.env.values());
    let is_no_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if texts.clone().any(|text| text.contains('\0')) || command.env.keys().any(is_no_name) {
        return Err("command and env may contain no NUL, and env no empty name or '='");
    }
    let bytes: usize = texts.map(String::len).sum();
    if bytes > ENV_BYTES {
        return Err("command and env are larger than 128 KiB together");
    }
    Ok(())
}

impl App {
    /// Log lines of an instance. Following ends where the period does.
    ///
    /// # Errors
    /// Missing or ambiguous; the host's errors.
    pub async fn logs(
        &self,
        wanted: &str,
        mut query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        // How long it can be followed: not at all where it is over.
        let left = query.period.until.map(|until| {
            let left = until - self.0.clock.now();
            Duration::try_from(left).unwrap_or(Duration::ZERO)
        });
        if left == Some(Duration::ZERO) {
            query.follow = Follow::No;
        }
        let lines = self.0.host.logs(&view.intent.id, query).await?;
        Ok(match (query.follow, left) {
            (Follow::Yes, Some(left)) => {
                let app = self.clone();
                let over = async move { app.0.clock.sleep(left).await };
                lines.take_until(over).boxed()
            }
            (Follow::Yes, None) | (Follow::No, _) => lines,
        })
    }

    /// Events from after `after`, or from now on; without end.
    ///
    /// # Errors
    /// The store's.
    pub async fn events(
        &self,
        after: Option<Revision>,
    ) -> Result<BoxStream<'static, EventStreamItem>, AppError> {
        let now = self.0.store.revision().await?;
        // A number from the future is another store's: what happened in between cannot be known.
        let reset = after.is_some_and(|after| after > now);
        let from = after.filter(|_| !reset).unwrap_or(now) + 1;
        let changes = self.0.store.watch(keys::EVENT, from).await?;
        let first = stream::iter(reset.then_some(EventStreamItem::Reset(now)));
        let app = self.clone();
        let rest = stream::unfold((app, changes), |(app, mut changes)| async move {
            loop {
                match changes.next().await? {
                    Change::Put(record) => match keys::decode::<CoreEvent>(&record) {
                        Ok(event) => {
                            let item = EventStreamItem::Event(record.revision, event.into());
                            return Some((item, (app, changes)));
                        }
                        Err(error) => {
                            tracing::error!(revision = record.revision, %error, "an event is damaged and skipped");
                        }
                    },
                    Change::Delete { .. } => {}
                    Change::Compacted { .. } => {
                        let now = app.0.store.revision().await.ok()?;
                        let changes = app.0.store.watch(keys::EVENT, now + 1).await.ok()?;
                        return Some((EventStreamItem::Reset(now), (app, changes)));
                    }
                }
            }
        });
        Ok(first.chain(rest).boxed())
    }

    /// Whether a command could run now, or after the instance has started.
    ///
    /// # Errors
    /// Missing, ambiguous, or a state that no wait will change.
    pub fn check_exec(&self, wanted: &str) -> Result<View, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        let state = view.status.state.name();
        match admit(Operation::Exec, state, view.intent.desired) {
            Admission::Refuse(_)
                if matches!(state, StateName::Created | StateName::Initializing)
                    && view.intent.desired == warren_core::instance::Desired::Running =>
            {
                Ok(view)
            }
            Admission::Refuse(refusal) => Err(refusal.into()),
            Admission::Accept | Admission::AlreadySo => Ok(view),
        }
    }

    /// Runs a command, after waiting as long as asked for the instance to be Running.
    ///
    /// # Errors
    /// A command that no program can be run with; the admission table's, and the host's.
    pub async fn exec(
        &self,
        wanted: &str,
        command: ExecCommand,
        patience: Duration,
    ) -> Result<ExecSession, AppError> {
        check_command(&command).map_err(|why| AppError::coded(Code::InvalidBody, why))?;
        let view = self.running(wanted, patience).await?;
        Ok(self.0.host.exec(&view.intent.id, command).await?)
    }

    /// Connects to the workload. An instance that is about to run is waited for.
    ///
    /// # Errors
    /// The admission table's, and the host's.
    pub async fn attach(
        &self,
        wanted: &str,
        terminal: Option<(u16, u16)>,
    ) -> Result<ExecSession, AppError> {
        let view = self.running(wanted, self.0.settings.start_wait).await?;
        Ok(self.0.host.attach(&view.intent.id, terminal).await?)
    }

    async fn running(&self, wanted: &str, patience: Duration) -> Result<View, AppError> {
        let view = self.check_exec(wanted)?;
        let waited = self
            .wait_until(&view.intent.id, patience, |view| {
                view.status.state.name() == StateName::Running || view.has_ended()
            })
            .await;
        let view = match waited {
            Waiting::Done(view) | Waiting::TimedOut(view) => view,
            Waiting::Gone => return Err(AppError::no_instance(wanted)),
        };
        admitted(view)
    }

    /// An instance in which a command can run without any wait.
    pub(super) fn running_now(&self, wanted: &str) -> Result<View, AppError> {
        admitted(self.find(wanted, Prefixes::Accepted)?)
    }
}

fn admitted(view: View) -> Result<View, AppError> {
    let state = view.status.state.name();
    match admit(Operation::Exec, state, view.intent.desired) {
        Admission::Refuse(refusal) => Err(refusal.into()),
        Admission::Accept | Admission::AlreadySo => Ok(view),
    }
}

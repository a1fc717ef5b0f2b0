//! Making an image of what an instance has changed, whether it runs or not.
//!
//! ```text
//! running   freeze ─► capture ─► thaw ─┐
//! stopped   capture, still stopped? ───┴─► commit (the instance is needed no more)
//! ```
//!
//! A guest holds still for as long as the copy takes: an instant where the file system shares blocks, else as long as copying
//! what the instance has written. It goes on when it is told to, when this process dies, and when its time is up.

use crate::context::{Actors, InstanceShared, disk_path};
use crate::guest_session::{GuestSession, GuestState, guest_error};
use crate::status_board::StatusBoard;
use crate::steps::printable;
use std::fs::File;
use std::sync::{Arc, PoisonError};
use warren_core::admission::{Admission, Operation, admit};
use warren_core::image::ImageRecord;
use warren_core::instance::InstanceStatus;
use warren_core::ports::Commits;
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::images::ProgressSink;
use warren_core::state::{InstanceState, StateName};
use warren_core::{InstanceId, PortError};
use warren_crashpoint::reached;
use warren_guest::client::ClientError;
use warren_guest::protocol::FREEZE_LIMIT;

/// Commits of this host's instances.
#[derive(Clone)]
pub(crate) struct Committing {
    commits: Arc<dyn Commits>,
    actors: Arc<Actors>,
    board: StatusBoard,
}

impl Committing {
    pub(crate) fn new(commits: Arc<dyn Commits>, actors: Arc<Actors>, board: StatusBoard) -> Self {
        Committing {
            commits,
            actors,
            board,
        }
    }

    /// Commits the changes of an instance.
    pub(crate) async fn commit(
        &self,
        id: &InstanceId,
        request: CommitRequest,
        progress: ProgressSink,
    ) -> Result<ImageRecord, PortError> {
        let shared = self.shared(id)?;
        let base = shared.wish.borrow().image_digest.clone();
        // What can never work must not make a guest hold still.
        self.commits.check(&request, &base).await?;
        let disk = match self.admitted(&shared)? {
            StateName::Running => self.capture_running(&shared).await?,
            _ => self.capture_stopped(&shared).await?,
        };
        self.commits.commit(request, &base, disk, progress).await
    }

    fn shared(&self, id: &InstanceId) -> Result<Arc<InstanceShared>, PortError> {
        let actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        actors.get(id).cloned().ok_or_else(|| {
            PortError::not_found(
                "instance_not_here",
                format!("instance {id} is not on this host"),
            )
        })
    }

    /// The state in which an instance is, if it is one in which it can be committed.
    fn admitted(&self, shared: &InstanceShared) -> Result<StateName, PortError> {
        let status = self.board.status(&shared.home.id);
        let state = status.map_or(StateName::Unknown, |status| status.state.name());
        let desired = shared.wish.borrow().desired;
        match admit(Operation::Commit, state, desired) {
            Admission::Accept | Admission::AlreadySo => Ok(state),
            Admission::Refuse(refusal) => {
                Err(PortError::conflict("wrong_state", refusal.to_string()))
            }
        }
    }

    async fn capture_running(&self, shared: &InstanceShared) -> Result<File, PortError> {
        let session = shared.session.borrow().clone();
        let session = session
            .filter(|session| session.state() == GuestState::Ready)
            .ok_or_else(|| {
                PortError::retry("guest_unreachable", "the guest's agent cannot be asked now")
                    .with_hint("try again in a moment, or stop the instance and commit it then")
            })?;
        let frozen = session
            .client
            .freeze(FREEZE_LIMIT)
            .await
            .map_err(|error| freeze_error(&session, error))?;
        reached("commit.frozen");
        let captured = self.commits.capture(&disk_path(&shared.home)).await;
        let thawed = frozen.thaw().await;
        reached("commit.thawed");
        let disk = captured?;
        thawed.map_err(|error| freeze_error(&session, error))?;
        Ok(disk)
    }

    async fn capture_stopped(&self, shared: &InstanceShared) -> Result<File, PortError> {
        // A start is told of before there is a machine, and an end leaves its time behind.
        let told = || (shared.wish.borrow().run, self.board.status(&shared.home.id));
        let before = told();
        let disk = self.commits.capture(&disk_path(&shared.home)).await?;
        let stopped = |status: &InstanceStatus| status.state == InstanceState::Stopped;
        let still = before.1.as_ref().is_some_and(stopped) && told() == before;
        match still {
            true => Ok(disk),
            false => Err(PortError::conflict(
                "wrong_state",
                "the instance was started while its disk was read",
            )
            .with_hint("commit it again now that it runs")),
        }
    }
}

fn freeze_error(session: &GuestSession, error: ClientError) -> PortError {
    match &error {
        ClientError::NotKnown { .. } => PortError::unsupported(
            "guest_too_old",
            format!(
                "the guest was started by an older Warren ({}), whose agent cannot hold its disk still",
                printable(session.client.agent_version())
            ),
        )
        .with_hint("restart the instance, or stop it, and commit it then")
        .with_source(error),
        ClientError::Refused { message } => PortError::conflict(
            "guest_not_frozen",
            format!("the guest cannot hold its disk still: {}", printable(message)),
        )
        .with_hint("stop the instance and commit it then")
        .with_source(error),
        ClientError::NotHeld { .. } => PortError::retry(
            "guest_not_frozen",
            "the guest went on writing before its disk was copied",
        )
        .with_hint("try again; where its disk is large, stop the instance and commit it then")
        .with_source(error),
        _ => guest_error(error),
    }
}

//! A guest that holds its writable disk still, as the host sees it.

use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::{ANSWER_DEADLINE, ClientError, GuestClient};
use crate::protocol::mux::MuxStream;
use crate::protocol::{FrameError, FrameReader, FrameWriter, FreezeReply, FreezeRequest, Open};

/// How long a guest may take to write down what it has in memory before it holds still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(60);

/// A disk that is not written to as long as this lives; dropping it lets the guest go on.
#[derive(Debug)]
pub struct FrozenDisk {
    replies: FrameReader<ReadHalf<MuxStream>>,
    requests: FrameWriter<WriteHalf<MuxStream>>,
}

impl FrozenDisk {
    /// Lets the guest go on. An error means that nobody knows whether the disk was still up to now.
    ///
    /// # Errors
    /// [`ClientError::NotHeld`] where it was not; see [`ClientError`].
    pub async fn thaw(mut self) -> Result<(), ClientError> {
        let asking = async {
            // A guest whose time was up says so without being asked, and reads no more.
            let asked = self.requests.message(&FreezeRequest::Thaw).await;
            match self.replies.message().await {
                Ok(reply) => Ok(reply),
                Err(error) => Err(asked.err().unwrap_or(error)),
            }
        };
        let reply =
            timeout(ANSWER_DEADLINE, asking)
                .await
                .map_err(|_| ClientError::AnswerTimeout {
                    request: "thaw",
                    deadline: ANSWER_DEADLINE,
                })??;
        match reply {
            FreezeReply::Thawed => Ok(()),
            FreezeReply::Lost { message } => Err(ClientError::NotHeld { message }),
            FreezeReply::Frozen | FreezeReply::Refused { .. } => Err(out_of_turn()),
        }
    }
}

fn out_of_turn() -> ClientError {
    ClientError::Protocol("a word out of turn about freezing".to_owned())
}

impl GuestClient {
    /// Makes the guest write down everything and hold its writable disk still, for `deadline` at the longest.
    ///
    /// # Errors
    /// [`ClientError::NotKnown`] from an older agent, [`ClientError::Refused`]; see [`ClientError`].
    pub async fn freeze(&self, deadline: Duration) -> Result<FrozenDisk, ClientError> {
        let deadline_millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let (mut replies, requests) = self.open(&Open::Freeze { deadline_millis }).await?;
        let reply = timeout(FREEZE_PATIENCE, replies.message())
            .await
            .map_err(|_| ClientError::AnswerTimeout {
                request: "freeze",
                deadline: FREEZE_PATIENCE,
            })?;
        match reply {
            Ok(FreezeReply::Frozen) => Ok(FrozenDisk { replies, requests }),
            Ok(FreezeReply::Refused { message }) => Err(ClientError::Refused { message }),
            Ok(FreezeReply::Thawed | FreezeReply::Lost { .. }) => Err(out_of_turn()),
            Err(FrameError::Truncated | FrameError::Io(_)) => {
                // A session that goes on without the stream: the agent could not read what it was for.
                self.ping().await?;
                Err(ClientError::NotKnown { request: "freeze" })
            }
            Err(error) => Err(error.into()),
        }
    }
}

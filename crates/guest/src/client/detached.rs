//! Commands in a guest that run on when their host goes.

use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::{ANSWER_DEADLINE, ClientError, ExecHandle, ExecReader, ExecWriter, GuestClient};
use crate::protocol::message::{DATA_FRAME_LIMIT, OPEN_LIMIT};
use crate::protocol::mux::MuxStream;
use crate::protocol::{
    DetachedCommand, DetachedReply, DetachedRequest, ExecRequest, FrameReader, FrameWriter, Open,
    StdinMode,
};

const REQUEST: &str = "detached";

type Stream = (
    FrameReader<ReadHalf<MuxStream>>,
    FrameWriter<WriteHalf<MuxStream>>,
);

impl GuestClient {
    /// Starts a command that no stream holds, and gives it an id by which it is found again.
    pub async fn start_detached(
        &self,
        id: &str,
        stdin: StdinMode,
        request: ExecRequest,
    ) -> Result<(), ClientError> {
        let id = id.to_owned();
        let start = DetachedRequest::Start { id, stdin, request };
        match self.ask_detached(start).await?.0 {
            DetachedReply::Started => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// All detached commands that the guest knows of, the oldest first. All of it is unchecked.
    pub async fn detached(&self) -> Result<Vec<DetachedCommand>, ClientError> {
        match self.ask_detached(DetachedRequest::List).await?.0 {
            DetachedReply::List { commands } => Ok(commands),
            other => Err(unexpected(&other)),
        }
    }

    /// Joins one. Dropping the handle leaves it running.
    pub async fn attach_detached(&self, id: &str) -> Result<ExecHandle, ClientError> {
        let attach = DetachedRequest::Attach { id: id.to_owned() };
        match self.ask_detached(attach).await? {
            (DetachedReply::Attached, (mut reader, writer)) => {
                reader.set_limit(DATA_FRAME_LIMIT);
                Ok(ExecHandle {
                    output: ExecReader::new(reader),
                    input: ExecWriter::new(writer),
                })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Ends one, if it runs, and has it forgotten.
    pub async fn remove_detached(&self, id: &str) -> Result<(), ClientError> {
        let remove = DetachedRequest::Remove { id: id.to_owned() };
        match self.ask_detached(remove).await?.0 {
            DetachedReply::Removed => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_detached(
        &self,
        request: DetachedRequest,
    ) -> Result<(DetachedReply, Stream), ClientError> {
        let (mut reader, writer) = self.open(&Open::Detached(request)).await?;
        // A list of all of them is longer than a piece of output.
        reader.set_limit(OPEN_LIMIT);
        let reply = timeout(ANSWER_DEADLINE, reader.next()).await;
        let reply = reply.map_err(|_| ClientError::AnswerTimeout {
            request: REQUEST,
            deadline: ANSWER_DEADLINE,
        })??;
        let Some(reply) = reply else {
            return Err(ClientError::NotKnown { request: REQUEST });
        };
        match reply.message()? {
            DetachedReply::Refused { fault, message } => {
                Err(ClientError::Detached { fault, message })
            }
            other => Ok((other, (reader, writer))),
        }
    }
}

fn unexpected(reply: &DetachedReply) -> ClientError {
    let reply = match reply {
        DetachedReply::Started => "started",
        DetachedReply::List { .. } => "a list",
        DetachedReply::Attached => "attached",
        DetachedReply::Removed => "removed",
        DetachedReply::Refused { .. } => "refused",
    };
    ClientError::Protocol(format!("{reply} instead of what was asked for"))
}

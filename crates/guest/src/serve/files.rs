//! One operation on files: what the host sends goes to the thread that does it, what that says goes to the host.
//!
//! A host that goes closes both channels, and the thread ends at its next word; what it has half written goes with it.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::session::{Reader, Writer};
use crate::files::{Exchange, Failure, Files, Incoming, Outgoing};
use crate::protocol::files::{FILE_WORKING, FileFault, FileInput, FileReply, FileRequest};
use crate::protocol::{Frame, FrameError, FrameKind};

/// Pieces that wait for the thread, or for the host.
const WAITING: usize = 4;

/// Carries one request out and tells the host what comes of it.
pub(super) async fn serve(
    files: Result<Arc<Files>, Failure>,
    turn: Arc<Semaphore>,
    request: FileRequest,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    let (to_thread, incoming) = mpsc::channel(WAITING);
    let (outgoing, mut from_thread) = mpsc::channel(WAITING);
    let mut exchange = Exchange { incoming, outgoing };
    let work = async move {
        let files = files?;
        // Others' copies may take a while; the host hears that this one is being worked on.
        let _turn = turn.acquire_owned().await;
        let work = move || files.carry_out(request, &mut exchange);
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| {
            Err(Failure {
                fault: FileFault::Failed,
                message: format!("the agent's mistake: {error}"),
            })
        })
    };
    tokio::pin!(work);
    let mut ticks = interval_at(Instant::now() + FILE_WORKING, FILE_WORKING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut untaken = None;
    let mut done = None;
    loop {
        tokio::select! {
            // What the thread said last comes before its end.
            biased;
            message = from_thread.recv() => {
                match message {
                    Some(message) => {
                        send(&mut writer, message).await?;
                        ticks.reset();
                    }
                    None if done.is_some() => break,
                    // It has let go of its end and is about to say how it went.
                    None => done = Some((&mut work).await),
                }
            }
            outcome = &mut work, if done.is_none() => done = Some(outcome),
            frame = reader.next(), if untaken.is_none() && done.is_none() => match frame? {
                Some(frame) => untaken = Some(incoming_of(frame)?),
                // The host has gone, or has changed its mind.
                None => return Ok(()),
            },
            permit = to_thread.reserve(), if untaken.is_some() && done.is_none() => {
                // A thread that takes nothing more is about to say how it went.
                if let (Ok(permit), Some(message)) = (permit, untaken.take()) {
                    permit.send(message);
                }
            }
            _ = ticks.tick() => writer.message(&FileReply::Working).await?,
        }
    }
    match done {
        Some(Ok(Some(bytes))) => writer.message(&FileReply::Done { bytes }).await?,
        Some(Ok(None)) | None => {}
        Some(Err(Failure { fault, message })) => {
            writer
                .message(&FileReply::Failed { fault, message })
                .await?;
        }
    }
    writer.finish().await
}

async fn send(writer: &mut Writer, message: Outgoing) -> Result<(), FrameError> {
    match message {
        Outgoing::Reply(reply) => writer.message(&reply).await,
        Outgoing::Data(data) => writer.send(FrameKind::File, &[&data]).await,
    }
}

fn incoming_of(frame: Frame) -> Result<Incoming, FrameError> {
    match frame.kind {
        FrameKind::File => Ok(Incoming::Data(frame.payload)),
        FrameKind::Message => frame.message().map(|FileInput::End| Incoming::End),
        kind @ (FrameKind::Stdin | FrameKind::Stdout | FrameKind::Stderr | FrameKind::Log) => {
            Err(FrameError::Unexpected { kind })
        }
    }
}

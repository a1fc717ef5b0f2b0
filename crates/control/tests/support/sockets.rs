//! A guest whose every TCP port gives back what it is sent, and in which nobody listens.

use super::Host;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use warren_core::ports::guest_sockets::{
    GuestEndpoint, GuestListener, GuestSocket, GuestSockets, ListenPlace, SocketSink,
};
use warren_core::{InstanceId, PortError};

struct Echo(Option<mpsc::Sender<Bytes>>);

#[async_trait]
impl SocketSink for Echo {
    async fn send(&mut self, data: Bytes) -> Result<(), PortError> {
        let gone = || PortError::conflict("connection_over", "the connection is over");
        let sender = self.0.as_ref().ok_or_else(gone)?;
        sender.send(data).await.map_err(|_| gone())
    }

    async fn close(&mut self) -> Result<(), PortError> {
        self.0 = None;
        Ok(())
    }
}

#[async_trait]
impl GuestSockets for Host {
    async fn connect(&self, _: &InstanceId, to: GuestEndpoint) -> Result<GuestSocket, PortError> {
        match to {
            GuestEndpoint::Tcp(_) => {
                let (sender, receiver) = mpsc::channel(4);
                Ok(GuestSocket {
                    input: Box::new(Echo(Some(sender))),
                    output: ReceiverStream::new(receiver).map(Ok).boxed(),
                })
            }
            GuestEndpoint::Path(path) => Err(PortError::conflict(
                "no_socket",
                format!("the double has no socket {path}"),
            )),
        }
    }

    async fn listen(&self, _: &InstanceId, _: ListenPlace) -> Result<GuestListener, PortError> {
        Err(PortError::conflict(
            "no_listening",
            "the double listens nowhere",
        ))
    }
}

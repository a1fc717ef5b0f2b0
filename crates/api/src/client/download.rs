//! Answers that are larger than memory.

use super::{Client, ClientError};
use bytes::Bytes;
use reqwest::{Response, Url};
use std::time::Duration;

/// A server that sends nothing for this long has gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes that a server sends.
#[derive(Debug)]
pub struct Download {
    base: Url,
    size: Option<u64>,
    response: Response,
}

impl Download {
    pub(super) fn new(client: &Client, response: Response) -> Self {
        Download {
            base: client.base.clone(),
            // Of the response it is what has not come yet.
            size: response.content_length(),
            response,
        }
    }

    /// How many there are in all, where the server says.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next of them; `None` at the end.
    ///
    /// # Errors
    /// A connection that broke: what came is not the whole.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        match tokio::time::timeout(SILENCE, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(ClientError::from_transport(&self.base, &error)),
            Err(_) => Err(ClientError::TimedOut {
                server: self.base.to_string(),
            }),
        }
    }
}

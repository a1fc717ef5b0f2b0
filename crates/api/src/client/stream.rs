//! Streams of Server-Sent Events that go on where they broke.

use super::{Client, ClientError};
use crate::event::Event;
use crate::sse::{END, Item, Message, Parser};
use futures::Stream;
use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The server says something at least every 15 s; silence for this long means a dead connection.
const SILENCE: Duration = Duration::from_secs(50);
/// Attempts in a row without a single event before it is an error.
const ATTEMPTS: u32 = 8;

/// What `/events` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventItem {
    /// Something happened.
    Event {
        /// Its id, to go on after it.
        id: Option<u64>,
        /// What.
        event: Event,
    },
    /// Events between the last one and the next one are lost: list again.
    Reset,
}

/// Whether a stream has an end of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The server says when it is complete; anything else is a break.
    Ends,
    /// Never.
    Endless,
    /// It cannot be opened twice.
    Once,
}

/// What a message means.
pub(super) enum Outcome<T> {
    /// An item.
    Item(T),
    /// The last item.
    Last(T),
    /// Nothing.
    Nothing,
}

pub(super) trait Source {
    fn accept_events(self, last_event_id: Option<&str>) -> Self;
}

type Open = Box<dyn FnMut() -> RequestBuilder + Send>;
type Read<T> = Box<dyn Fn(&Message) -> Result<Outcome<T>, ClientError> + Send>;

struct Machine<T> {
    client: Client,
    kind: Kind,
    open: Open,
    read: Read<T>,
    last_id: Option<String>,
    response: Option<(Response, Parser)>,
    ready: VecDeque<Item>,
    attempts: u32,
    done: bool,
}

/// A stream of `Result<T, ClientError>`; after an error it is over.
pub struct TypedStream<T> {
    state: State<T>,
}

type Step<T> = (Box<Machine<T>>, Option<Result<T, ClientError>>);

enum State<T> {
    Idle(Box<Machine<T>>),
    Busy(BoxFuture<'static, Step<T>>),
    Over,
}

impl<T: Send + 'static> TypedStream<T> {
    pub(super) fn new(
        client: Client,
        kind: Kind,
        last_id: Option<String>,
        open: Open,
        read: Read<T>,
    ) -> Self {
        TypedStream {
            state: State::Idle(Box::new(Machine {
                client,
                kind,
                open,
                read,
                last_id,
                response: None,
                ready: VecDeque::new(),
                attempts: 0,
                done: false,
            })),
        }
    }

    pub(super) fn once(client: Client, request: RequestBuilder, read: Read<T>) -> Self {
        let mut request = Some(request);
        let fallback = client.clone();
        Self::new(
            client,
            Kind::Once,
            None,
            Box::new(move || {
                request
                    .take()
                    .unwrap_or_else(|| fallback.request(reqwest::Method::GET, &[]))
            }),
            read,
        )
    }
}

impl<T: Send + 'static> Stream for TypedStream<T> {
    type Item = Result<T, ClientError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Over) {
                State::Over => return Poll::Ready(None),
                State::Idle(machine) => this.state = State::Busy(Box::pin(machine.step())),
                State::Busy(mut step) => match step.as_mut().poll(cx) {
                    Poll::Pending => {
                        this.state = State::Busy(step);
                        return Poll::Pending;
                    }
                    Poll::Ready((machine, item)) => {
                        if !matches!(item, None | Some(Err(_))) {
                            this.state = State::Idle(machine);
                        }
                        return Poll::Ready(item);
                    }
                },
            }
        }
    }
}

impl<T> Unpin for TypedStream<T> {}

impl<T: Send + 'static> Machine<T> {
    async fn step(mut self: Box<Self>) -> Step<T> {
        let item = self.next().await;
        (self, item.transpose())
    }

    async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            while let Some(item) = self.ready.pop_front() {
                match item {
                    Item::Comment(text) if text == END => {
                        self.done = true;
                    }
                    Item::Comment(_) => {}
                    Item::Message(message) => {
                        self.attempts = 0;
                        if message.id.is_some() {
                            self.last_id.clone_from(&message.id);
                        }
                        match (self.read)(&message)? {
                            Outcome::Item(item) => return Ok(Some(item)),
                            Outcome::Last(item) => {
                                self.done = true;
                                self.ready.clear();
                                return Ok(Some(item));
                            }
                            Outcome::Nothing => {}
                        }
                    }
                }
            }
            if self.done {
                return Ok(None);
            }
            match self.response.take() {
                None => self.connect().await?,
                Some((mut response, mut parser)) => {
                    let chunk = tokio::time::timeout(SILENCE, response.chunk()).await;
                    match chunk {
                        Ok(Ok(Some(bytes))) => {
                            let items = parser.push(&bytes).map_err(|e| ClientError::Answer {
                                reason: e.to_string(),
                            })?;
                            self.ready.extend(items);
                            self.response = Some((response, parser));
                        }
                        Ok(Ok(None)) => self.broken(None).await?,
                        Ok(Err(error)) => {
                            let error = ClientError::from_transport(&self.client.base, &error);
                            self.broken(Some(error)).await?;
                        }
                        Err(_) => {
                            let server = self.client.base.to_string();
                            self.broken(Some(ClientError::TimedOut { server })).await?;
                        }
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let request = (self.open)().accept_events(self.last_id.as_deref());
        match self.client.send(request).await {
            Ok(response) => {
                self.response = Some((response, Parser::default()));
                Ok(())
            }
            // The first connection tells the truth at once; later ones may meet a restart.
            Err(error) if error.is_transient() && self.attempts > 0 => {
                self.broken(Some(error)).await
            }
            Err(error) => Err(error),
        }
    }

    async fn broken(&mut self, error: Option<ClientError>) -> Result<(), ClientError> {
        self.attempts += 1;
        if self.kind == Kind::Once || self.attempts > ATTEMPTS {
            return Err(error.unwrap_or_else(|| ClientError::Transport {
                server: self.client.base.to_string(),
                reason: "the stream ended before it was complete".to_owned(),
            }));
        }
        let pause = Duration::from_millis(100 << self.attempts.min(5));
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

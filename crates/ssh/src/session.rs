//! One connection: who it is, and what it opens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PublicKey;
use russh::keys::ssh_key::AuthorizedKeys;
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, PublicKeyOffer, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use warren_core::PortError;
use warren_core::ports::guest_sockets::{GuestEndpoint, GuestSocket, ListenPlace};

use crate::backlog::{Backlog, ROOM};
use crate::channel::{self, Answer};
use crate::door::{Door, Entrance, Proof};
use crate::forward::{self, AbortOnDrop, Asked, hand_over};
use crate::host_key::HostKey;

/// Channels that are open at a time, those of forwarded connections included.
const CHANNELS: usize = 256;
/// Places in the guest at which a client may listen at a time.
const LISTENERS: usize = 64;
/// How long a client may take to say who it is, as sshd_config(5)'s LoginGraceTime.
const LOGIN_GRACE: Duration = Duration::from_secs(120);
/// A client that says nothing is asked whether it is still there; after [`UNANSWERED`] questions it is not.
const KEEPALIVE: Duration = Duration::from_secs(30);
const UNANSWERED: usize = 4;
/// Messages of a channel that wait for its task. russh's queue: the bound on bytes is [`crate::backlog`]'s.
const CHANNEL_MESSAGES: usize = 1 << 16;
/// Messages that wait for the connection.
const MESSAGES: usize = 64;
/// Wrong keys and names before a client is sent away.
const ATTEMPTS: usize = 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It did not say in time who it is.
    #[error("the client did not log in within {} s", LOGIN_GRACE.as_secs())]
    LoginTime,
    /// It broke off, or the client does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] russh::Error),
}

/// Serves one connection to its end. Dropping the future ends it, with every program that runs for it.
///
/// # Errors
/// The client did not log in in time, or broke the protocol; one that goes without a word is no error.
pub async fn serve<S>(stream: S, key: &HostKey, door: Arc<dyn Door>) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = Arc::new(Config {
        server_id: SshId::Standard(concat!("SSH-2.0-Warren_", env!("CARGO_PKG_VERSION")).into()),
        methods: MethodSet::from(&[MethodKind::None, MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(300),
        // What every client asks first, to hear which methods there are.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key.private()],
        window_size: ROOM,
        channel_buffer_size: CHANNEL_MESSAGES,
        event_buffer_size: MESSAGES,
        max_auth_attempts: ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: UNANSWERED,
        nodelay: true,
        ..Config::default()
    });
    let (entered, mut entering) = watch::channel(Login::Outside);
    let session = Session {
        door,
        entrance: None,
        entered,
        backlog: Backlog::default(),
        turns: Arc::new(Semaphore::new(CHANNELS)),
        tasks: HashMap::new(),
        listeners: Vec::new(),
    };
    let running = timeout(
        LOGIN_GRACE,
        russh::server::run_stream(config, stream, session),
    );
    let running = running.await.map_err(|_| ServeError::LoginTime)??;
    // russh runs it as a task: it must not outlive this future.
    let mut running = AbortOnDrop(tokio::spawn(running));
    // An end of the session before that is the other branch's.
    let login = async {
        let inside = entering.wait_for(|login| *login == Login::Inside);
        timeout(LOGIN_GRACE, inside).await.is_ok()
    };
    let ended = tokio::select! {
        ended = &mut running.0 => ended,
        in_time = login => {
            if !in_time {
                return Err(ServeError::LoginTime);
            }
            (&mut running.0).await
        }
    };
    match ended {
        Ok(Ok(()) | Err(russh::Error::HUP | russh::Error::Disconnect)) => Ok(()),
        Ok(Err(russh::Error::IO(error))) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Ok(())
        }
        Ok(Err(error)) => Err(error.into()),
        // It was ended, or has panicked, which its own log says.
        Err(_) => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    Outside,
    Inside,
}

/// The connection, as its channels' tasks see it.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) handle: Handle,
    pub(crate) backlog: Backlog,
    turns: Arc<Semaphore>,
}

impl Client {
    /// A place among the channels, if there is one.
    pub(crate) fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turns).try_acquire_owned().ok()
    }

    /// Lets a task of a channel run; its place is free when it ends.
    pub(crate) fn keep(
        &self,
        turn: OwnedSemaphorePermit,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        tokio::spawn(async move {
            task.await;
            drop(turn);
        })
        .abort_handle()
    }

    pub(crate) async fn answer(&self, channel: ChannelId, answer: Answer) {
        // A client that has gone does not hear it.
        let _ = match answer {
            Answer::Yes => self.handle.channel_success(channel).await,
            Answer::No => self.handle.channel_failure(channel).await,
        };
    }
}

struct Session {
    door: Arc<dyn Door>,
    entrance: Option<Entrance>,
    entered: watch::Sender<Login>,
    backlog: Backlog,
    turns: Arc<Semaphore>,
    /// What runs programs; forwarded connections end by themselves.
    tasks: HashMap<ChannelId, AbortHandle>,
    listeners: Vec<(Asked, AbortOnDrop<()>)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

type Done = Result<(), russh::Error>;

impl Session {
    fn client(&self, session: &russh::server::Session) -> Client {
        Client {
            handle: session.handle(),
            backlog: self.backlog.clone(),
            turns: Arc::clone(&self.turns),
        }
    }

    /// Only after a login: russh lets nothing else happen before it.
    fn entrance(&self) -> Result<Entrance, russh::Error> {
        self.entrance.clone().ok_or(russh::Error::NotAuthenticated)
    }

    async fn knows(&self, login: &str, key: &PublicKey) -> Option<Entrance> {
        let entrance = self.door.find(login).await?;
        let known = match &entrance.proof {
            Proof::Given => true,
            Proof::Key(lines) => lines.iter().any(|line| is_key(line, key)),
        };
        known.then_some(entrance)
    }

    async fn listen(&mut self, place: ListenPlace, asked: Asked, client: Client) -> Option<u16> {
        if self.listeners.len() >= LISTENERS {
            return None;
        }
        let guest = self.entrance().ok()?.guest;
        match guest.listen(place).await {
            Ok(listener) => {
                let port = listener.port;
                let asked = match asked {
                    Asked::Tcp { address, port: 0 } => Asked::Tcp {
                        address,
                        port: port.into(),
                    },
                    asked => asked,
                };
                let task = tokio::spawn(hand_over(listener, asked.clone(), client));
                self.listeners.push((asked, AbortOnDrop(task)));
                Some(port)
            }
            Err(error) => {
                tracing::debug!(%error, "a client cannot listen in its guest");
                None
            }
        }
    }

    fn stop_listening(&mut self, asked: &Asked) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|(other, _)| other != asked);
        self.listeners.len() < before
    }
}

/// A line of `authorized_keys` that is for this key, and for everything that it may do.
fn is_key(line: &str, key: &PublicKey) -> bool {
    AuthorizedKeys::new(line).flatten().any(|entry| {
        entry.config_opts().is_empty() && entry.public_key().key_data() == key.key_data()
    })
}

impl Handler for Session {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        match self.door.find(user).await {
            Some(entrance) if entrance.proof == Proof::Given => {
                self.entrance = Some(entrance);
                Ok(Auth::Accept)
            }
            Some(_) | None => Ok(Auth::Reject {
                proceed_with_methods: Some(MethodSet::from(&[MethodKind::PublicKey][..])),
                partial_success: false,
            }),
        }
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(match self.knows(user, offer.public_key).await {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        self.entrance = self.knows(user, key.public_key).await;
        Ok(match self.entrance {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    async fn auth_succeeded(&mut self, _: &mut russh::server::Session) -> Done {
        self.entered.send_replace(Login::Inside);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Done {
        let client = self.client(session);
        let Some(turn) = client.turn() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let id = channel.id();
        let serving = channel::serve(channel, self.entrance()?, client.clone());
        reply.accept().await;
        self.tasks.insert(id, client.keep(turn, serving));
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Done {
        let (entrance, host) = (self.entrance()?, host.to_owned());
        let connecting = async move { forward::connect(&*entrance.guest, &host, port).await };
        join_when_connected(channel, reply, self.client(session), connecting).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Done {
        let (entrance, path) = (self.entrance()?, path.to_owned());
        let connecting = async move { entrance.guest.connect(GuestEndpoint::Path(path)).await };
        join_when_connected(channel, reply, self.client(session), connecting).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        let (Some(at), Ok(wanted)) = (forward::listen_address(address), u16::try_from(*port))
        else {
            return Ok(false);
        };
        let asked = Asked::Tcp {
            address: address.to_owned(),
            port: *port,
        };
        let client = self.client(session);
        let bound = self
            .listen(ListenPlace::Tcp(at, wanted), asked, client)
            .await;
        *port = bound.unwrap_or(wanted).into();
        Ok(bound.is_some())
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        let address = address.to_owned();
        Ok(self.stop_listening(&Asked::Tcp { address, port }))
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        let place = ListenPlace::Path {
            path: path.to_owned(),
            user: self.entrance()?.user,
        };
        let client = self.client(session);
        let bound = self
            .listen(place, Asked::Path(path.to_owned()), client)
            .await;
        Ok(bound.is_some())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.stop_listening(&Asked::Path(path.to_owned())))
    }

    /// The channel's task does it: see there.
    async fn agent_request(
        &mut self,
        _: ChannelId,
        _: &mut russh::server::Session,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut russh::server::Session,
    ) -> Done {
        self.backlog.came(channel, data.len());
        self.backlog.pause().await;
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.backlog.room()
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut russh::server::Session) -> Done {
        if let Some(task) = self.tasks.remove(&channel) {
            task.abort();
            self.backlog.forget(channel);
        }
        Ok(())
    }
}

/// Answers when the guest has: that may take as long as a connection may, and the session goes on meanwhile.
async fn join_when_connected(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    client: Client,
    connecting: impl Future<Output = Result<GuestSocket, PortError>> + Send + 'static,
) {
    let Some(turn) = client.turn() else {
        return reply.reject(ChannelOpenFailure::ResourceShortage).await;
    };
    let backlog = client.backlog.clone();
    client.keep(turn, async move {
        match connecting.await {
            Ok(socket) => {
                reply.accept().await;
                forward::join(channel, socket, backlog).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a client's connection into its guest");
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
            }
        }
    });
}

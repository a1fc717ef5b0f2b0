//! One session channel: what the client wants of it, then a program in the guest until one of both ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use warren_core::PortError;
use warren_core::ports::guest_sockets::ListenPlace;
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};

use crate::backlog::Backlog;
use crate::door::Entrance;
use crate::forward::{AbortOnDrop, Asked, hand_over};
use crate::session::Client;

/// Variables that a client may set, and bytes of them.
const VARIABLES: usize = 256;
const VARIABLE_BYTES: usize = 64 << 10;
/// The extended data that is standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// What a client is told of a program that could not be run at all.
const CANNOT_RUN: u32 = 255;
/// Where programs look for an SSH agent.
const AGENT: &str = "SSH_AUTH_SOCK";

/// What a client has said of the program to come.
#[derive(Default)]
struct Wishes {
    env: BTreeMap<String, String>,
    terminal: Option<(u16, u16)>,
    /// The listener that stands for the client's own agent; it ends with the channel.
    agent: Option<AbortOnDrop<()>>,
}

/// Serves the channel to its end.
pub(crate) async fn serve(channel: Channel<Msg>, entrance: Entrance, client: Client) {
    let id = channel.id();
    let (mut read, write) = channel.split();
    let write = Arc::new(write);
    let mut wishes = Wishes::default();
    while let Some(message) = read.wait().await {
        let program = match message {
            ChannelMsg::RequestShell { .. } => Program::LoginShell(None),
            ChannelMsg::Exec { command, .. } => match String::from_utf8(command) {
                Ok(script) => Program::LoginShell(Some(script)),
                Err(_) => {
                    client.answer(id, Answer::No).await;
                    continue;
                }
            },
            ChannelMsg::RequestSubsystem { name, .. } if name == "sftp" => Program::FileServer,
            ChannelMsg::Data { data } => {
                // Before there is anybody to have it.
                client.backlog.taken(id, data.len());
                continue;
            }
            ChannelMsg::Close => break,
            message => {
                if let Some(answer) = prepare(&mut wishes, message, &entrance, &client).await {
                    client.answer(id, answer).await;
                }
                continue;
            }
        };
        client.answer(id, Answer::Yes).await;
        let command = ExecCommand {
            program,
            env: std::mem::take(&mut wishes.env),
            user: Some(entrance.user.clone()),
            terminal: wishes.terminal,
            ..ExecCommand::default()
        };
        let status = match entrance.guest.exec(command).await {
            Ok(session) => run(session, read, &write, client.backlog.clone()).await,
            Err(error) => {
                say(&write, &error).await;
                CANNOT_RUN
            }
        };
        // A client that has gone does not hear it.
        let _ = write.exit_status(status).await;
        let _ = write.eof().await;
        break;
    }
    let _ = write.close().await;
    client.backlog.forget(id);
}

/// What is said to a request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
}

/// What comes before the program; `None` for what wants no answer.
async fn prepare(
    wishes: &mut Wishes,
    message: ChannelMsg,
    entrance: &Entrance,
    client: &Client,
) -> Option<Answer> {
    match message {
        ChannelMsg::RequestPty {
            term,
            col_width,
            row_height,
            ..
        } => {
            wishes.terminal = Some(size(row_height, col_width));
            if !term.is_empty() {
                wishes.env.insert("TERM".to_owned(), term);
            }
            Some(Answer::Yes)
        }
        ChannelMsg::SetEnv {
            variable_name: name,
            variable_value: value,
            ..
        } => {
            let bytes: usize = wishes
                .env
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum();
            let fits =
                wishes.env.len() < VARIABLES && bytes + name.len() + value.len() < VARIABLE_BYTES;
            let is_one = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            if fits && is_one {
                wishes.env.insert(name, value);
                Some(Answer::Yes)
            } else {
                Some(Answer::No)
            }
        }
        // russh has said yes already: without a listener there is just no agent.
        ChannelMsg::AgentForward { .. } => {
            let user = entrance.user.clone();
            match entrance.guest.listen(ListenPlace::Private { user }).await {
                Ok(listener) => {
                    wishes
                        .env
                        .extend(listener.path.clone().map(|path| (AGENT.to_owned(), path)));
                    let handing = hand_over(listener, Asked::Agent, client.clone());
                    wishes.agent = Some(AbortOnDrop(tokio::spawn(handing)));
                }
                Err(error) => tracing::debug!(%error, "no socket for a client's agent"),
            }
            None
        }
        ChannelMsg::WindowChange {
            col_width,
            row_height,
            ..
        } => {
            wishes.terminal = wishes.terminal.map(|_| size(row_height, col_width));
            None
        }
        ChannelMsg::RequestSubsystem { .. } | ChannelMsg::RequestX11 { .. } => Some(Answer::No),
        _ => None,
    }
}

fn size(rows: u32, columns: u32) -> (u16, u16) {
    let bounded = |number: u32, usual| match u16::try_from(number) {
        Ok(0) | Err(_) => usual,
        Ok(number) => number,
    };
    (bounded(rows, 24), bounded(columns, 80))
}

/// Lets a program run to its end and gives the status for the client.
async fn run(
    session: ExecSession,
    read: ChannelReadHalf,
    write: &ChannelWriteHalf<Msg>,
    backlog: Backlog,
) -> u32 {
    let ExecSession { input, mut output } = session;
    // Of its own, because a program that reads nothing may still write.
    let _inward = AbortOnDrop(tokio::spawn(inward(read, input, backlog, write.id())));
    while let Some(next) = output.next().await {
        let sent = match next {
            Ok(ExecOutput::Data(OutputStream::Stdout, data)) => write.data_bytes(data).await,
            Ok(ExecOutput::Data(OutputStream::Stderr, data)) => {
                write.extended_data_bytes(STDERR, data).await
            }
            Ok(ExecOutput::Exited { code, message }) => {
                if let Some(message) = message {
                    let words = format!("warren: {message}\r\n");
                    // A client that has gone does not hear it.
                    let _ = write.extended_data_bytes(STDERR, words).await;
                }
                return u32::try_from(code).unwrap_or(CANNOT_RUN);
            }
            Err(error) => {
                say(write, &error).await;
                return CANNOT_RUN;
            }
        };
        if sent.is_err() {
            return CANNOT_RUN;
        }
    }
    CANNOT_RUN
}

async fn say(write: &ChannelWriteHalf<Msg>, error: &PortError) {
    let words = format!("warren: {}\r\n", error.sentence());
    // A client that has gone does not hear it.
    let _ = write.extended_data_bytes(STDERR, words).await;
}

/// Ends with the channel. Input that the program does not take any more is thrown away: its status is still to come.
async fn inward(
    mut read: ChannelReadHalf,
    mut input: Box<dyn ExecSink>,
    backlog: Backlog,
    id: russh::ChannelId,
) {
    let mut open = true;
    while let Some(message) = read.wait().await {
        let (sent, bytes) = match message {
            ChannelMsg::Data { data } => {
                let bytes = data.len();
                (open.then_some(ExecInput::Stdin(data)), bytes)
            }
            ChannelMsg::Eof => (Some(ExecInput::CloseStdin), 0),
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                ..
            } => {
                let (rows, columns) = size(row_height, col_width);
                (Some(ExecInput::Resize { rows, columns }), 0)
            }
            ChannelMsg::Signal { signal } => (number(&signal).map(ExecInput::Signal), 0),
            ChannelMsg::Close => return,
            _ => (None, 0),
        };
        if let Some(sent) = sent
            && open
        {
            open = input.send(sent).await.is_ok();
        }
        backlog.taken(id, bytes);
    }
}

/// Linux's numbers.
fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) => match name.as_str() {
            "USR2" => 12,
            "CONT" => 18,
            "STOP" => 19,
            "TSTP" => 20,
            "WINCH" => 28,
            _ => return None,
        },
    })
}

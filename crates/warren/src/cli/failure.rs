//! How a command fails: a sentence, the next step where there is one, and an exit code.

use super::context::ContextError;
use super::text::one_line;
use super::values::ValueError;
use std::io;
use warren_api::client::ClientError;

/// Warren's own failure in commands whose exit code is otherwise the guest's.
pub(crate) const OWN_FAILURE: u8 = 125;
/// What a shell shows for a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Talking to the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Contexts.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A value on the command line, or in a file it names.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Writing to stdout or stderr.
    #[error("the output cannot be written: {0}")]
    Output(io::Error),
    /// A file or stdin.
    #[error("{what}: {source}")]
    File {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// An object that JSON or YAML cannot hold.
    #[error("the answer cannot be shown as {format}: {reason}")]
    Render {
        /// Which.
        format: &'static str,
        /// Why.
        reason: String,
    },
    /// Signals cannot be handled.
    #[error("signals cannot be handled: {0}")]
    Signals(io::Error),
    /// What was asked for cannot be done.
    #[error("{sentence}")]
    Refused {
        /// Why.
        sentence: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Some of several things failed; each has been reported.
    #[error("{failed} of {all} failed")]
    Several {
        /// How many failed.
        failed: usize,
        /// Of how many.
        all: usize,
    },
}

impl CliError {
    /// What was asked for cannot be done, and what can be.
    pub(crate) fn refused(sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        CliError::Refused {
            sentence: sentence.into(),
            hint: Some(hint.into()),
        }
    }

    /// What was asked for cannot be done.
    pub(crate) fn plain(sentence: impl Into<String>) -> Self {
        CliError::Refused {
            sentence: sentence.into(),
            hint: None,
        }
    }

    /// Whether the other end of stdout went away, which is no failure worth words.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code, where Warren's own failures have `own`.
    pub(crate) fn exit_code(&self, own: u8) -> u8 {
        if self.is_broken_pipe() {
            BROKEN_PIPE
        } else {
            own
        }
    }

    /// The sentence, safe for a terminal.
    pub(crate) fn sentence(&self) -> String {
        match self {
            CliError::Client(ClientError::Unreachable { server, .. }) => {
                one_line(&format!("no Warren server answers at {server}"))
            }
            CliError::Client(ClientError::Refused(refused)) if !refused.details.is_empty() => {
                let parts: Vec<String> = refused
                    .details
                    .iter()
                    .take(20)
                    // The sentence of a single one is its own.
                    .filter(|detail| {
                        detail.message.is_empty() || !refused.sentence.contains(&detail.message)
                    })
                    .map(|detail| {
                        if detail.message.is_empty() {
                            detail.code.clone()
                        } else if detail.code.is_empty() {
                            detail.message.clone()
                        } else {
                            format!("{}: {}", detail.code, detail.message)
                        }
                    })
                    .filter(|part| !refused.sentence.contains(part.as_str()))
                    .collect();
                if parts.is_empty() {
                    one_line(&refused.sentence)
                } else {
                    one_line(&format!("{} ({})", refused.sentence, parts.join("; ")))
                }
            }
            other => one_line(&other.to_string()),
        }
    }

    /// The next step, where there is one that the sentence does not name already.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            CliError::Client(error) => client_hint(error),
            CliError::Refused { hint, .. } => hint.clone(),
            CliError::Context(ContextError::Unknown(_)) => Some(
                "`warren context ls` shows them, `warren context add NAME URL` adds one".to_owned(),
            ),
            CliError::Context(ContextError::Exists(name)) => {
                Some(format!("remove it first with `warren context rm {name}`"))
            }
            CliError::Context(
                ContextError::NoHome
                | ContextError::File { .. }
                | ContextError::Format { .. }
                | ContextError::Name(_)
                | ContextError::Url(_),
            )
            | CliError::Value(_)
            | CliError::Output(_)
            | CliError::File { .. }
            | CliError::Render { .. }
            | CliError::Signals(_)
            | CliError::Several { .. } => None,
        }
        .map(|hint| one_line(&hint))
    }
}

fn client_hint(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Unreachable { reason, .. } => Some(format!(
            "start one with `warren server` (or `./dev up` in a checkout), or name another with \
             --server, WARREN_SERVER or `warren context use` ({reason})"
        )),
        ClientError::Refused(refused) => match refused.code.as_str() {
            "unauthorized" => Some(
                "give a token with WARREN_TOKEN or --token, or keep one in a context: `warren context add`"
                    .to_owned(),
            ),
            "instance_not_found" if !refused.sentence.contains("warren ps") => {
                Some("`warren ps -a` lists the instances there are".to_owned())
            }
            // What a registry does not have is in no list of this server's.
            "image_not_found"
                if !refused.sentence.contains("warren ")
                    && !refused.sentence.contains("registry") =>
            {
                Some("`warren images` lists the images there are".to_owned())
            }
            "unreadable_answer" => {
                Some("is this a Warren server, or something else at that address?".to_owned())
            }
            _ if refused.status == 500 => refused
                .request_id
                .as_ref()
                .map(|id| format!("look for request {id} in the server's log")),
            _ => None,
        },
        ClientError::TimedOut { .. } => {
            Some("it may still be doing what was asked: look with `warren ps -a`".to_owned())
        }
        ClientError::Answer { .. } => {
            Some("client and server may be of different versions: `warren version`".to_owned())
        }
        ClientError::Address { .. } | ClientError::Transport { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::ErrorDetail;
    use warren_api::client::Refused;

    fn refused(code: &str, sentence: &str, details: Vec<ErrorDetail>) -> CliError {
        CliError::Client(ClientError::Refused(Box::new(Refused {
            status: 409,
            code: code.to_owned(),
            sentence: sentence.to_owned(),
            details,
            request_id: Some("0123abcd".to_owned()),
        })))
    }

    #[test]
    fn an_unreachable_server_is_named_with_the_way_to_start_one() {
        let error = CliError::Client(ClientError::Unreachable {
            server: "http://127.0.0.1:9".to_owned(),
            reason: "connection refused".to_owned(),
        });
        assert!(error.sentence().contains("http://127.0.0.1:9"));
        let hint = error.hint().unwrap_or_default();
        for needle in ["warren server", "./dev up", "WARREN_SERVER", "refused"] {
            assert!(hint.contains(needle), "{hint}");
        }
        assert_eq!(error.exit_code(OWN_FAILURE), 125);
    }

    #[test]
    fn candidates_are_listed_and_said_once() {
        let detail = |code: &str, message: &str| ErrorDetail {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        let error = refused(
            "ambiguous",
            "abcd is the beginning of several ids",
            vec![detail("abcd1", ""), detail("abcd2", "web")],
        );
        assert_eq!(
            error.sentence(),
            "abcd is the beginning of several ids (abcd1; abcd2: web)"
        );
        let error = refused("x", "field name is bad", vec![detail("", "name is bad")]);
        assert_eq!(error.sentence(), "field name is bad");
    }

    #[test]
    fn a_mistake_of_the_servers_is_found_in_its_log_by_its_request() {
        let mut error = refused("internal", "something went wrong", Vec::new());
        assert_eq!(error.hint(), None, "whoever was refused needs no log");
        if let CliError::Client(ClientError::Refused(refused)) = &mut error {
            refused.status = 500;
        }
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("request 0123abcd"), "{hint}");
    }

    #[test]
    fn what_a_server_says_cannot_drive_the_terminal() {
        let error = refused("x", "bad\u{1b}]0;t\u{7}\nname", Vec::new());
        assert_eq!(error.sentence(), "bad\u{fffd}]0;t\u{fffd} name");
    }

    #[test]
    fn a_closed_pipe_ends_as_sigpipe_would() {
        let error = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert!(error.is_broken_pipe());
        assert_eq!(error.exit_code(1), 141);
    }
}

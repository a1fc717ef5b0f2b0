//! The command line: what people type, asked of a server through the API's client, and the answers as
//! people or scripts want them. It knows the server only by the client; it never touches a host.
//! `main` calls [`run`].

mod args;
mod commands;
mod context;
mod escape;
mod failure;
mod output;
mod progress;
mod rows;
mod session;
mod terminal;
mod text;
mod values;

pub(crate) use args::{Cli, Command, Global, OutputFormat, SystemCommand, with_ssh_words_apart};
pub(crate) use commands::client_of;
pub(crate) use failure::CliError;
pub(crate) use output::{Detail, Field, Look, Row};

pub(crate) use output::Output;
use std::process::ExitCode;

/// The whole command line as clap knows it, for completion and documentation.
pub(crate) fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Carries out what was typed and says how it went.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    let out = Output::new(&cli.global);
    let own = commands::own_failure(&cli.command);
    match commands::execute(cli.command, &cli.global, &out).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !error.is_broken_pipe() {
                out.error(&error);
            }
            ExitCode::from(error.exit_code(own))
        }
    }
}

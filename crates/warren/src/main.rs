//! The one binary: wiring, CLI, configuration, logging.

mod cli;
mod server;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // Before clap and before any thread: see `server::network_guard`.
    if words
        .next()
        .is_some_and(|word| word == server::NETWORK_GUARD)
    {
        let configuration = words.next().unwrap_or_default();
        return server::network_guard(&configuration.to_string_lossy());
    }
    let cli::Cli { global, command } =
        cli::Cli::parse_from(cli::with_ssh_words_apart(std::env::args_os()));
    match command {
        cli::Command::Host(command) => command.run(&global),
        cli::Command::System {
            command: cli::SystemCommand::Host(command),
        } => command.run(&global),
        command => client(cli::Cli { global, command }),
    }
}

/// A client waits and prints: one thread is enough.
fn client(arguments: cli::Cli) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => {
            anstream::eprintln!("error: the asynchronous runtime did not start: {error}");
            ExitCode::FAILURE
        }
    }
}

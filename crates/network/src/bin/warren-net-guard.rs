//! The guard of user mode as a program of its own, for tests: the product runs it as a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(configuration) = std::env::args().nth(1) else {
        return ExitCode::FAILURE;
    };
    warren_network::run_guard(&configuration)
}

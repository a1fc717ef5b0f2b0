//! The words of the command about what takes the server long.

use clap::{Args, Subcommand};

const OPERATIONS_EXAMPLES: &str = "\
Examples:
  warren operations                       What the server is busy with, and how far it is
  warren operations --all                 Also what ended within the last hour, and how
  warren operations -q                    The ids alone
  warren operations cancel op-1f2e3d4c5b6a
  warren operations cancel $(warren operations -q)";

/// Show what takes the server long, and cancel it
///
/// Lists pulls, loads, commits, pushes, archives and disks on their way out, and images that are being verified, whoever
/// asked for them, each with its phase and how many bytes of how many have been moved. A server that is started again
/// begins with an empty list.
#[derive(Debug, Clone, Args)]
#[command(visible_alias = "ops", after_help = OPERATIONS_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct OperationsArgs {
    /// What to do with them; they are listed when absent.
    #[command(subcommand)]
    pub(crate) command: Option<OperationsCommand>,
    /// Also those that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// What to do with operations.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum OperationsCommand {
    /// Cancel operations
    ///
    /// Ends each of them, for everybody who waits for it, and takes away what it has half made. One that was at its very
    /// end may be done all the same; the command fails then.
    #[command(
        after_help = "Examples:\n  warren operations cancel op-1f2e3d4c5b6a\n  warren operations cancel $(warren operations -q)"
    )]
    Cancel {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

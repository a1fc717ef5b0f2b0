//! The words of the commands that look for faults.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to do about a fault.
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    Bundle(BundleArgs),
}

const BUNDLE_EXAMPLES: &str = "\
Examples:
  warren debug bundle web                        warren-debug-web.tar.gz, here
  warren debug bundle web --file /tmp/web.tar.gz
  warren debug bundle web --file - | tar -tz     What is in it";

/// Put everything that is known of an instance into one archive
///
/// Holds what is recorded of it, what its host has and says, its events, the last lines of its logs, the VMM's arguments,
/// what the host can do, and versions: what somebody needs who is asked for help. What cannot be had is named in it and
/// leaves out nothing else. Values of environment variables, passwords and tokens are hidden; what a workload writes into
/// its log may hold others.
#[derive(Debug, Clone, Args)]
#[command(after_help = BUNDLE_EXAMPLES)]
pub(crate) struct BundleArgs {
    /// Where to write; - is standard output [default: warren-debug-NAME.tar.gz]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Its name, id, or a prefix
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

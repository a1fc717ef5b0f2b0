//! The words of the commands about this program: contexts, version, completion.

use clap::{Args, Subcommand};
use clap_complete::Shell;

const CONTEXT_EXAMPLES: &str = "\
Examples:
  warren context add lab https://lab.example:8443 --use
  warren context ls                       Which there are; * marks the one in use
  warren context use lab
  warren --context lab ps                 For one command only";

/// Manage the servers you work with
///
/// A context is a name for a server's URL and token. They are kept in warren/contexts.toml in your
/// configuration directory, readable by you alone. --server and WARREN_SERVER go before any context.
#[derive(Debug, Clone, Args)]
#[command(after_help = CONTEXT_EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct ContextArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub(crate) command: ContextCommand,
}

/// What to do with contexts.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ContextCommand {
    /// List contexts
    ///
    /// Shows each context with its server; * marks the one in use. Tokens are not shown.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  warren context ls\n  warren context ls -o json"
    )]
    Ls,
    /// Add a context
    ///
    /// Keeps a server's URL under a name, and the token given by --token or WARREN_TOKEN with it.
    #[command(
        after_help = "Examples:\n  warren context add lab https://lab.example:8443\n  WARREN_TOKEN=… warren context add lab https://lab.example:8443 --use"
    )]
    Add {
        /// A name for it
        #[arg(value_name = "NAME")]
        name: String,
        /// Its URL
        #[arg(value_name = "URL")]
        url: String,
        /// Use it from now on
        #[arg(long = "use")]
        select: bool,
    },
    /// Use a context from now on
    ///
    /// Makes NAME the server that commands talk to where neither --server nor WARREN_SERVER is given.
    #[command(
        after_help = "Examples:\n  warren context use lab\n  warren context use --none    Back to the server on this machine"
    )]
    Use {
        /// Its name
        #[arg(value_name = "NAME", required_unless_present = "none")]
        name: Option<String>,
        /// None of them: the server on this machine
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Remove contexts
    ///
    /// Forgets each context with its token. The servers themselves are not touched.
    #[command(after_help = "Examples:\n  warren context rm lab\n  warren context rm lab office")]
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show which server commands talk to
    ///
    /// Prints the server that the options, the environment and the contexts together lead to, or that
    /// of the context NAME, and whether there is a token for it.
    #[command(after_help = "Examples:\n  warren context show\n  warren context show lab -o json")]
    Show {
        /// A context's name; what is in use when absent
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
}

const VERSION_EXAMPLES: &str = "\
Examples:
  warren version                          This program's and the server's
  warren version --client                 This program's alone
  warren version -o json";

/// Show versions
///
/// Prints this program's version and that of the server it talks to. A server that does not answer is
/// a failure, unless --client is given.
#[derive(Debug, Clone, Args)]
#[command(after_help = VERSION_EXAMPLES)]
pub(crate) struct VersionArgs {
    /// Do not ask the server
    #[arg(long)]
    pub(crate) client: bool,
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  warren completion bash > /etc/bash_completion.d/warren
  warren completion zsh > \"${fpath[1]}/_warren\"
  warren completion fish > ~/.config/fish/completions/warren.fish
  source <(warren completion bash)        For this shell only";

/// Print a completion script for a shell
///
/// Prints a script that teaches your shell the commands and options of this program.
#[derive(Debug, Clone, Args)]
#[command(after_help = COMPLETION_EXAMPLES)]
pub(crate) struct CompletionArgs {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

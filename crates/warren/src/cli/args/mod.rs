//! The words of the command line: every command, its options, and the help that teaches them. Nothing
//! is carried out here; `commands` does that.

mod commit;
mod copy;
mod debug;
mod images;
mod instances;
mod operations;
mod run;
mod settings;
mod ssh;
mod storage;

pub(crate) use commit::CommitArgs;
pub(crate) use copy::CopyArgs;
pub(crate) use debug::{BundleArgs, DebugCommand};
pub(crate) use images::{
    ExportArgs, ExportFormat, ImagesArgs, LoadArgs, PullArgs, PushArgs, RmiArgs, SaveArgs,
    SaveFormat,
};
pub(crate) use instances::{
    AttachArgs, EventsArgs, ExecArgs, ExecsArgs, InspectArgs, LogSource, LogsArgs, NamesArgs,
    PsArgs, RemoveArgs, StatsArgs, TopArgs, TopOrder, WaitArgs,
};
pub(crate) use operations::{OperationsArgs, OperationsCommand};
pub(crate) use run::{NetworkChoice, PullPolicy, RunArgs};
pub(crate) use settings::{CompletionArgs, ContextArgs, ContextCommand, VersionArgs};
pub(crate) use ssh::{SshArgs, with_ssh_words_apart};
pub(crate) use storage::{DfArgs, ImageCommand, PruneArgs, SystemCommand, VerifyArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};

const ROOT_EXAMPLES: &str = "\
Getting started:
  warren pull nginx:1.27                             Fetch an image
  warren run -d -p 8090:80 --name web nginx:1.27     Start a microVM from it, with a published port
  warren ps                                          See what runs
  warren exec -it web sh                             A shell inside
  warren logs -f web                                 Its output
  warren cp ./site web:/srv                          Files in, and out
  warren ssh web                                     Log in, with ssh and all that it can
  warren rm -f web                                   Stop it and remove everything of it

Exit codes:
  run and exec give the guest command's own exit code; 126 and 127 mean that it could not be
  executed or was not found, 125 that Warren itself failed. Elsewhere 0 is success, 1 a failure,
  2 a mistake on the command line, 130 an interruption.

Every command explains itself: warren COMMAND --help";

/// Run virtual machines: OCI images as microVMs, behind one command and one API.
///
/// Commands talk to a Warren server: the one that --server, WARREN_SERVER or the current context
/// names, else the one on this machine. Data goes to stdout, everything else to stderr.
#[derive(Debug, Parser)]
#[command(
    name = "warren",
    version,
    after_help = ROOT_EXAMPLES,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true,
    infer_long_args = false
)]
pub(crate) struct Cli {
    /// Options that every command has.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command has.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The server's URL, such as http://127.0.0.1:8080
    #[arg(long, global = true, env = "WARREN_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The token the server wants to see; better in the environment, where others do not see it
    #[arg(
        long,
        global = true,
        env = "WARREN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<String>,
    /// Use this context instead of the current one
    #[arg(long, global = true, env = "WARREN_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// How to print: a table for people; json and yaml are the API's own objects; name is one per line
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_enum,
        value_name = "FORMAT"
    )]
    pub(crate) output: Option<OutputFormat>,
    /// No colours (also when NO_COLOR is set or the output is not a terminal)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// No progress and no messages; lists print ids only
    #[arg(short = 'q', long, global = true)]
    pub(crate) quiet: bool,
}

impl Global {
    /// Whether JSON was asked for.
    pub(crate) fn prints_json(&self) -> bool {
        self.output == Some(OutputFormat::Json)
    }
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// The API's objects as JSON
    Json,
    /// The API's objects as YAML
    Yaml,
    /// One name per line
    Name,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    // The workload's life.
    Run(Box<RunArgs>),
    Exec(ExecArgs),
    Attach(AttachArgs),
    Execs(ExecsArgs),
    Cp(CopyArgs),
    Ssh(SshArgs),
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    Logs(LogsArgs),
    Inspect(InspectArgs),
    Stats(StatsArgs),
    Top(TopArgs),
    Events(EventsArgs),
    /// Start stopped instances
    ///
    /// Starts each instance again with the disk it had: what its workload wrote is still there.
    #[command(after_help = START_EXAMPLES)]
    Start(NamesArgs),
    /// Stop running instances
    ///
    /// Sends each workload its stop signal, kills it when it has not ended within its grace period
    /// (`warren run --stop-timeout`), and waits until the machine is off. The disk stays: `warren
    /// start` brings it back.
    #[command(after_help = STOP_EXAMPLES)]
    Stop(NamesArgs),
    /// Stop instances and start them again
    ///
    /// Stops each instance as `warren stop` does, waits until it has stopped and starts it again with
    /// the disk it had.
    #[command(after_help = RESTART_EXAMPLES)]
    Restart(NamesArgs),
    /// Stop the processors of instances
    ///
    /// Freezes each instance where it is. Memory stays in use, connections stay open until the other
    /// side gives up. `warren resume` lets it go on.
    #[command(after_help = PAUSE_EXAMPLES)]
    Pause(NamesArgs),
    /// Let paused instances go on
    ///
    /// Undoes `warren pause`: each instance goes on where it was frozen.
    #[command(after_help = RESUME_EXAMPLES, visible_alias = "unpause")]
    Resume(NamesArgs),
    /// Put instances into standby
    ///
    /// Saves each instance's memory beside its disk and ends its machine: it takes no memory and no processor of the host, also
    /// after the host was off. Connections to it end. `warren restore` brings it back to where it was. An instance that
    /// cannot be saved runs on.
    #[command(after_help = STANDBY_EXAMPLES)]
    Standby(NamesArgs),
    /// Bring instances back from standby
    ///
    /// Undoes `warren standby`: each instance goes on where it was, under the same address, with its clock set.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(NamesArgs),
    Wait(WaitArgs),
    #[command(visible_alias = "delete")]
    Rm(RemoveArgs),
    // Images.
    Images(ImagesArgs),
    Pull(PullArgs),
    Load(LoadArgs),
    Commit(CommitArgs),
    Push(PushArgs),
    Save(SaveArgs),
    Rmi(RmiArgs),
    /// Look after images
    ///
    /// Commands for one image on the server, beyond fetching and removing it.
    Image {
        /// What to do.
        #[command(subcommand)]
        command: ImageCommand,
    },
    Prune(PruneArgs),
    // What takes long, and what went wrong.
    Operations(OperationsArgs),
    /// Look for faults
    ///
    /// Commands for when an instance does not do what it should.
    Debug {
        /// What to do.
        #[command(subcommand)]
        command: DebugCommand,
    },
    // About this program.
    Context(ContextArgs),
    Version(VersionArgs),
    Completion(CompletionArgs),
    /// Look after the installation
    ///
    /// Commands for what Warren has on a machine beyond its instances: the room it takes, its record of what
    /// should be, and its network.
    System {
        /// What to do.
        #[command(subcommand)]
        command: SystemCommand,
    },
    // On the host itself, without a server.
    #[command(flatten)]
    Host(crate::server::HostCommand),
}

const START_EXAMPLES: &str = "\
Examples:
  warren start web                    Start one instance
  warren start web db cache           Start several; failures are reported at the end
  warren start $(warren ps -aq --filter state=stopped)";

const RESTART_EXAMPLES: &str = "\
Examples:
  warren restart web                  Stop it, wait, start it
  warren restart web db               Several at the same time";

const STOP_EXAMPLES: &str = "\
Examples:
  warren stop web                     Ask it to end, and wait
  warren stop web db                  Several at the same time
  warren stop $(warren ps -q)         Stop all that run";

const PAUSE_EXAMPLES: &str = "\
Examples:
  warren pause web                    Freeze one instance
  warren pause $(warren ps -q)        Freeze all that run";

const RESUME_EXAMPLES: &str = "\
Examples:
  warren resume web                   Let it go on
  warren resume $(warren ps -q --filter state=paused)";

const STANDBY_EXAMPLES: &str = "\
Examples:
  warren standby web                  Save its memory and free what it takes
  warren standby $(warren ps -q)      All that run";

const RESTORE_EXAMPLES: &str = "\
Examples:
  warren restore web                  Let it go on where it was
  warren restore $(warren ps -aq --filter state=standby)
  warren stop web                     Or give up its memory: it starts from its disk then";

#[cfg(test)]
mod tests;

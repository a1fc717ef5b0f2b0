//! The words of the commands about instances that exist.

use crate::cli::values::{
    EnvWord, Filter, parse_env, parse_filter, parse_moment, parse_period, parse_wait,
};
use clap::{Args, ValueEnum};
use std::time::Duration;
use time::OffsetDateTime;

/// Names, ids, or unambiguous beginnings of ids.
#[derive(Debug, Clone, Args)]
pub(crate) struct NamesArgs {
    /// Names, ids, or beginnings of ids (four characters at least)
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  warren exec web ls -l /var/log          Run a command and show its output
  warren exec -it web sh                  A shell, with your terminal's size and keys
  warren exec -u nobody -w /tmp -e A=1 web env
  tar c . | warren exec -i web tar x -C /srv
  warren exec -d web backup.sh            Start it, print its id, and leave it running
  warren exec -it --keep web sh           A shell to leave (Ctrl-P Ctrl-Q) and come back to";

/// Run a command in a running instance
///
/// Runs COMMAND next to the instance's workload, with its environment and user unless told otherwise.
/// The command's exit code becomes this program's own. With -t every key, Ctrl-C included, goes to
/// the guest; without it Ctrl-C is passed on as a signal. A command ends with its connection, unless it
/// was started with -d or --keep: `warren execs NAME` lists those, `warren attach --exec ID NAME` goes
/// back to one.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = EXEC_EXAMPLES,
    override_usage = "warren exec [OPTIONS] NAME COMMAND..."
)]
pub(crate) struct ExecArgs {
    /// Send standard input to the command
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Set a variable, or pass on your own value of it
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub(crate) env: Vec<EnvWord>,
    /// Run as this user, by name or number
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Run in this directory
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Kill the command after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub(crate) timeout: Option<Duration>,
    /// Print the command's id and leave it running
    #[arg(short = 'd', long)]
    pub(crate) detach: bool,
    /// Leave it running when you leave it, or the connection breaks
    #[arg(long, conflicts_with = "detach")]
    pub(crate) keep: bool,
    /// An instance's name or id, and what to run; everything after the name belongs to the command
    // One argument for both: only so does the command begin right after the name.
    #[arg(
        value_names = ["NAME", "COMMAND"],
        num_args = 2..,
        required = true,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

impl ExecArgs {
    /// The instance.
    pub(crate) fn name(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    /// The command.
    pub(crate) fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

const ATTACH_EXAMPLES: &str = "\
Examples:
  warren attach web                       See what it writes from now on; type into it
  warren attach --no-stdin web            Only see
  warren attach --exec 3f09c1d2aa web     Go back to a command of `warren execs web`
  Ctrl-P Ctrl-Q                           Leave it running (where it has a terminal)";

/// Connect to an instance's workload
///
/// Connects your terminal to the workload itself: its terminal if it was run with -t, else its output
/// and, if it was run with -i, its input. Leaving does not stop it, unless Ctrl-C reaches a terminal
/// whose program ends by it. Earlier output is in `warren logs`. With --exec it is a command that was
/// started with `warren exec -d` or --keep, and its newest output is shown first.
#[derive(Debug, Clone, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub(crate) struct AttachArgs {
    /// Do not send standard input
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// A command beside the workload, by its id
    #[arg(long, value_name = "ID")]
    pub(crate) exec: Option<String>,
    /// An instance's name or id
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

const EXECS_EXAMPLES: &str = "\
Examples:
  warren execs web                        What was left running, and what has ended
  warren execs web -o json | jq -r '.[] | select(.state == \"running\") | .id'
  warren execs web --remove 3f09c1d2aa    End it, if it runs, and forget it";

/// List commands that run without a connection
///
/// Shows the commands that were started with `warren exec -d` or --keep in an instance: those that run
/// and those that have ended, with their exit codes. The guest keeps the newest 32 of them, and of each
/// the newest 256 KiB of output, as long as it runs.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXECS_EXAMPLES)]
pub(crate) struct ExecsArgs {
    /// End this one, if it runs, and forget it
    #[arg(long = "remove", value_name = "ID")]
    pub(crate) removed: Vec<String>,
    /// An instance's name or id
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

const PS_EXAMPLES: &str = "\
Examples:
  warren ps                               What runs
  warren ps -a                            Stopped instances too
  warren ps -a --filter state=stopped --filter label=tier=web
  warren ps -o json | jq -r '.[].private_ip'";

/// List instances
///
/// Shows the instances that are not stopped, with their image, state, address and published ports;
/// with -a all of them. With -q only ids are printed, for use in other commands.
#[derive(Debug, Clone, Args)]
#[command(after_help = PS_EXAMPLES)]
pub(crate) struct PsArgs {
    /// Stopped ones too
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Only those with state=STATE, label=KEY[=VALUE] or name=TEXT; a state filter implies -a
    #[arg(short = 'f', long = "filter", value_name = "FILTER", value_parser = parse_filter)]
    pub(crate) filters: Vec<Filter>,
    /// Do not shorten anything
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  warren logs web                         All output that is kept
  warren logs -f --tail 20 web            The last 20 lines, and what follows
  warren logs --since 1h --until 10m web  An hour ago, up to ten minutes ago
  warren logs --source console web        The guest kernel's and agent's messages
  warren logs web 2>/dev/null             Only what it wrote to its stdout";

/// Show an instance's output
///
/// Prints what the workload wrote: its stdout to stdout, its stderr to stderr. On a terminal, colours
/// pass and other escape sequences are taken out unless --raw is given. With -f it goes on until the
/// instance has stopped for good.
#[derive(Debug, Clone, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Go on with what is written from now on
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// Only what was written at this time or later: 2026-01-31T12:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) since: Option<OffsetDateTime>,
    /// Only what was written before this time; with -f, it ends then
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub(crate) until: Option<OffsetDateTime>,
    /// Whose output
    #[arg(long, value_enum, default_value_t, value_name = "SOURCE")]
    pub(crate) source: LogSource,
    /// Put the time before each line
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Show it as it is, terminal escapes included
    #[arg(long)]
    pub(crate) raw: bool,
    /// An instance's name or id
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `--source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogSource {
    /// What the workload wrote
    #[default]
    Workload,
    /// The guest's serial console
    Console,
    /// The hypervisor's own messages
    Vmm,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  warren inspect web                      Everything about it, as JSON
  warren inspect -o yaml web db           Several, as YAML
  warren inspect web | jq '.[0].network'";

/// Show everything about instances
///
/// Prints the API's own objects: what was asked for and what the host sees. Always a list, so that a
/// script reads one and several in the same way.
#[derive(Debug, Clone, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Names or ids of instances
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const STATS_EXAMPLES: &str = "\
Examples:
  warren stats                            All that run, refreshed every two seconds
  warren stats --no-stream web            One instance, once
  warren stats --no-stream -o json";

/// Show what instances use
///
/// Processor share, memory, network and disk of the named instances, or of all that run. On a terminal
/// the table is refreshed until Ctrl-C; elsewhere, or with --no-stream, it is printed once.
#[derive(Debug, Clone, Args)]
#[command(after_help = STATS_EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Print once
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Names or ids of instances; all that run when absent
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const TOP_EXAMPLES: &str = "\
Examples:
  warren top                              All that run, the busiest first
  warren top --sort disk --every 5s       Who reads and writes most, every five seconds
  warren top --rounds 1 -o wide web       One instance, once, with everything
  warren top -o json                      One line of JSON each round";

/// Watch what instances do
///
/// Processor share, memory as the host and as the guest see it, and how fast disks and networks are read and
/// written, of the named instances or of all that run; refreshed until Ctrl-C. Shares are of one processor.
/// What only a guest can say is missing while it is silent.
#[derive(Debug, Clone, Args)]
#[command(after_help = TOP_EXAMPLES)]
pub(crate) struct TopArgs {
    /// What the first one has most of
    #[arg(short = 's', long, value_enum, default_value_t, value_name = "WHAT")]
    pub(crate) sort: TopOrder,
    /// Time between two rounds, such as 5s
    #[arg(short = 'e', long, value_name = "TIME", default_value = "2s", value_parser = parse_period)]
    pub(crate) every: Duration,
    /// End after so many rounds
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: Option<u64>,
    /// Names or ids of instances; all that run when absent
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// `--sort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum TopOrder {
    /// Processor time
    #[default]
    Cpu,
    /// Memory of its machine
    Memory,
    /// Bytes read and written
    Disk,
    /// Bytes received and sent
    Network,
    /// Nothing: by name
    Name,
}

const EVENTS_EXAMPLES: &str = "\
Examples:
  warren events                           What happens from now on
  warren events --since 0                 Everything that is still known, and what follows
  warren events -o json --filter state=stopped";

/// Watch what happens
///
/// Prints each change of each instance as it happens, until Ctrl-C. A connection that is lost is made
/// again where it ended, so nothing is missed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EVENTS_EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Begin after the event with this id
    #[arg(long, value_name = "ID")]
    pub(crate) since: Option<u64>,
    /// Only those with name=TEXT or, for state changes, the new state state=STATE
    #[arg(short = 'f', long = "filter", value_name = "FILTER", value_parser = parse_filter)]
    pub(crate) filters: Vec<Filter>,
}

const WAIT_EXAMPLES: &str = "\
Examples:
  warren wait job                         Print its exit code once it has ended
  warren wait job-1 job-2                 One code a line, in this order
  warren wait --timeout 5m job || echo 'still running'";

/// Wait until instances have stopped
///
/// Waits until each instance has stopped and prints its workload's exit code, one a line. Its own exit
/// code is 0 whatever they are; 1 when the time was up or an instance is not there.
#[derive(Debug, Clone, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Give up after this time, such as 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub(crate) timeout: Option<Duration>,
    /// Names or ids of instances
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const RM_EXAMPLES: &str = "\
Examples:
  warren rm web                           Remove a stopped instance and its disk
  warren rm -f web                        Even when it runs
  warren rm $(warren ps -aq --filter state=stopped)";

/// Remove instances
///
/// Removes each instance with its disk: what it wrote is gone. One that runs is refused unless -f is
/// given. Names and whole ids are taken, beginnings of ids are not.
#[derive(Debug, Clone, Args)]
#[command(after_help = RM_EXAMPLES)]
pub(crate) struct RemoveArgs {
    /// Also those that run; they are killed
    #[arg(short = 'f', long)]
    pub(crate) force: bool,
    /// Names or ids of instances
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

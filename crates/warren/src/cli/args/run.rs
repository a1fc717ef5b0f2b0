//! The words of `run`.

use crate::cli::values::{
    EnvWord, Restart, Size, parse_env, parse_hypervisor, parse_pair, parse_restart, parse_unit_size,
};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use warren_api::instance::Hypervisor;
use warren_core::network::PortMapping;

const EXAMPLES: &str = "\
Examples:
  warren run --rm alpine uname -a             Run one command and leave nothing behind
  warren run -it --rm debian bash             A shell; Ctrl-P Ctrl-Q leaves it running
  warren run -d --name web -p 8090:80 nginx   In the background, reachable at port 8090
  warren run -d --restart on-failure:5 --memory 512M -e LOG=debug myapp
  echo hello | warren run -i --rm alpine cat  Standard input goes into the guest

In the foreground without -t, Ctrl-C asks the workload to stop; a second Ctrl-C kills it.";

/// Create an instance from an image and run it
///
/// Makes a microVM from an OCI image and runs the image's command, or COMMAND, in it. An image that
/// is not there is pulled. In the foreground, output is shown and the command's exit code becomes
/// this program's own; with -d the instance's id is printed and it runs on its own.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "warren run [OPTIONS] IMAGE [COMMAND...]"
)]
pub(crate) struct RunArgs {
    /// Publish a guest's port on the host; tcp unless /udp is added
    #[arg(short = 'p', long = "publish", value_name = "HOST:GUEST[/udp]")]
    pub(crate) publish: Vec<PortMapping>,
    /// Set a variable, or pass on your own value of it
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = parse_env)]
    pub(crate) env: Vec<EnvWord>,
    /// Read variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run in the background and print the id
    #[arg(short = 'd', long)]
    pub(crate) detach: bool,
    /// Send standard input to the workload
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the workload a terminal
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// A name to call it by; made from the image's when absent
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(short = 'm', long, value_name = "SIZE", value_parser = parse_unit_size)]
    pub(crate) memory: Option<Size>,
    /// Size of the writable disk, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_unit_size)]
    pub(crate) disk: Option<Size>,
    /// Remove the instance when its workload has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Attach a label
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// When to start the workload again: never, always, on-failure, on-failure:N
    #[arg(long, value_name = "POLICY", value_parser = parse_restart)]
    pub(crate) restart: Option<Restart>,
    /// Run this program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Run as this user, by name or number
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Run in this directory
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The guest's host name; made from its name when absent
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Let root log in with this public key, such as ~/.ssh/id_ed25519.pub: for sshd in the image, and the SSH gateway
    #[arg(long = "ssh-key", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) ssh_keys: Vec<std::path::PathBuf>,
    /// Which hypervisor: auto, qemu-microvm, qemu, cloud-hypervisor, firecracker, …
    #[arg(long, value_name = "HYPERVISOR", value_parser = parse_hypervisor)]
    pub(crate) hypervisor: Option<Hypervisor>,
    /// Whether the guest has a network
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK")]
    pub(crate) network: NetworkChoice,
    /// Seconds between the stop signal and the kill
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) stop_timeout: Option<u64>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) pull: PullPolicy,
    /// The registry speaks plain HTTP (one on your own machine, usually)
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Show the guest's output as it is, terminal escapes included
    #[arg(long)]
    pub(crate) raw: bool,
    /// An image's reference, id or digest, and what to run instead of its command; everything after
    /// the image belongs to the command
    // One argument for both: only so does the guest's command begin right after the image, whatever
    // it begins with.
    #[arg(
        value_names = ["IMAGE", "COMMAND"],
        num_args = 1..,
        required = true,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

impl RunArgs {
    /// The image.
    pub(crate) fn image(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    /// The command; empty means the image's own.
    pub(crate) fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum NetworkChoice {
    /// The host's guest network
    #[default]
    Default,
    /// No interface at all
    None,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum PullPolicy {
    /// When it is not there
    #[default]
    Missing,
    /// Every time, for a tag that may have moved
    Always,
    /// Never: fail when it is not there
    Never,
}

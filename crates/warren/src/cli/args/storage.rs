//! The words of the commands about the room that things take, and about what becomes of them.

use super::images::ExportArgs;
use clap::{Args, Subcommand};

/// What to do with an image.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    Verify(VerifyArgs),
    Export(ExportArgs),
}

/// What to do with the installation.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    Df(DfArgs),
    // On the host itself.
    #[command(flatten)]
    Host(Box<crate::server::SystemCommand>),
}

const DF_EXAMPLES: &str = "\
Examples:
  warren system df                What takes room, and what of it can go
  warren system df -v             Each image, layer and instance
  warren system df -o json | jq .total_bytes";

/// Show what takes room on the server
///
/// Counts the images with what they share, the disks of instances and their logs, as the server's file system has
/// allocated them: holes take nothing, and a layer that several images have is counted once. What can be reclaimed is
/// what `warren prune --all` frees.
#[derive(Debug, Clone, Args)]
#[command(after_help = DF_EXAMPLES)]
pub(crate) struct DfArgs {
    /// Each image, layer and instance by itself
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  warren prune --dry-run          What would go
  warren prune                    Layers and disks that no image needs any more
  warren prune --all              The images that no instance uses, too";

/// Make room by removing what nothing needs
///
/// Removes the layers and disks that no image needs any more: of tags that moved on, of pulls that were interrupted.
/// Pulls and loads that failed are forgotten. With --all, the images go too that no instance uses. What an instance runs from always stays, and so does what is being
/// pulled or pushed.
#[derive(Debug, Clone, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    /// Also remove the images that no instance uses
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  warren image verify nginx:1.27            Whether it is still what came
  warren image verify --all                 Every image on the server
  warren image verify --repair nginx:1.27   Make its disk again from its layers

Exit status: 0 all is as it came, 1 something is not (or could not be read).";

/// Read images again and compare them with their digests
///
/// Hashes the manifest, the configuration, the layers and the disk of each image, and names what is damaged or missing.
/// With --repair a damaged disk is made again from its layers; a damaged layer is removed, so that the next `warren pull`
/// brings it.
#[derive(Debug, Clone, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Every image
    #[arg(long, conflicts_with = "images")]
    pub(crate) all: bool,
    /// Put right what can be
    #[arg(long)]
    pub(crate) repair: bool,
    /// References, ids or digests
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

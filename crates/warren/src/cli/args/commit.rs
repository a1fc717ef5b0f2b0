//! The words of `warren commit`.

use clap::Args;

const COMMIT_EXAMPLES: &str = "\
Examples:
  warren commit web team/web:2                                What web has changed, on top of its image
  warren commit -c 'CMD [\"/srv/app\"]' -c 'ENV MODE=live' web team/web:2
  warren commit -m 'with the new certificates' -q web team/web:2 && warren run -d team/web:2
  warren commit -o json web team/web:2 | jq -r '.[].digest'";

/// Make an image of what an instance has changed
///
/// The files that the instance has written, changed and removed become a layer on top of the image it runs
/// from, and the result is an image under REFERENCE: ready to run, to push and to save. A running instance
/// holds still for a moment while its disk is copied, and loses nothing; a stopped one can be committed too.
///
/// What the image runs stays as it was, unless --change says otherwise. /etc/hosts, /etc/hostname and
/// /etc/resolv.conf are not part of it: every start writes them anew. Nor is what the instance was started
/// with (environment, command), or what is in its memory. The same changes always give the same image.
#[derive(Debug, Clone, Args)]
#[command(after_help = COMMIT_EXAMPLES)]
pub(crate) struct CommitArgs {
    /// Change the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or
    /// WORKDIR, written as in a Dockerfile; may be given several times
    #[arg(short = 'c', long = "change", value_name = "INSTRUCTION")]
    pub(crate) changes: Vec<String>,
    /// Who made it, for the image's history
    #[arg(short = 'a', long, value_name = "AUTHOR")]
    pub(crate) author: Option<String>,
    /// What it is for, for the image's history
    #[arg(short = 'm', long, value_name = "MESSAGE")]
    pub(crate) message: Option<String>,
    /// An id of your own for it
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The instance's name or id
    #[arg(value_name = "NAME")]
    pub(crate) instance: String,
    /// The reference to give the image
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

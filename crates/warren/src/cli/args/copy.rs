//! The words of `warren cp`.

use clap::Args;

const CP_EXAMPLES: &str = "\
Examples:
  warren cp web:/var/log/app.log .            One file out
  warren cp ./site web:/srv                   A directory in: /srv/site, or /srv where that is not there yet
  warren cp ./site/. web:/srv                 What is in it
  warren cp -a web:/srv ./backup              With owners, as root
  warren cp web:/etc - | tar -t               As a tar archive to standard output
  tar -c site | warren cp - web:/srv          A tar archive from standard input";

/// Copy files into an instance or out of it
///
/// One of SOURCE and DESTINATION is NAME:PATH, a path inside a running instance; the other one is a path here, or - for a tar
/// archive on standard input or output. A directory is copied with all that is in it: links, hard links, sparse files, modes and
/// times stay what they are.
///
/// Where DESTINATION is a directory that is there, SOURCE is copied into it; else it becomes DESTINATION. SOURCE/. means what is in
/// SOURCE. Files that are there are replaced, each one whole or not at all: what breaks off leaves no half file under its name.
///
/// Nothing that is in an instance can make this command write beside DESTINATION, or through a link there. Devices and named
/// pipes do not come out of an instance, but in an archive on standard output.
#[derive(Debug, Clone, Args)]
#[command(after_help = CP_EXAMPLES)]
pub(crate) struct CopyArgs {
    /// Keep owners, setuid and all extended attributes; else copies belong to root inside, and to you outside
    #[arg(short = 'a', long)]
    pub(crate) archive: bool,
    /// Follow SOURCE where it is a symbolic link
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// NAME:PATH, a path, or -
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// NAME:PATH, a path, or -
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
}

//! `warren fsck` and `warren system backup`, `restore`, `recover`: through the server where one runs, else on
//! the data directory itself, with its lock held.

mod offline;
mod shown;

use super::block_on;
use super::config::{Config, ServerFlags};
use super::data_dir::{DataDir, Served};
use crate::cli::{CliError, Global, Output, client_of};
use clap::Args;
use futures::StreamExt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::io::AsyncWriteExt;
use warren_api::client::{Client, ClientError};
use warren_api::upkeep::Check;
use warren_control::records::Missing;

/// The exit status of a check that could not be made.
const NOT_CHECKED: u8 = 2;

/// Compare the record with what is on this host
///
/// Lists every process, network device, rule, mount, file and record that belongs to this installation and should
/// not be there, and everything that should be there and is not; says of each what to do about it. Asks the server,
/// or looks at the data directory itself where none runs. Changes nothing without --repair.
#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Put right what a program can: take leaks away, complete the record. No disk and no directory of an instance
    /// is ever removed by it
    #[arg(long)]
    repair: bool,
    /// Also list everything that is there and belongs there
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub(super) server: ServerFlags,
}

pub(super) const FSCK_EXAMPLES: &str = "\
Examples:
  warren fsck                              What differs, and what to do about it
  warren fsck --repair                     Put right what a program can
  warren fsck -o json | jq .inventory      Everything of this installation on this host
  DATA_DIR=/srv/warren warren fsck         Another installation, without its server

Exit status: 0 record and host agree, 1 they differ (or a repair failed), 2 it could not be found out.";

/// Rebuild the record from what is on this host
///
/// For a record that was lost, restored from a backup, or replaced by an older copy. The server says so when it
/// starts, shows what runs and touches nothing until this has been run. Every instance that has a directory here is
/// recorded again with its name, address and ports; nothing is started, stopped or restarted. Instances that are
/// recorded and have nothing here were deleted since, and stay deleted.
#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Make instances anew that are recorded and have nothing on this host, instead of forgetting them: for a record
    /// that was brought to another machine. Their disks are empty
    #[arg(long)]
    recreate: bool,
    #[command(flatten)]
    pub(super) server: ServerFlags,
}

pub(super) const RECOVER_EXAMPLES: &str = "\
Examples:
  warren system recover
  warren system recover -o json
  warren system recover --recreate     On a new machine: instances begin anew, with empty disks";

/// Copy the record into a file
///
/// One moment of everything that was asked for: instances, names, addresses, ports. Taken while the server goes on.
/// Images and disks are not in it. The file holds environment variables, secrets among them: only you can read it.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where to; there must be no file of that name
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pub(super) server: ServerFlags,
}

pub(super) const BACKUP_EXAMPLES: &str = "\
Examples:
  warren system backup /backup/warren-$(date +%F).db
  warren --server https://lab:8443 system backup lab.db";

/// Put a backup in the place of the record
///
/// Refused while a server runs. What was there is kept in the data directory, in set-aside. Start the server and
/// run `warren system recover` afterwards: until then nothing on the host is touched.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A file that `warren system backup` made, with this version or an older one
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pub(super) server: ServerFlags,
}

pub(super) const RESTORE_EXAMPLES: &str = "\
Examples:
  systemctl stop warren
  warren system restore /backup/warren-2026-01-31.db
  systemctl start warren
  warren system recover";

/// Who answers.
enum Reached {
    /// A server.
    Server(Client),
    /// Nobody: the data directory is ours as long as this lives.
    Offline(Box<DataDir>),
}

/// A server that was named is asked. Else the data directory of this configuration decides: a server that holds it
/// is asked where it usually answers; one that nobody holds is looked at.
async fn reach(config: &Config, global: &Global) -> Result<Reached, CliError> {
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let exists = DataDir::exists(&config.data_dir);
    let mut client = client_of(global)?;
    // Where neither is named, the server that other commands go to counts more than a directory that nobody uses.
    let usual = config.data_dir == super::config::default_data_dir();
    if !named(&global.server) && !named(&global.context) && exists {
        match DataDir::open(&config.data_dir) {
            Ok(_) if usual && client.health().await.is_ok() => return Ok(Reached::Server(client)),
            Ok(data) => return Ok(Reached::Offline(Box::new(data))),
            // The one that holds it, wherever others of this user's commands go.
            Err(error) if error.is::<Served>() => {
                let address = SocketAddr::new(config.listen, config.port);
                client = Client::new(&format!("http://{address}"), global.token.clone())?;
            }
            Err(error) => return Err(CliError::plain(format!("{error:#}"))),
        }
    }
    match client.health().await {
        Ok(_) => Ok(Reached::Server(client)),
        Err(ClientError::Unreachable { server, reason }) if exists => {
            match DataDir::open(&config.data_dir) {
                Ok(data) => Ok(Reached::Offline(Box::new(data))),
                Err(error) if error.is::<Served>() => Err(CliError::refused(
                    format!(
                        "a server uses {}, and does not answer at {server}: {reason}",
                        config.data_dir.display()
                    ),
                    "name its address with --server, or stop it",
                )),
                Err(error) => Err(CliError::plain(format!("{error:#}"))),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs a command of this module, and says how it went.
fn run(global: &Global, own: u8, command: impl Future<Output = Result<u8, CliError>>) -> ExitCode {
    block_on(async {
        Ok(match command.await {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                if !error.is_broken_pipe() {
                    Output::new(global).error(&error);
                }
                ExitCode::from(error.exit_code(own))
            }
        })
    })
}

/// `warren fsck`
pub(super) fn fsck(args: &FsckArgs, config: Config, global: &Global) -> ExitCode {
    run(global, NOT_CHECKED, async {
        let out = Output::new(global);
        let check = match reach(&config, global).await? {
            Reached::Server(client) if args.repair => client.repair().await?,
            Reached::Server(client) => client.check().await?,
            Reached::Offline(data) => {
                out.note(format!(
                    "no server runs: looking at {} itself",
                    data.root().display()
                ));
                offline::check(&config, &data, args.repair).await?
            }
        };
        shown::check(&out, &check, args.all)?;
        Ok(status(&check))
    })
}

fn status(check: &Check) -> u8 {
    if check.clean && check.failed.is_empty() {
        0
    } else {
        1
    }
}

/// `warren system recover`
pub(super) fn recover(args: &RecoverArgs, config: Config, global: &Global) -> ExitCode {
    run(global, 1, async {
        let out = Output::new(global);
        let (missing, word) = if args.recreate {
            (Missing::Recreate, "recreate")
        } else {
            (Missing::Forget, "forget")
        };
        let recovery = match reach(&config, global).await? {
            Reached::Server(client) => client.recover(word).await?,
            Reached::Offline(data) => offline::recover(&data, missing).await?,
        };
        shown::recovery(&out, &recovery)?;
        Ok(u8::from(!recovery.unreadable.is_empty()))
    })
}

/// `warren system backup`
pub(super) fn backup(args: &BackupArgs, config: Config, global: &Global) -> ExitCode {
    run(global, 1, async {
        let file = std::path::absolute(&args.file).map_err(|source| CliError::File {
            what: args.file.display().to_string(),
            source,
        })?;
        match reach(&config, global).await? {
            Reached::Server(client) => fetch(&client, &file).await?,
            Reached::Offline(data) => offline::backup(&data, &file).await?,
        }
        shown::file(&Output::new(global), "backed up to", &file)?;
        Ok(0)
    })
}

/// Receives a backup into the new file `to`: whole, or not at all.
async fn fetch(client: &Client, to: &Path) -> Result<(), CliError> {
    let failed = |source| CliError::File {
        what: to.display().to_string(),
        source,
    };
    let directory = to.parent().unwrap_or(Path::new("/"));
    if to.exists() {
        return Err(CliError::refused(
            format!("there is already a file {}", to.display()),
            "choose another name",
        ));
    }
    // Its owner alone can read it, and it goes when this fails.
    let part = tempfile::Builder::new()
        .prefix(".warren-backup-")
        .tempfile_in(directory)
        .map_err(failed)?;
    let mut file = tokio::fs::File::from_std(part.reopen().map_err(failed)?);
    let mut copy = std::pin::pin!(client.backup().await?);
    while let Some(chunk) = copy.next().await {
        file.write_all(&chunk?).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    part.persist_noclobber(to)
        .map_err(|error| failed(error.error))?;
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

/// `warren system restore`
pub(super) fn restore(args: &RestoreArgs, config: Config, global: &Global) -> ExitCode {
    run(global, 1, async {
        let out = Output::new(global);
        if !args.file.is_file() {
            return Err(CliError::plain(format!(
                "there is no file {}",
                args.file.display()
            )));
        }
        let data = DataDir::open(&config.data_dir).map_err(|error| {
            if error.is::<Served>() {
                CliError::refused(
                    format!("a server uses {}", config.data_dir.display()),
                    "stop it first: instances go on running",
                )
            } else {
                CliError::plain(format!("{error:#}"))
            }
        })?;
        offline::restore(&data, &args.file).await?;
        shown::file(&out, "restored from", &args.file)?;
        out.note("start the server, then run `warren system recover`: until then nothing on the host is touched");
        Ok(0)
    })
}

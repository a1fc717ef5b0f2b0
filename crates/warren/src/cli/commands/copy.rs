//! `warren cp`: trees between this machine and an instance.
//!
//! The disk is on a thread of its own, and the connection on this one; between them are a few pieces, so that whoever is slower
//! makes the other one wait.

use super::delivery::{Arriving, Ended, about, deliver};
use super::{Outcome, Session};
use crate::cli::args::{CopyArgs, OutputFormat};
use crate::cli::failure::CliError;
use crate::cli::progress::transfer;
use crate::cli::session::signal_code;
use crate::cli::text::bytes;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use warren_api::client::CopyUpload;
use warren_api::{CopyDirection, CopyFormat, CopyStart, PathInfo};
use warren_tree::{
    Links, Owners, PackError, Root, Rules, Specials, Spot, UnpackError, pack, unpack,
};

/// Pieces that wait for the slower side.
const WAITING: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 64 << 10;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Stream,
    Here(PathBuf),
    Inside { instance: String, path: String },
}

/// As docker's: NAME:PATH, unless it begins with a dot or a slash.
fn place(text: &str) -> Place {
    if text == "-" {
        return Place::Stream;
    }
    match text.split_once(':') {
        Some((instance, path))
            if !instance.is_empty() && !instance.contains('/') && !instance.starts_with('.') =>
        {
            Place::Inside {
                instance: instance.to_owned(),
                path: match path.starts_with('/') {
                    true => path.to_owned(),
                    false => format!("/{path}"),
                },
            }
        }
        _ => Place::Here(text.into()),
    }
}

/// What was copied, for scripts.
#[derive(Debug, Default, Serialize)]
struct Copied {
    source: String,
    destination: String,
    /// Files, directories and links; absent for archives that went through unread.
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    bytes: u64,
}

/// `warren cp`
pub(super) async fn copy(session: &Session, args: CopyArgs) -> Outcome {
    let ended = match (place(&args.source), place(&args.destination)) {
        (Place::Inside { instance, path }, Place::Stream) => {
            to_stdout(session, &args, &instance, &path).await?
        }
        (Place::Inside { instance, path }, Place::Here(to)) => {
            out(session, &args, &instance, &path, &to).await?
        }
        (Place::Stream, Place::Inside { instance, path }) => {
            from_stdin(session, &args, &instance, &path).await?
        }
        (Place::Here(from), Place::Inside { instance, path }) => {
            into(session, &args, &from, &instance, &path).await?
        }
        (Place::Inside { .. }, Place::Inside { .. }) => {
            return Err(CliError::refused(
                "files are not copied from one instance to another",
                "copy them here first, or: warren cp ONE:PATH - | warren cp - OTHER:PATH",
            ));
        }
        (Place::Here(_) | Place::Stream, Place::Here(_) | Place::Stream) => {
            return Err(CliError::refused(
                "neither side is in an instance",
                "write one of them as NAME:PATH",
            ));
        }
    };
    let (entries, count) = match ended {
        Ended::Whole(done) => done,
        Ended::Interrupted(signal) => return Ok(signal_code(signal)),
    };
    if place(&args.destination) == Place::Stream {
        return Ok(0);
    }
    let copied = Copied {
        source: args.source,
        destination: args.destination,
        entries,
        bytes: count,
    };
    session.out.note(format!(
        "copied {} to {} ({})",
        copied.source,
        copied.destination,
        bytes(count)
    ));
    match session.out.format(OutputFormat::Table) {
        OutputFormat::Json => session.out.json(&copied)?,
        OutputFormat::Yaml => session.out.yaml(&copied)?,
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {}
    }
    Ok(0)
}

/// Entries where they were counted, and bytes.
type Counted = (Option<u64>, u64);

fn start(direction: CopyDirection, path: &str) -> CopyStart {
    CopyStart {
        direction,
        guest_path: path.to_owned(),
        is_dir: false,
        mode: None,
        follow_links: false,
        src_basename: None,
        uid: None,
        gid: None,
        format: CopyFormat::Tar,
        keep_owners: false,
    }
}

async fn look(
    session: &Session,
    instance: &str,
    path: &str,
    follow: bool,
) -> Result<PathInfo, CliError> {
    let info = session.client.stat_path(instance, path, follow).await?;
    match info.error {
        Some(problem) => Err(CliError::plain(problem)),
        None => Ok(info),
    }
}

async fn source_inside(
    session: &Session,
    args: &CopyArgs,
    instance: &str,
    path: &str,
) -> Result<PathInfo, CliError> {
    // A path that ends like a directory's is one, link or not.
    let follow = args.follow_link || path.ends_with('/') || path.ends_with("/.");
    let info = look(session, instance, path, follow).await?;
    match info.exists {
        true => Ok(info),
        false => Err(CliError::plain(format!("there is no {path} in {instance}"))),
    }
}

/// The last name of a path inside.
fn last_name(path: &str) -> Option<&str> {
    let mut names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.next_back().filter(|name| *name != "..")
}

async fn to_stdout(
    session: &Session,
    args: &CopyArgs,
    instance: &str,
    path: &str,
) -> Result<Ended<Counted>, CliError> {
    if io::stdout().is_terminal() {
        return Err(CliError::refused(
            "an archive is nothing for a terminal",
            "send it through a pipe or into a file",
        ));
    }
    source_inside(session, args, instance, path).await?;
    let bar = transfer(&session.out, "copying", None);
    let start = CopyStart {
        follow_links: args.follow_link || path.ends_with('/'),
        src_basename: last_name(path)
            .filter(|_| !path.ends_with("/."))
            .map(str::to_owned),
        ..start(CopyDirection::From, path)
    };
    receive(session, instance, &start, &bar, |arriving| {
        let mut out = io::stdout().lock();
        let count = io::copy(arriving, &mut out)
            .and_then(|count| out.flush().map(|()| count))
            .map_err(|source| CliError::File {
                what: "stdout".to_owned(),
                source,
            })?;
        Ok((None, count))
    })
    .await
}

/// Where something that comes out is to be: a directory that is there, and the name in it.
fn target(from: &str, is_directory: bool, to: &Path) -> Result<(PathBuf, OsString), CliError> {
    let ends_like_one = to.as_os_str().as_bytes().ends_with(b"/");
    let mut place = to.to_owned();
    match std::fs::metadata(to) {
        Ok(there) if there.is_dir() => {
            if !(is_directory && from.ends_with("/.")) {
                let name = last_name(from).ok_or_else(|| {
                    CliError::refused(
                        format!("{from} has no name that it could have here"),
                        "write /. behind it to copy what is in it",
                    )
                })?;
                place = to.join(name);
            }
        }
        Ok(_) if is_directory => {
            return Err(CliError::refused(
                format!("{} is no directory", to.display()),
                "a directory cannot take the place of a file: choose another name",
            ));
        }
        Ok(_) => {}
        Err(_) if ends_like_one && !is_directory => {
            return Err(CliError::refused(
                format!("there is no directory {}", to.display()),
                "make it first, or leave out the slash",
            ));
        }
        Err(_) => {}
    }
    // What the user has named may be a link; what comes from the instance may not lead anywhere.
    let place = std::fs::canonicalize(&place).unwrap_or(place);
    let parent = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ if place.has_root() => &place,
        _ => Path::new("."),
    };
    let name = place
        .file_name()
        .map_or_else(|| ".".into(), ToOwned::to_owned);
    let parent = std::fs::canonicalize(parent).map_err(about(parent))?;
    Ok((parent, name))
}

async fn out(
    session: &Session,
    args: &CopyArgs,
    instance: &str,
    path: &str,
    to: &Path,
) -> Result<Ended<Counted>, CliError> {
    let info = source_inside(session, args, instance, path).await?;
    let is_directory = info.is_dir.unwrap_or(false);
    let (parent, name) = target(path, is_directory, to)?;
    let bar = transfer(&session.out, "copying", info.size.filter(|_| !is_directory));
    let start = CopyStart {
        follow_links: args.follow_link || path.ends_with('/') || path.ends_with("/."),
        ..start(CopyDirection::From, path)
    };
    let rules = Rules {
        owners: match args.archive {
            true => Owners::Archived,
            false => Owners::Own,
        },
        specials: Specials::LeftOut,
    };
    let shown = parent.join(&name);
    let words = session.out.clone();
    receive(session, instance, &start, &bar, move |arriving| {
        let root = Root::open(&parent, Links::Refused).map_err(about(&parent))?;
        let done = unpack(&root, Path::new(&name), rules, arriving)
            .map_err(|error| unpacking(&shown, error))?;
        if done.left_out > 0 {
            let some: Vec<_> = done
                .named
                .iter()
                .map(|it| it.display().to_string())
                .collect();
            words.note(format!(
                "{} files were left out, or not all of their attributes kept: {}",
                done.left_out,
                crate::cli::text::one_line(&some.join(", "))
            ));
        }
        Ok((Some(done.entries), done.bytes))
    })
    .await
}

fn unpacking(to: &Path, error: UnpackError) -> CliError {
    match error {
        UnpackError::File { path, source } => CliError::File {
            what: crate::cli::text::one_line(&to.join(path).display().to_string()),
            source,
        },
        error @ (UnpackError::Outside { .. } | UnpackError::Archive(_)) => {
            CliError::plain(format!("{}: {error}", to.display()))
        }
    }
}

/// Hands everything that comes to `take`, on a thread of its own.
async fn receive(
    session: &Session,
    instance: &str,
    start: &CopyStart,
    bar: &ProgressBar,
    take: impl FnOnce(&mut Arriving) -> Result<Counted, CliError> + Send + 'static,
) -> Result<Ended<Counted>, CliError> {
    let download = session.client.copy_from(instance, start).await?;
    let ended = deliver(download, bar, take).await;
    bar.finish_and_clear();
    ended
}

async fn from_stdin(
    session: &Session,
    args: &CopyArgs,
    instance: &str,
    path: &str,
) -> Result<Ended<Counted>, CliError> {
    let info = look(session, instance, path, true).await?;
    if !info.is_dir.unwrap_or(false) {
        return Err(CliError::refused(
            format!("there is no directory {path} in {instance}"),
            "an archive goes into a directory that is there",
        ));
    }
    send(session, args, instance, path, |mut leaving| {
        let count = io::copy(&mut io::stdin().lock(), &mut leaving)
            .and_then(|count| leaving.flush().map(|()| count))
            .map_err(|source| CliError::File {
                what: "stdin".to_owned(),
                source,
            })?;
        Ok((None, count))
    })
    .await
}

async fn into(
    session: &Session,
    args: &CopyArgs,
    from: &Path,
    instance: &str,
    path: &str,
) -> Result<Ended<Counted>, CliError> {
    let text = from.as_os_str().as_bytes();
    let contents = text == b"." || text.ends_with(b"/.");
    let seen = match args.follow_link || contents || text.ends_with(b"/") {
        true => std::fs::metadata(from),
        false => std::fs::symlink_metadata(from),
    }
    .map_err(about(from))?;
    let info = look(session, instance, path, true).await?;
    let mut path = path.to_owned();
    // The directory that it is in is followed, and itself only where that is meant.
    let parent = match from.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    };
    let real = match (from.file_name(), seen.is_symlink()) {
        (Some(name), true) => std::fs::canonicalize(&parent).map(|parent| parent.join(name)),
        _ => std::fs::canonicalize(from),
    }
    .map_err(about(from))?;
    let inside = info.is_dir.unwrap_or(false);
    if inside && !(seen.is_dir() && contents) {
        let name = from.file_name().or(real.file_name()).unwrap_or_default();
        path = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
    } else if info.exists && !inside && seen.is_dir() {
        return Err(CliError::refused(
            format!("{path} in {instance} is no directory"),
            "a directory cannot take the place of a file: choose another name",
        ));
    } else if !info.exists && path.ends_with('/') && !seen.is_dir() {
        return Err(CliError::refused(
            format!("there is no directory {path} in {instance}"),
            "make it first, or leave out the slash",
        ));
    }
    let shown = from.to_owned();
    send(session, args, instance, &path, move |leaving| {
        let spot = spot_of(&real).map_err(about(&shown))?;
        match pack(&spot, b".", leaving) {
            Ok((packed, _)) => Ok((Some(packed.entries), packed.bytes)),
            Err(PackError::File { path, source }) => Err(CliError::File {
                what: shown.join(path).display().to_string(),
                source,
            }),
            Err(error @ (PackError::Shrunk { .. } | PackError::Archive(_))) => {
                Err(CliError::plain(format!("{}: {error}", shown.display())))
            }
        }
    })
    .await
}

fn spot_of(path: &Path) -> io::Result<Spot> {
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, Path::new(name)),
        _ => (path, Path::new(".")),
    };
    Ok(Root::open(parent, Links::Refused)?.spot(name)?)
}

/// What leaves, as a writer.
struct Leaving {
    to: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Write for Leaving {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let take = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&data[..take]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let sent = self.to.blocking_send(piece.into());
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Sends everything that `give` writes on a thread of its own.
async fn send(
    session: &Session,
    args: &CopyArgs,
    instance: &str,
    path: &str,
    give: impl FnOnce(Leaving) -> Result<Counted, CliError> + Send + 'static,
) -> Result<Ended<Counted>, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let start = CopyStart {
        keep_owners: args.archive,
        ..start(CopyDirection::To, path)
    };
    let upload = session.client.copy_to(instance, &start).await?;
    let bar = transfer(&session.out, "copying", None);
    let (to, from) = mpsc::channel(WAITING);
    let giver = tokio::task::spawn_blocking(move || {
        let piece = Vec::with_capacity(PIECE);
        give(Leaving { to, piece })
    });
    let ended = tokio::select! {
        sent = pass_on(upload, from, giver, &bar) => sent.map(Ended::Whole),
        _ = interrupt.recv() => Ok(Ended::Interrupted(2)),
        _ = terminate.recv() => Ok(Ended::Interrupted(15)),
    };
    bar.finish_and_clear();
    ended
}

async fn pass_on(
    mut upload: CopyUpload,
    mut from: mpsc::Receiver<Bytes>,
    giver: tokio::task::JoinHandle<Result<Counted, CliError>>,
    bar: &ProgressBar,
) -> Result<Counted, CliError> {
    while let Some(piece) = from.recv().await {
        bar.inc(piece.len() as u64);
        upload.send(piece).await?;
    }
    // Only what was read whole is a copy: without its end, the instance throws it away.
    let given = giver
        .await
        .map_err(|error| CliError::plain(error.to_string()))?;
    let counted = given?;
    upload.finish().await?;
    Ok(counted)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let inside = |instance: &str, path: &str| Place::Inside {
            instance: instance.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(place("-"), Place::Stream);
        assert_eq!(place("web:/etc"), inside("web", "/etc"));
        assert_eq!(place("web:etc:x"), inside("web", "/etc:x"));
        assert_eq!(place("web:"), inside("web", "/"));
        for here in ["file", "./web:x", "/a:b", "a/b:c", ":x", "..:x"] {
            assert_eq!(place(here), Place::Here(here.into()));
        }
    }

    #[test]
    fn what_comes_out_lands_where_docker_puts_it() {
        let world = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(world.path()).unwrap();
        std::fs::create_dir(top.join("dir")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        std::os::unix::fs::symlink("dir", top.join("link")).unwrap();
        let at = |from: &str, is_directory, to: &str| {
            target(from, is_directory, &top.join(to)).map(|(parent, name)| parent.join(name))
        };
        assert_eq!(at("/a/x", false, "dir").unwrap(), top.join("dir/x"));
        assert_eq!(at("/a/x", false, "link").unwrap(), top.join("dir/x"));
        assert_eq!(at("/a/x", false, "file").unwrap(), top.join("file"));
        assert_eq!(at("/a/x", false, "new").unwrap(), top.join("new"));
        assert_eq!(at("/a/x", true, "dir").unwrap(), top.join("dir/x"));
        assert_eq!(at("/a/x/", true, "dir").unwrap(), top.join("dir/x"));
        assert_eq!(at("/a/x/.", true, "dir").unwrap(), top.join("dir"));
        assert_eq!(at("/a/x/.", true, "new").unwrap(), top.join("new"));
        for (from, is_directory, to) in [
            ("/a/x", true, "file"),
            ("/a/x", false, "new/"),
            ("/a/x", false, "no/such"),
            ("/", true, "dir"),
            ("/a/..", true, "dir"),
        ] {
            assert!(at(from, is_directory, to).is_err(), "{from} to {to}");
        }
    }
}

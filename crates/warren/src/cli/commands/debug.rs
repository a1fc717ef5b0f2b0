//! `warren debug`: what somebody needs who looks for a fault.

use super::delivery::{NewFile, about, is_stream};
use super::{Outcome, Session};
use crate::cli::args::{BundleArgs, OutputFormat};
use crate::cli::failure::CliError;
use crate::cli::output::Stream;
use crate::cli::text::bytes;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// What was written, for scripts.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    bytes: usize,
}

/// The file's name where none is given: nothing of an instance's name leads elsewhere.
fn usual_file(name: &str) -> PathBuf {
    let name: String = name
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() => c,
            '-' | '_' | '.' => c,
            _ => '-',
        })
        .collect();
    PathBuf::from(format!("warren-debug-{name}.tar.gz"))
}

/// `warren debug bundle`
pub(super) async fn bundle(session: &Session, args: BundleArgs) -> Outcome {
    let file = args.file.unwrap_or_else(|| usual_file(&args.name));
    let to_stdout = file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(CliError::refused(
            "an archive is nothing for a terminal",
            "name a file with --file, or send it through a pipe",
        ));
    }
    let archive = session.client.debug_bundle(&args.name).await?;
    if to_stdout {
        session.out.bytes(Stream::Stdout, &archive)?;
        return Ok(0);
    }
    if is_stream(&file) {
        std::fs::write(&file, &archive).map_err(about(&file))?;
    } else {
        let new = NewFile::at(&file)?;
        new.file()?.write_all(&archive).map_err(about(&file))?;
        new.finish()?;
    }
    let size = u64::try_from(archive.len()).unwrap_or(u64::MAX);
    session.out.note(format!(
        "wrote {} ({}): look through its logs before you give it away",
        file.display(),
        bytes(size)
    ));
    let written = Written {
        file: &file,
        bytes: archive.len(),
    };
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&written)?,
        OutputFormat::Yaml => session.out.yaml(&written)?,
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {
            session.out.line(file.display().to_string())?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_file_is_in_this_directory() {
        assert_eq!(usual_file("web"), Path::new("warren-debug-web.tar.gz"));
        assert_eq!(
            usual_file("../a b/c"),
            Path::new("warren-debug-..-a-b-c.tar.gz")
        );
    }
}

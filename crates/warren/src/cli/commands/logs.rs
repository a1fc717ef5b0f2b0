//! `warren logs`, and the showing of log lines that `run` shares with it.

use super::{Outcome, Session};
use crate::cli::args::{self, LogsArgs, OutputFormat};
use crate::cli::escape::EscapeFilter;
use crate::cli::failure::CliError;
use crate::cli::output::{Output, Stream};
use futures::StreamExt;
use std::io::IsTerminal;
use time::format_description::well_known::Rfc3339;
use warren_api::client::LogsQuery;
use warren_api::exec::{LogEntry, LogStream};
use warren_core::ports::host_link::{Follow, LogPeriod, LogSource};

/// Whether lines have their time before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    /// Yes.
    Shown,
    /// No.
    Hidden,
}

/// What a terminal gets to see of escape sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// All of them.
    Passed,
    /// Colours.
    Filtered,
}

/// Shows lines on the stream each was written to.
pub(super) struct LineWriter {
    times: Times,
    stdout: Option<EscapeFilter>,
    stderr: Option<EscapeFilter>,
}

impl LineWriter {
    /// Filters where a terminal would carry out what a guest wrote.
    pub(super) fn new(times: Times, escapes: Escapes, out: &Output) -> Self {
        let filter = |is_terminal: bool| {
            (escapes == Escapes::Filtered && is_terminal).then(EscapeFilter::new)
        };
        LineWriter {
            times,
            stdout: filter(out.to_terminal()),
            stderr: filter(std::io::stderr().is_terminal()),
        }
    }

    /// Shows one.
    pub(super) fn show(&mut self, entry: &LogEntry, out: &Output) -> Result<(), CliError> {
        let (stream, filter) = match entry.stream {
            LogStream::Stdout => (Stream::Stdout, &mut self.stdout),
            LogStream::Stderr => (Stream::Stderr, &mut self.stderr),
        };
        out.bytes(stream, &line(entry, self.times, filter.as_mut()))
    }
}

fn line(entry: &LogEntry, times: Times, filter: Option<&mut EscapeFilter>) -> Vec<u8> {
    let mut line = Vec::with_capacity(entry.text.len() + 40);
    if times == Times::Shown {
        // A time that RFC 3339 cannot hold is none of a guest's clock's that we would want to show.
        line.extend(entry.at.format(&Rfc3339).unwrap_or_default().bytes());
        line.push(b' ');
    }
    let mut text = entry.text.clone().into_bytes();
    text.push(b'\n');
    match filter {
        Some(filter) => line.extend(filter.filter(&text)),
        None => line.extend(text),
    }
    line
}

/// `warren logs`
pub(super) async fn logs(session: &Session, args: LogsArgs) -> Outcome {
    let query = LogsQuery {
        source: match args.source {
            args::LogSource::Workload => LogSource::Workload,
            args::LogSource::Console => LogSource::Console,
            args::LogSource::Vmm => LogSource::Vmm,
        },
        tail: args.tail,
        after: None,
        period: LogPeriod {
            since: args.since,
            until: args.until,
        },
        follow: if args.follow { Follow::Yes } else { Follow::No },
    };
    let times = if args.timestamps {
        Times::Shown
    } else {
        Times::Hidden
    };
    let escapes = if args.raw {
        Escapes::Passed
    } else {
        Escapes::Filtered
    };
    let mut writer = LineWriter::new(times, escapes, &session.out);
    let format = session.out.format(OutputFormat::Table);
    let mut entries = session.client.logs(&args.name, query);
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        match format {
            OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
                writer.show(&entry, &session.out)?;
            }
            OutputFormat::Json => session.out.json_line(&entry)?,
            OutputFormat::Yaml => session.out.yaml_document(&entry)?,
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn lines_have_their_time_and_no_escapes_where_asked() {
        let entry = LogEntry {
            seq: 1,
            at: datetime!(2026-01-01 00:00:00.5 UTC),
            stream: LogStream::Stdout,
            text: "a\x1b[2Jb".to_owned(),
        };
        assert_eq!(line(&entry, Times::Hidden, None), b"a\x1b[2Jb\n");
        let mut filter = EscapeFilter::new();
        assert_eq!(
            line(&entry, Times::Shown, Some(&mut filter)),
            b"2026-01-01T00:00:00.5Z ab\n"
        );
    }
}

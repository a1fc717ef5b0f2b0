//! The logs of a VM as one: three sources in the order of their times, then, where asked, what comes.

use super::caller::Caller;
use super::lifecycle::stopping;
use super::refusal::invalid;
use super::wire::{GetLogsRequest, LogEntry};
use crate::app::App;
use futures::stream::{self, BoxStream, Peekable};
use futures::{FutureExt, StreamExt};
use std::collections::VecDeque;
use std::pin::Pin;
use tonic::Status;
use warren_core::ports::host_link::{Follow, LogLine, LogQuery, LogSource, OutputStream};

/// Where lines come from, and what this API calls it.
const SOURCES: [(LogSource, &str); 3] = [
    (LogSource::Workload, "vm"),
    (LogSource::Console, "kernel"),
    (LogSource::Vmm, "service"),
];

/// What a client is sent, one after the other.
pub(super) type Entries = BoxStream<'static, Result<LogEntry, Status>>;

fn entry(line: LogLine, source: &'static str) -> LogEntry {
    LogEntry {
        timestamp: line.at.unix_timestamp(),
        level: match line.stream {
            OutputStream::Stdout => "info",
            OutputStream::Stderr => "error",
        }
        .to_owned(),
        message: line.text,
        source: source.to_owned(),
    }
}

/// Several logs, each in order, as one in order.
struct Merged(Vec<Peekable<BoxStream<'static, LogLine>>>);

impl Merged {
    fn new(logs: impl IntoIterator<Item = BoxStream<'static, LogLine>>) -> Self {
        Merged(logs.into_iter().map(StreamExt::peekable).collect())
    }

    /// The oldest line that is left, and which log it is of.
    async fn next(&mut self) -> Option<(usize, LogLine)> {
        let mut oldest = None;
        for (log, lines) in self.0.iter_mut().enumerate() {
            if let Some(line) = Pin::new(lines).peek().await
                && oldest.is_none_or(|(_, time)| line.at < time)
            {
                oldest = Some((log, line.at));
            }
        }
        let (log, _) = oldest?;
        let line = self.0.get_mut(log)?.next().await?;
        Some((log, line))
    }
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    since: i64,
    tail: Option<u32>,
    follow: Follow,
}

fn wanted(request: &GetLogsRequest) -> Result<Wanted, Status> {
    if request.since_timestamp < 0 {
        return Err(invalid("since_timestamp", "must not be negative"));
    }
    let tail = u32::try_from(request.tail_lines);
    let tail = tail.map_err(|_| invalid("tail_lines", "must not be negative"))?;
    Ok(Wanted {
        since: request.since_timestamp,
        tail: Some(tail).filter(|lines| *lines > 0),
        follow: match request.follow {
            true => Follow::Yes,
            false => Follow::No,
        },
    })
}

pub(super) async fn logs(
    app: &App,
    caller: &Caller,
    request: GetLogsRequest,
) -> Result<Entries, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let wanted = wanted(&request)?;
    let id = found.intent.id.to_string();
    let mut kept = Vec::new();
    for (source, _) in SOURCES {
        let query = LogQuery {
            source,
            tail: wanted.tail.map(u64::from),
            ..LogQuery::default()
        };
        kept.push(app.logs(&id, query).await?);
    }
    let kept = Kept {
        merged: Merged::new(kept),
        seen: [None; 3],
    };
    let stop = app.stopping().clone().cancelled_owned();
    let lines = match wanted.tail {
        None => everything(app.clone(), id, kept, wanted).boxed(),
        Some(tail) => last(app.clone(), id, kept, wanted, tail as usize).await?,
    };
    Ok(match wanted.follow {
        Follow::No => lines,
        // What is being followed ends with the server, and says so.
        Follow::Yes => until(lines, stop.map(|()| Err(stopping())).into_stream().boxed()),
    })
}

/// The first until it ends, cut short by the second.
fn until(lines: Entries, end: Entries) -> Entries {
    stream::unfold(Some((lines, end)), |both| async move {
        let (mut lines, mut end) = both?;
        tokio::select! {
            biased;
            line = lines.next() => line.map(|line| (line, Some((lines, end)))),
            Some(last) = end.next() => Some((last, None)),
        }
    })
    .boxed()
}

/// What is kept, and how far it has been read.
struct Kept {
    merged: Merged,
    /// The last number of each source.
    seen: [Option<u64>; 3],
}

impl Kept {
    async fn next(&mut self) -> Option<(usize, LogLine)> {
        let (log, line) = self.merged.next().await?;
        self.seen[log] = Some(line.seq);
        Some((log, line))
    }
}

fn is_wanted(line: &LogLine, wanted: Wanted) -> bool {
    line.at.unix_timestamp() >= wanted.since
}

/// All of what is kept, then what comes.
fn everything(app: App, id: String, kept: Kept, wanted: Wanted) -> Entries {
    let parts = stream::unfold(Some((app, id, kept)), move |state| async move {
        let (app, id, mut kept) = state?;
        match kept.next().await {
            Some((log, line)) => {
                let entry = is_wanted(&line, wanted).then(|| Ok(entry(line, SOURCES[log].1)));
                Some((stream::iter(entry).boxed(), Some((app, id, kept))))
            }
            None => Some((what_comes(app, id, kept.seen, wanted).await, None)),
        }
    });
    parts.flatten().boxed()
}

/// The last lines of what is kept, then what comes.
async fn last(
    app: App,
    id: String,
    mut kept: Kept,
    wanted: Wanted,
    count: usize,
) -> Result<Entries, Status> {
    let mut lines = VecDeque::new();
    while let Some((log, line)) = kept.next().await {
        if is_wanted(&line, wanted) {
            lines.push_back(Ok(entry(line, SOURCES[log].1)));
            if lines.len() > count {
                lines.pop_front();
            }
        }
    }
    let rest = stream::once(async move { what_comes(app, id, kept.seen, wanted).await });
    Ok(stream::iter(lines).chain(rest.flatten()).boxed())
}

/// What is said from now on; nothing where nobody asked for it.
async fn what_comes(app: App, id: String, seen: [Option<u64>; 3], wanted: Wanted) -> Entries {
    if wanted.follow == Follow::No {
        return stream::empty().boxed();
    }
    let mut all = Vec::new();
    for ((source, name), after) in SOURCES.into_iter().zip(seen) {
        let query = LogQuery {
            source,
            after,
            follow: Follow::Yes,
            ..LogQuery::default()
        };
        match app.logs(&id, query).await {
            Ok(lines) => all.push(lines.map(move |line| (line, name))),
            Err(error) => return stream::iter([Err(error.into())]).boxed(),
        }
    }
    stream::select_all(all)
        .filter(move |(line, _)| std::future::ready(is_wanted(line, wanted)))
        .map(|(line, name)| Ok(entry(line, name)))
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::OffsetDateTime;

    fn log(times: &[i64]) -> BoxStream<'static, LogLine> {
        let lines: Vec<LogLine> = (1..)
            .zip(times)
            .map(|(seq, at)| LogLine {
                seq,
                at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(*at),
                stream: OutputStream::Stdout,
                text: at.to_string(),
            })
            .collect();
        stream::iter(lines).boxed()
    }

    #[tokio::test]
    async fn logs_are_merged_by_time() {
        let mut merged = Merged::new([log(&[1, 4, 4, 9]), log(&[]), log(&[2, 3, 4, 10])]);
        let mut times = Vec::new();
        while let Some((log, line)) = merged.next().await {
            times.push((line.text, log));
        }
        let times: Vec<(&str, usize)> = times.iter().map(|(t, log)| (t.as_str(), *log)).collect();
        assert_eq!(
            times,
            [
                ("1", 0),
                ("2", 2),
                ("3", 2),
                ("4", 0),
                ("4", 0),
                ("4", 2),
                ("9", 0),
                ("10", 2)
            ]
        );
    }

    #[test]
    fn numbers_have_bounds() {
        let request = |since_timestamp, tail_lines| GetLogsRequest {
            since_timestamp,
            tail_lines,
            ..GetLogsRequest::default()
        };
        assert!(wanted(&request(-1, 0)).is_err());
        assert!(wanted(&request(0, -1)).is_err());
        assert!(wanted(&request(0, 0)).is_ok_and(|wanted| wanted.tail.is_none()));
        assert!(wanted(&request(5, 7)).is_ok_and(|it| (it.since, it.tail) == (5, Some(7))));
    }
}

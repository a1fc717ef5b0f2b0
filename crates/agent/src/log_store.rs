//! One source of log lines on disk, bounded: lines with sequence numbers, appended to a file that is
//! rotated once, followed by any number of readers.
//!
//! A workload's output arrives in pieces with the guest's own numbers. A line remembers where in that
//! stream it ended, so that a restarted host asks the guest for exactly what it does not have yet:
//! nothing twice, nothing lost.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use warren_core::Timestamp;
use warren_core::ports::BoxStream;
use warren_core::ports::host_link::{LogLine, LogPeriod, LogQuery, OutputStream};

/// A file is rotated when it is larger; two are kept.
const ROTATE_AT: u64 = 8 << 20;
/// So much is written at a time: a line each would cost a guest next to nothing, and this host a call to its kernel.
const BATCH: usize = 256 << 10;
/// Longer lines are cut into several.
const LONGEST_LINE: usize = 16 << 10;

/// Where in a guest's output something ended: record number and bytes of that record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position(pub(crate) u64, pub(crate) u64);

#[derive(Debug, Serialize, Deserialize)]
struct StoredLine<'a> {
    #[serde(rename = "s")]
    seq: u64,
    /// Nanoseconds since 1970.
    #[serde(rename = "t")]
    at: i128,
    #[serde(rename = "o")]
    stream: OutputStream,
    #[serde(rename = "x")]
    text: Cow<'a, str>,
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    end: Option<Position>,
    /// Which boot of the guest `end` is about.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    boot: Option<Cow<'a, str>>,
}

/// Lines on their way to the file.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    /// Where each stream's last one ended.
    written: [Option<Position>; 2],
}

/// A shared handle on one log.
#[derive(Clone)]
pub(crate) struct LogStore {
    inner: Arc<Mutex<Inner>>,
    last: Arc<watch::Sender<u64>>,
    path: PathBuf,
}

struct Inner {
    file: Option<File>,
    size: u64,
    next_seq: u64,
    partial: [Partial; 2],
    boot: Option<String>,
    batch: Batch,
}

/// The beginning of a line whose end has not come yet.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    at: i128,
    /// Everything of this stream up to here is in the file.
    written: Position,
    /// Everything of this stream up to here is in the file or in `bytes`.
    taken: Position,
}

fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

impl LogStore {
    /// Opens (or will create, at the first line) the log at `path`. Reads what is there to find the next
    /// sequence number; a torn last line is dropped.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let mut next_seq = 1;
        let mut inner = Inner {
            file: None,
            size: 0,
            next_seq,
            partial: Default::default(),
            boot: None,
            batch: Batch::default(),
        };
        for file in [rotated(&path), path.clone()] {
            for line in stored_lines(&file)? {
                next_seq = next_seq.max(line.seq + 1);
                if line.boot.is_some() && line.boot.as_deref() != inner.boot.as_deref() {
                    inner.boot = line.boot.map(Cow::into_owned);
                    inner.partial = Default::default();
                }
                if let Some(end) = line.end {
                    let partial = &mut inner.partial[index(line.stream)];
                    partial.written = partial.written.max(end);
                    partial.taken = partial.written;
                }
            }
        }
        inner.next_seq = next_seq;
        Ok(LogStore {
            inner: Arc::new(Mutex::new(inner)),
            last: Arc::new(watch::Sender::new(next_seq - 1)),
            path,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins (or goes on with) the output of one boot of the guest: the first record to ask it for.
    pub(crate) fn begin_boot(&self, boot: &str) -> u64 {
        let mut inner = self.lock();
        if inner.boot.as_deref() != Some(boot) {
            inner.boot = Some(boot.to_owned());
            inner.partial = Default::default();
        }
        for partial in &mut inner.partial {
            partial.bytes.clear();
            partial.taken = partial.written;
        }
        // A stream of which nothing is written may have an unfinished line in any record: from the first
        // one on. What the guest no longer has was acknowledged, so it is in the file.
        inner
            .partial
            .iter()
            .map(|partial| partial.written.0)
            .min()
            .unwrap_or(0)
            .max(1)
    }

    /// The newest guest record of which anything is in the file.
    pub(crate) fn newest_record(&self) -> u64 {
        self.lock()
            .partial
            .iter()
            .map(|partial| partial.written.0)
            .max()
            .unwrap_or(0)
    }

    /// Takes a piece of a workload's output. Whole lines are written; the rest waits for its end.
    pub(crate) fn append_record(
        &self,
        record: u64,
        at: i128,
        stream: OutputStream,
        data: &[u8],
    ) -> io::Result<()> {
        let mut inner = self.lock();
        let taken = inner.partial[index(stream)].taken;
        if record < taken.0 {
            return Ok(());
        }
        let skip = if record == taken.0 {
            usize::try_from(taken.1).unwrap_or(usize::MAX)
        } else {
            0
        };
        let fresh = data.get(skip..).unwrap_or_default();
        inner.take(&self.path, stream, at, fresh, Some((record, skip as u64)))?;
        self.announce(inner);
        Ok(())
    }

    /// Takes bytes that have no numbers of their own (a console).
    pub(crate) fn append(
        &self,
        at: Timestamp,
        stream: OutputStream,
        data: &[u8],
    ) -> io::Result<()> {
        let mut inner = self.lock();
        inner.take(&self.path, stream, at.unix_timestamp_nanos(), data, None)?;
        self.announce(inner);
        Ok(())
    }

    /// Writes a line of our own.
    pub(crate) fn note(&self, at: Timestamp, text: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.add(OutputStream::Stderr, at.unix_timestamp_nanos(), text, None)?;
        inner.write(&self.path)?;
        self.announce(inner);
        Ok(())
    }

    /// Writes unfinished lines as they are: their end is not coming, or somebody is waiting to see them.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let partial = &mut inner.partial[index(stream)];
            if !partial.bytes.is_empty() {
                let (at, end) = (partial.at, partial.taken);
                let bytes = std::mem::take(&mut partial.bytes);
                inner.add(stream, at, &String::from_utf8_lossy(&bytes), Some(end))?;
            }
        }
        inner.write(&self.path)?;
        self.announce(inner);
        Ok(())
    }

    /// The last guest record that is in the file whole, for every stream: what may be acknowledged once
    /// `received` is the last record received.
    pub(crate) fn acknowledgeable(&self, received: u64) -> u64 {
        let inner = self.lock();
        let waiting = inner
            .partial
            .iter()
            .filter(|partial| !partial.bytes.is_empty())
            .map(|partial| partial.written);
        waiting
            .map(|written| written.0)
            .min()
            .map_or(received, |oldest| oldest.min(received))
    }

    fn announce(&self, inner: std::sync::MutexGuard<'_, Inner>) {
        let last = inner.next_seq - 1;
        drop(inner);
        self.last
            .send_if_modified(|seen| std::mem::replace(seen, last) != last);
    }

    /// The lines that `query` asks for; with `follow`, until `over` is true.
    pub(crate) fn lines(
        &self,
        query: LogQuery,
        over: watch::Receiver<bool>,
    ) -> io::Result<BoxStream<LogLine>> {
        let follow = query.follow == warren_core::ports::host_link::Follow::Yes;
        let mut reader = Reader {
            path: self.path.clone(),
            file: None,
            after: query.after.unwrap_or(0),
            period: query.period,
            tail: None,
        };
        match query.tail {
            Some(tail) if query.period == LogPeriod::default() => {
                let last = self.lock().next_seq - 1;
                reader.after = reader.after.max(last.saturating_sub(tail));
            }
            tail => reader.tail = tail,
        }
        let changes = self.last.subscribe();
        let state = (reader, changes, over, VecDeque::<LogLine>::new());
        Ok(Box::pin(futures::stream::unfold(
            state,
            move |(mut reader, mut changes, mut over, mut ready)| async move {
                loop {
                    if let Some(line) = ready.pop_front() {
                        return Some((line, (reader, changes, over, ready)));
                    }
                    // Marked seen before reading: a line that comes meanwhile wakes the next wait.
                    changes.borrow_and_update();
                    let finished = *over.borrow_and_update();
                    let read = tokio::task::spawn_blocking(move || (reader.batch(), reader)).await;
                    let (batch, returned) = match read {
                        Ok(result) => result,
                        Err(_) => return None,
                    };
                    reader = returned;
                    match batch {
                        Ok(lines) if !lines.is_empty() => ready.extend(lines),
                        Ok(_) if follow && !finished => {
                            tokio::select! {
                                changed = changes.changed() => if changed.is_err() { return None },
                                changed = over.changed() => if changed.is_err() { return None },
                            }
                        }
                        Ok(_) | Err(_) => return None,
                    }
                }
            },
        )))
    }
}

impl Inner {
    fn take(
        &mut self,
        path: &Path,
        stream: OutputStream,
        at: i128,
        data: &[u8],
        origin: Option<(u64, u64)>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let room = LONGEST_LINE - self.partial[index(stream)].bytes.len();
            let rest = &data[done..];
            let newline = rest.iter().take(room).position(|byte| *byte == b'\n');
            let (length, ended) = match newline {
                Some(position) => (position + 1, true),
                None => (rest.len().min(room), rest.len() >= room),
            };
            let partial = &mut self.partial[index(stream)];
            if partial.bytes.is_empty() {
                partial.at = at;
            }
            partial.bytes.extend_from_slice(&rest[..length]);
            done += length;
            if let Some((record, skipped)) = origin {
                partial.taken = Position(record, skipped + done as u64);
            }
            if ended {
                let mut bytes = std::mem::take(&mut partial.bytes);
                let (at, end) = (partial.at, origin.map(|_| partial.taken));
                while bytes
                    .last()
                    .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
                {
                    bytes.pop();
                }
                self.add(stream, at, &String::from_utf8_lossy(&bytes), end)?;
                if self.batch.bytes.len() >= BATCH {
                    self.write(path)?;
                }
            }
        }
        self.write(path)
    }

    /// Adds a line to what is written next.
    fn add(
        &mut self,
        stream: OutputStream,
        at: i128,
        text: &str,
        end: Option<Position>,
    ) -> io::Result<()> {
        let line = StoredLine {
            seq: self.next_seq + self.batch.lines,
            at,
            stream,
            text: text.into(),
            end,
            boot: end.and(self.boot.as_deref()).map(Cow::from),
        };
        serde_json::to_writer(&mut self.batch.bytes, &line)?;
        self.batch.bytes.push(b'\n');
        self.batch.lines += 1;
        if end.is_some() {
            self.batch.written[index(stream)] = end;
        }
        Ok(())
    }

    /// Writes what was added: all of it, or nothing that is seen.
    fn write(&mut self, path: &Path) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.lines == 0 {
            return Ok(());
        }
        let written = self.write_lines(path, &batch.bytes);
        for (partial, end) in self.partial.iter_mut().zip(batch.written) {
            if written.is_ok() {
                partial.written = end.unwrap_or(partial.written);
            } else {
                // What comes after it must not be taken for all there was: it comes again too.
                partial.bytes.clear();
                partial.taken = partial.written;
            }
        }
        written?;
        self.next_seq += batch.lines;
        Ok(())
    }

    fn write_lines(&mut self, path: &Path, lines: &[u8]) -> io::Result<()> {
        if self.size > ROTATE_AT {
            std::fs::rename(path, rotated(path))?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                self.size = file.metadata()?.len();
                if self.size > 0 && !ends_with_newline(path)? {
                    // The last writer died in the middle of a line.
                    file.write_all(b"\n")?;
                    self.size += 1;
                }
                self.file.insert(file)
            }
        };
        if let Err(error) = file.write_all(lines) {
            // The lines will come again, with the same numbers: a part of them must not be there twice. What cannot be cut
            // off is closed, and found to be torn when it is opened.
            if file.set_len(self.size).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        self.size += lines.len() as u64;
        Ok(())
    }
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::Read;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn stored_lines(path: &Path) -> io::Result<impl Iterator<Item = StoredLine<'static>> + use<>> {
    let file = match File::open(path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(file
        .into_iter()
        .flat_map(|file| file.split(b'\n').map_while(Result::ok))
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Reads a log from a sequence number on, across rotation.
struct Reader {
    path: PathBuf,
    file: Option<(BufReader<File>, u64)>,
    after: u64,
    period: LogPeriod,
    /// Only the last so many of them: found out at the first look, as it takes a look at every line.
    tail: Option<u64>,
}

fn time_of(line: &StoredLine<'_>) -> Timestamp {
    Timestamp::from_unix_timestamp_nanos(line.at).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Reader {
    /// The next lines, some hundred at most; empty at the end.
    fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        const MOST: usize = 256;
        if let Some(tail) = self.tail.take() {
            self.skip_to_the_last(tail)?;
        }
        let mut lines = Vec::new();
        while lines.len() < MOST {
            let Some((file, inode)) = &mut self.file else {
                if !self.open_next(None)? {
                    break;
                }
                continue;
            };
            let inode = *inode;
            let mut bytes = Vec::new();
            let start = file.stream_position()?;
            file.read_until(b'\n', &mut bytes)?;
            if bytes.last() != Some(&b'\n') {
                // The end, or a line that is being written: try again from its start.
                file.seek(SeekFrom::Start(start))?;
                if !self.open_next(Some(inode))? {
                    break;
                }
                continue;
            }
            if let Ok(line) = serde_json::from_slice::<StoredLine>(&bytes)
                && line.seq > self.after
            {
                self.after = line.seq;
                let at = time_of(&line);
                if !self.period.contains(at) {
                    continue;
                }
                lines.push(LogLine {
                    seq: line.seq,
                    at,
                    stream: line.stream,
                    text: line.text.into_owned(),
                });
            }
        }
        Ok(lines)
    }

    /// Goes to where so many lines are left that are asked for.
    fn skip_to_the_last(&mut self, tail: u64) -> io::Result<()> {
        let most = usize::try_from(tail).unwrap_or(usize::MAX);
        let mut last = VecDeque::new();
        let mut end = self.after;
        for path in [rotated(&self.path), self.path.clone()] {
            for line in stored_lines(&path)?.filter(|line| line.seq > self.after) {
                end = end.max(line.seq);
                if self.period.contains(time_of(&line)) {
                    last.push_back(line.seq);
                    if last.len() > most {
                        last.pop_front();
                    }
                }
            }
        }
        self.after = last.front().map_or(end, |first| first - 1);
        Ok(())
    }

    /// Opens the file after the one with inode `done`: the rotated one first, then the current one.
    fn open_next(&mut self, done: Option<u64>) -> io::Result<bool> {
        let mut candidates = Vec::new();
        for path in [rotated(&self.path), self.path.clone()] {
            match File::open(&path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    candidates.push((file, inode));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let next = match done {
            None => candidates.into_iter().next(),
            Some(done) => match candidates.iter().position(|(_, inode)| *inode == done) {
                Some(at) => candidates.into_iter().nth(at + 1),
                // Rotated away twice while we were reading: go on with the oldest there is.
                None => candidates.into_iter().next(),
            },
        };
        match next {
            Some((file, inode)) => {
                self.file = Some((BufReader::new(file), inode));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use futures::StreamExt;
    use warren_core::ports::host_link::Follow;

    fn texts(log: &LogStore, query: LogQuery) -> Vec<String> {
        let (_over, receiver) = watch::channel(true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            log.lines(query, receiver)
                .unwrap()
                .map(|line| line.text)
                .collect()
                .await
        })
    }

    #[test]
    fn lines_cut_anywhere_come_out_whole_and_a_restart_takes_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        assert_eq!(log.begin_boot("a"), 1);
        log.append_record(1, 0, OutputStream::Stdout, b"one\ntw")
            .unwrap();
        assert_eq!(log.acknowledgeable(1), 1);
        log.append_record(2, 0, OutputStream::Stderr, b"err\n")
            .unwrap();
        log.append_record(3, 0, OutputStream::Stdout, b"o\nthr")
            .unwrap();
        assert_eq!(log.acknowledgeable(3), 3);
        drop(log);
        // The unfinished "thr" was in memory only: record 3 is asked for again, and its first two bytes skipped.
        let log = LogStore::open(path).unwrap();
        assert_eq!(log.begin_boot("a"), 2);
        log.append_record(2, 0, OutputStream::Stderr, b"err\n")
            .unwrap();
        log.append_record(3, 0, OutputStream::Stdout, b"o\nthr")
            .unwrap();
        log.append_record(4, 0, OutputStream::Stdout, b"ee\n")
            .unwrap();
        assert_eq!(
            texts(&log, LogQuery::default()),
            ["one", "err", "two", "three"]
        );
        assert_eq!(
            texts(
                &log,
                LogQuery {
                    tail: Some(1),
                    ..LogQuery::default()
                }
            ),
            ["three"]
        );
        assert_eq!(
            texts(
                &log,
                LogQuery {
                    after: Some(2),
                    ..LogQuery::default()
                }
            ),
            ["two", "three"]
        );
    }

    #[test]
    fn a_new_boot_starts_its_records_at_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(dir.path().join("log")).unwrap();
        log.begin_boot("a");
        log.append_record(9, 0, OutputStream::Stdout, b"first\n")
            .unwrap();
        assert_eq!(log.begin_boot("b"), 1);
        log.append_record(1, 0, OutputStream::Stdout, b"second\n")
            .unwrap();
        assert_eq!(texts(&log, LogQuery::default()), ["first", "second"]);
    }

    #[test]
    fn a_log_is_bounded_and_a_follower_sees_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        let (over, receiver) = watch::channel(false);
        let follow = LogQuery {
            follow: Follow::Yes,
            ..LogQuery::default()
        };
        let line = vec![b'x'; 100_000];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let reader = log.lines(follow, receiver).unwrap();
        let seen = runtime.spawn(reader.map(|line| line.seq).collect::<Vec<_>>());
        for _ in 0..300 {
            log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, &line)
                .unwrap();
        }
        log.flush().unwrap();
        let kept = std::fs::metadata(&path).unwrap().len()
            + std::fs::metadata(rotated(&path)).unwrap().len();
        assert!(kept < 2 * ROTATE_AT + (1 << 20), "{kept}");
        over.send_replace(true);
        let seen = runtime.block_on(seen).unwrap();
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(seen.last().copied(), Some(log.lock().next_seq - 1));
    }

    #[test]
    fn a_period_is_of_lines_and_the_last_are_the_last_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        let at = |second: i64| Timestamp::from_unix_timestamp(second).unwrap();
        // A guest's clock may be set back. What is older is in the other file.
        for (number, second) in [(1, 10), (2, 20), (3, 30), (4, 25), (5, 40)] {
            let line = format!("{number}\n");
            log.append(at(second), OutputStream::Stdout, line.as_bytes())
                .unwrap();
            if number == 3 {
                let mut inner = log.lock();
                std::fs::rename(&path, rotated(&path)).unwrap();
                (inner.file, inner.size) = (None, 0);
            }
        }
        for (since, until, tail, after, expected) in [
            (None, None, None, None, "12345"),
            (Some(20), None, None, None, "2345"),
            (Some(21), None, None, None, "345"),
            (None, Some(30), None, None, "124"),
            (Some(20), Some(40), None, None, "234"),
            (Some(20), Some(40), Some(2), None, "34"),
            (None, Some(40), Some(1), None, "4"),
            (None, Some(40), Some(0), None, ""),
            (None, Some(40), Some(u64::MAX), None, "1234"),
            (Some(20), None, None, Some(3), "45"),
            (Some(20), None, Some(1), Some(3), "5"),
            (Some(50), None, Some(3), None, ""),
        ] {
            let (since, until) = (since.map(at), until.map(at));
            let query = LogQuery {
                period: LogPeriod { since, until },
                tail,
                after,
                ..LogQuery::default()
            };
            assert_eq!(texts(&log, query).concat(), expected, "{query:?}");
        }
    }

    #[test]
    fn more_lines_than_are_written_at_a_time_are_all_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        log.begin_boot("a");
        let numbers: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
        let data = numbers.join("\n") + "\nunfinished";
        log.append_record(1, 0, OutputStream::Stdout, data.as_bytes())
            .unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > BATCH as u64);
        assert_eq!(texts(&log, LogQuery::default()), numbers);
        drop(log);
        // As many as before come again, and what was not whole is.
        let log = LogStore::open(path).unwrap();
        assert_eq!(log.begin_boot("a"), 1);
        for (record, data) in [(1, data.as_bytes()), (2, b" no more\n")] {
            log.append_record(record, 0, OutputStream::Stdout, data)
                .unwrap();
        }
        let all = texts(&log, LogQuery::default());
        assert_eq!(all.len(), numbers.len() + 1);
        assert_eq!(all.last().unwrap(), "unfinished no more");
    }

    #[test]
    fn what_could_not_be_written_comes_again_with_the_same_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        let log = LogStore::open(place.join("log")).unwrap();
        log.begin_boot("a");
        let append = || log.append_record(1, 0, OutputStream::Stdout, b"one\ntwo\nthree");
        append().unwrap_err();
        assert_eq!((log.newest_record(), log.lock().next_seq), (0, 1));
        std::fs::create_dir(&place).unwrap();
        // The end of it alone would hide that the beginning is missing.
        log.flush().unwrap();
        assert_eq!(log.newest_record(), 0);
        assert_eq!(log.begin_boot("a"), 1);
        append().unwrap();
        log.flush().unwrap();
        assert_eq!(texts(&log, LogQuery::default()), ["one", "two", "three"]);
        assert_eq!(log.lock().next_seq, 4);
    }

    #[test]
    fn a_torn_last_line_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, b"whole\n")
            .unwrap();
        drop(log);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"s\":2,\"t\":")
            .unwrap();
        let log = LogStore::open(path).unwrap();
        log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, b"next\n")
            .unwrap();
        assert_eq!(texts(&log, LogQuery::default()), ["whole", "next"]);
    }
}
